"""The one table of places where an artifact runs: what each takes, and what it needs installed."""

from __future__ import annotations

import difflib
import importlib.util
import platform
import sys
from dataclasses import dataclass
from typing import Any

from ..errors import UnavailableError
from .options import Precision

ORT_PACKAGE = (
    "onnxruntime-gpu" if sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") else "onnxruntime"
)


@dataclass(frozen=True)
class Target:
    """One row.

    Attributes:
        name: what `--backend` takes.
        precisions: that it runs natively.
        module: the runtime, as it is imported; says which backend runs it.
        install: the command that installs it.
        provider: the runtime's own name for the place: a provider of onnxruntime, a device of OpenVINO.
        note: what a user should know.
        rounds_stored: can compute half precision as a GPU stores it (`stored_half`), which parity then asks for.
    """

    name: str
    precisions: tuple[Precision, ...]
    module: str
    install: str
    provider: str | None = None
    note: str = ""
    rounds_stored: bool = False


TARGETS: tuple[Target, ...] = (
    Target(
        "onnxruntime-cpu",
        ("fp32", "fp16", "int8"),
        "onnxruntime",
        f"pip install {ORT_PACKAGE}",
        "CPUExecutionProvider",
        "fp16 is computed in float32; bf16 in float32 with every stored value rounded",
        rounds_stored=True,
    ),
    Target(
        "onnxruntime-cuda",
        ("fp32", "fp16", "bf16"),
        "onnxruntime",
        "pip install onnxruntime-gpu  # and NVIDIA's CUDA 12 or 13 and cuDNN 9 libraries",
        "CUDAExecutionProvider",
        "needs an NVIDIA GPU",
    ),
    Target(
        "openvino",
        ("fp32", "fp16", "bf16", "int8"),
        "openvino",
        'pip install "fvexport[openvino]"',
        "CPU",
        "fp16 is computed in float32; so is bf16 where the CPU has no bfloat16",
    ),
    Target(
        "eager",
        ("fp32", "fp16", "bf16"),
        "torch",
        "pip install torch",
        note="PyTorch's own fused model, from the artifact's checkpoint; on a CPU fp16 is computed in float32",
        rounds_stored=True,
    ),
    Target(
        "torch-compile",
        ("fp32", "fp16", "bf16"),
        "torch",
        "apt-get install g++  # or another C++ compiler",
        note="the same through torch.compile, which takes a minute at the first image",
    ),
    Target(
        "triton",
        ("fp32", "fp16", "bf16"),
        "triton",
        'pip install "fvexport[triton]"  # on Linux, with a build of torch for CUDA',
        note="the same on our own kernels and CUDA graphs; needs an NVIDIA GPU, Ampere or later",
    ),
)


def get_target(name: str) -> Target:
    """The row of that name; raises UnavailableError with the nearest name otherwise."""
    for target in TARGETS:
        if target.name == name:
            return target
    names = [t.name for t in TARGETS]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    raise UnavailableError(f"unknown backend {name!r}; {hint}")


def why_absent(target: Target) -> str | None:
    """None where `target` can run here, else the reason in a few words."""
    if importlib.util.find_spec(target.module) is None:
        return f"{target.module} is not installed"
    if target.module == "openvino":
        if target.provider not in import_openvino().Core().available_devices:
            return f"this openvino has no {target.provider} device"
    elif target.module == "onnxruntime":
        import onnxruntime

        if target.provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {target.provider}"
        if target.provider == "CUDAExecutionProvider" and not has_cuda_gpu():
            return "no NVIDIA GPU found"
    elif target.name == "torch-compile":
        return _why_no_compiler()
    elif target.name == "triton":
        return _why_no_kernels()
    return None


def require(target: Target) -> None:
    """Raises UnavailableError with the reason and the command that mends it."""
    reason = why_absent(target)
    if reason is not None:
        raise UnavailableError(f"backend {target.name} cannot run here: {reason}; `{target.install}`")


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


def _why_no_compiler() -> str | None:
    """torch.compile writes C++ for the CPU, which something has to compile."""
    import os
    import shutil

    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    return None if any(name and shutil.which(name) for name in compilers) else "no C++ compiler found"


def _why_no_kernels() -> str | None:
    """Our kernels run where both the driver and torch see an NVIDIA GPU that is new enough."""
    if not has_cuda_gpu():
        return "no NVIDIA GPU found"
    import torch

    from ..kernels.dispatch import MIN_CAPABILITY

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA"
    if (found := torch.cuda.get_device_capability()) < MIN_CAPABILITY:
        return f"the GPU is of compute capability {found[0]}.{found[1]}; the kernels need 8.0"
    return None


def has_cuda_gpu() -> bool:
    """Whether NVIDIA's driver sees a GPU; asked of the driver, since torch may be a CPU build."""
    import ctypes

    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False
