"""The one table of backends: which precisions each runs, and what must be installed for it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass
from typing import Any

from ..calibration.policy import CPU_TARGETS, QUANT_TARGETS, QuantTarget
from ..core.errors import UnavailableError
from ..core.hardware import has_cuda_gpu, is_x86, products_saturate
from ..core.phrases import did_you_mean
from .precision import Precision

ORT_PACKAGE = (
    "onnxruntime-gpu" if sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") else "onnxruntime"
)


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """One row: a backend, and what is known about it before it is loaded.

    Attributes:
        name: what `--backend` takes.
        aliases: short names that `--backend` takes too.
        title: what reports call it.
        precisions: precisions that it runs natively.
        module: the runtime's module; decides which class runs it.
        install: the command that installs it.
        provider: the runtime's own name for the device: a provider of onnxruntime, a device of OpenVINO.
        note: what a user should know.
        gpu: needs an NVIDIA GPU.
        engine: runs the engine that `fvexport trt` built, whose flavour is the row's name.
        compiles: compiles the model when it loads, which takes a minute or more.
        replays: replays CUDA graphs of its own, which cannot be captured once more. (`triton` can launch without.)
        taps: can return the output of every block, for `parity --layers`.
        emulates_half: can round each stored value of a half-precision file as a GPU does, which parity then asks for.
        stores_bf16: stores the float values of INT8 files in bfloat16 if the processor has it.
        exact_products: can add up 8-bit products in 32 bits on a CPU without VNNI.
        quant_target: the quantization target whose files it is measured with.
        fast_with: quantization targets whose files it runs fast.
        saturates: quantization targets whose files it multiplies in 8 bits on the CPU.
        judge: the backend that judges files quantized for it. [default: itself]
    """

    name: str
    aliases: tuple[str, ...] = ()
    title: str = ""
    precisions: tuple[Precision, ...]
    module: str
    install: str
    provider: str | None = None
    note: str = ""
    gpu: bool = False
    engine: bool = False
    compiles: bool = False
    replays: bool = False
    taps: bool = True
    emulates_half: bool = False
    stores_bf16: bool = False
    exact_products: bool = False
    quant_target: QuantTarget = "tensorrt"
    fast_with: tuple[QuantTarget, ...] = ()
    saturates: tuple[QuantTarget, ...] = ()
    judge: str = ""


BACKENDS: tuple[BackendInfo, ...] = (
    BackendInfo(
        name="onnxruntime-cpu",
        aliases=("cpu",),
        title="onnxruntime's CPU",
        precisions=("fp32", "fp16", "int8"),
        module="onnxruntime",
        install=f"pip install {ORT_PACKAGE}",
        provider="CPUExecutionProvider",
        note="fp16 is computed in float32; bf16 in float32 with every stored value rounded",
        emulates_half=True,
        exact_products=True,
        quant_target="onnxruntime-cpu",
        fast_with=("onnxruntime-cpu",),
        # Not files for TensorRT: they keep FP16 around their Q/DQ, so onnxruntime's CPU multiplies in float.
        saturates=CPU_TARGETS,
    ),
    BackendInfo(
        name="onnxruntime-cuda",
        aliases=("cuda", "gpu"),
        precisions=("fp32", "fp16", "bf16"),
        module="onnxruntime",
        install="pip install onnxruntime-gpu  # in place of onnxruntime, and NVIDIA's CUDA 12 or 13 and cuDNN 9 "
        "libraries",
        provider="CUDAExecutionProvider",
        note="needs an NVIDIA GPU",
        gpu=True,
    ),
    BackendInfo(
        name="openvino",
        title="OpenVINO",
        precisions=("fp32", "fp16", "bf16", "int8"),
        module="openvino",
        install='pip install "fvexport[openvino]"',
        provider="CPU",
        note="fp16 is computed in float32; so is bf16 where the CPU has no bfloat16",
        stores_bf16=True,
        quant_target="openvino",
        fast_with=CPU_TARGETS,  # onnxruntime's files as fast as its own
        saturates=QUANT_TARGETS,
    ),
    BackendInfo(
        name="eager",
        precisions=("fp32", "fp16", "bf16", "fp8"),
        module="torch",
        install="pip install torch",
        note="PyTorch's own fused model, from the artifact's checkpoint; on a CPU fp16 is computed in float32, and fp8 "
        "anywhere by rounding to it",
        emulates_half=True,
    ),
    BackendInfo(
        name="torch-compile",
        precisions=("fp32", "fp16", "bf16"),
        module="torch",
        install="apt-get install g++  # or another C++ compiler",
        note="the same through torch.compile, which takes a minute at the first image",
        compiles=True,
        replays=True,
        taps=False,
    ),
    BackendInfo(
        name="triton",
        precisions=("fp32", "fp16", "bf16", "fp8"),
        module="triton",
        install='pip install "fvexport[triton]"  # on Linux, with a build of torch for CUDA',
        note="the same on our own kernels and CUDA graphs; needs an NVIDIA GPU, Ampere or later (fp8: Ada or later)",
        gpu=True,
        compiles=True,
        taps=False,
        fast_with=("tensorrt",),
    ),
    BackendInfo(
        name="tensorrt",
        aliases=("trt",),
        title="TensorRT",
        precisions=("fp32", "fp16", "bf16", "int8", "fp8"),
        module="tensorrt",
        install="pip install tensorrt",
        note="the engine that `fvexport trt` built, on the GPU it was built on",
        gpu=True,
        engine=True,
        compiles=True,
        replays=True,
        taps=False,
        fast_with=("tensorrt",),
        judge="onnxruntime-cpu",
    ),
    BackendInfo(
        name="tensorrt-rtx",
        precisions=("fp32", "fp16", "bf16", "int8", "fp8"),
        module="tensorrt_rtx",
        install="pip install tensorrt-rtx-cu13",
        note="the engine that `fvexport trt` built anywhere, on a GPU that TensorRT-RTX lists",
        gpu=True,
        engine=True,
        compiles=True,
        replays=True,
        taps=False,
        fast_with=("tensorrt",),
    ),
    BackendInfo(
        name="onnxruntime-tensorrt",
        precisions=("fp32", "fp16", "bf16", "int8"),
        module="onnxruntime",
        install="pip install onnxruntime-gpu tensorrt",
        provider="TensorrtExecutionProvider",
        note="builds an engine of the ONNX file as it starts, which takes minutes",
        gpu=True,
        compiles=True,
        fast_with=("tensorrt",),
    ),
    BackendInfo(
        name="onnxruntime-tensorrt-rtx",
        precisions=("fp32", "fp16", "bf16", "int8", "fp8"),
        module="onnxruntime_ep_nv_tensorrt_rtx",
        install='pip install "onnxruntime>=1.24" onnxruntime-ep-nv-tensorrt-rtx  # in place of onnxruntime-gpu',
        note="TensorRT-RTX as a plug-in of onnxruntime; builds an engine of the ONNX file as it starts",
        gpu=True,
        compiles=True,
        fast_with=("tensorrt",),
    ),
)

ALIASES = {alias: row.name for row in BACKENDS for alias in row.aliases}
"""Short names that `--backend` takes too."""


def get_backend(name: str) -> BackendInfo:
    """The row of that name or alias; raises UnavailableError with the nearest name otherwise."""
    for target in BACKENDS:
        if target.name == ALIASES.get(name, name):
            return target
    names = [t.name for t in BACKENDS]
    raise UnavailableError(f"unknown backend {name!r}; {did_you_mean(name, names)}")


def why_absent(target: BackendInfo) -> str | None:
    """None where `target` can run here, else the reason in a few words."""
    if importlib.util.find_spec(target.module) is None:
        return f"{target.module} is not installed"
    if target.module == "openvino":
        if target.provider not in import_openvino().Core().available_devices:
            return f"this openvino has no {target.provider} device"
    elif target.module == "onnxruntime":
        return _why_no_provider(target.provider)
    elif target.name == "torch-compile":
        return _why_no_compiler()
    elif target.engine:
        return _why_no_torch_gpu() or _why_not_this_gpu(target.module)
    elif target.module == "onnxruntime_ep_nv_tensorrt_rtx":
        if not has_cuda_gpu():
            return NO_GPU
        return _why_not_this_gpu("tensorrt_rtx") or (None if rtx_devices() else _NO_RTX)
    elif target.name == "triton":
        return _why_no_kernels()
    return None


@dataclass(frozen=True)
class QuantChoice:
    """The quantization target that is fastest on a machine, and why: a clause for a sentence."""

    target: QuantTarget
    why: str


def fastest_quant_target(*, cpu_only: bool = False) -> QuantChoice:
    """The target whose INT8 files run fastest on this machine.

    TensorRT if it supports this machine's GPU, whether it is installed yet or not. Else OpenVINO if it is installed, on
    x86 with VNNI: the same encoder is about a third faster there than on onnxruntime. Without VNNI onnxruntime is the
    faster one (docs/quantization.md).
    """
    reason = "TensorRT takes no reduced range" if cpu_only else why_no_tensorrt_gpu()
    if reason is None:
        return QuantChoice("tensorrt", "TensorRT supports this machine's GPU")
    if not is_x86():
        return QuantChoice("onnxruntime-cpu", f"{reason}, and OpenVINO's integers are measured on x86 alone")
    if products_saturate():
        return QuantChoice("onnxruntime-cpu", f"{reason}, and without VNNI onnxruntime is faster than OpenVINO")
    absent = why_absent(get_backend("openvino"))
    if absent is None:
        return QuantChoice("openvino", f"{reason}, and OpenVINO is faster than onnxruntime on this CPU")
    return QuantChoice("onnxruntime-cpu", f"{reason}, and {absent}")


def why_no_tensorrt_gpu() -> str | None:
    """None if there is a GPU that TensorRT or TensorRT-RTX supports, else the reason in a few words."""
    if not has_cuda_gpu():
        return NO_GPU
    reasons = [_why_not_this_gpu(module) for module in ("tensorrt", "tensorrt_rtx")]
    return None if None in reasons else reasons[0]


NO_GPU = "no NVIDIA GPU found"
BROKEN_ORT = "onnxruntime is damaged: uninstalling onnxruntime or onnxruntime-gpu removes the other's files too"
REINSTALL_ORT = f"pip install --force-reinstall {ORT_PACKAGE}"
_NO_RTX = "onnxruntime is too old for it (1.24 is the first), or finds no RTX GPU"


def _why_no_provider(provider: str | None) -> str | None:
    import onnxruntime

    if not hasattr(onnxruntime, "get_available_providers"):
        return BROKEN_ORT
    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {provider}"
    if provider != "CPUExecutionProvider" and not has_cuda_gpu():
        return NO_GPU
    if provider == "TensorrtExecutionProvider" and importlib.util.find_spec("tensorrt") is None:
        return "tensorrt is not installed, whose libraries it uses"
    return _why_not_this_gpu("tensorrt") if provider == "TensorrtExecutionProvider" else None


def _why_no_torch_gpu() -> str | None:
    """Engines run on memory that torch allocates."""
    if not has_cuda_gpu():
        return NO_GPU
    import torch

    return None if torch.cuda.is_available() else "torch is built without CUDA, or finds no GPU"


def _why_not_this_gpu(module: str) -> str | None:
    """What TensorRT says of the GPU's compute capability; of TensorRT-RTX its known list, if it is not installed."""
    from .engines.api import MODULES, Api, load_api
    from .engines.binding import current_gpu

    flavour = next(name for name, known in MODULES.items() if known == module)
    installed = importlib.util.find_spec(module) is not None
    try:
        api = load_api(flavour, to_build=False) if installed else Api(None, flavour, "")
    except UnavailableError as error:  # it does not import
        return str(error)
    gpu = current_gpu()
    return None if gpu is None else api.why_not_on(gpu.compute_capability)


def rtx_devices() -> list[Any]:
    """GPUs that the TensorRT-RTX plug-in of onnxruntime offers; registers it at the first call.

    Source: nvidia.github.io/TensorRT-RTX-EP-ABI/installation.html.
    """
    import onnxruntime
    import onnxruntime_ep_nv_tensorrt_rtx as plugin

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return []
    name = plugin.get_ep_name()
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def require(target: BackendInfo) -> None:
    """Raises UnavailableError with the reason and the command that mends it."""
    reason = why_absent(target)
    if reason is not None:
        fix = f"`{target.install}`"
        if reason == NO_GPU or "compute capability" in reason:  # no package brings a GPU
            fix = "take another --backend"
        elif reason == BROKEN_ORT:
            fix = f"`{REINSTALL_ORT}`"
        raise UnavailableError(f"backend {target.name} cannot run here: {reason}; {fix}")


def import_openvino() -> Any:
    """The module `openvino`, without telling Google Analytics: its import sends an event through openvino_telemetry."""
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # fails to import; openvino then takes its own stub
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[telemetry]
    return openvino


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    device = get_backend("openvino").provider
    return "BF16" in import_openvino().Core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def stored_precision(target: BackendInfo, precision: str, float_precision: str) -> str:
    """The precision in which a backend stores the float values of a file here.

    Args:
        target: the backend.
        precision, float_precision: of the file, and of what it leaves unquantized.
    """
    # What int8 leaves out is faster in bfloat16, whatever type it has in the file.
    bf16 = target.stores_bf16 and precision == "int8" and why_absent(target) is None and has_bf16()
    return "bf16" if bf16 else float_precision


def _why_no_compiler() -> str | None:
    """torch.compile writes C++ for the CPU, which something has to compile."""
    import os
    import shutil

    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    return None if any(name and shutil.which(name) for name in compilers) else "no C++ compiler found"


def _why_no_kernels() -> str | None:
    """Our kernels run where both the driver and torch see an NVIDIA GPU that is new enough."""
    if not has_cuda_gpu():
        return NO_GPU
    import torch

    from ..kernels.dispatch import MIN_CAPABILITY

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA"
    if (found := torch.cuda.get_device_capability()) < MIN_CAPABILITY:
        return f"the GPU is of compute capability {found[0]}.{found[1]}; the kernels need 8.0"
    return None
