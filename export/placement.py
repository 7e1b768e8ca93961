"""Where an artifact runs well: which backend `auto` takes, and what is slow, inexact or impossible on this machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import UNSET
from onnx import TensorProto, helper

from ..core.errors import FvexportError
from ..core.hardware import has_cuda_gpu, products_saturate
from ..encoder.checkpoint.preprocessing import PUBLISHED
from ..encoder.preprocess_config import RELEASED
from .artifact import Artifact
from .backend_table import fastest_quant_target, get_backend, why_absent, why_no_tensorrt_gpu
from .engines.engine_section import EngineSection
from .export_options import AUTO, ExportOptions
from .manifest import Manifest
from .saturation import saturation_of


@dataclass(frozen=True)
class BackendChoice:
    """A backend for an artifact.

    Attributes:
        name: from the table of backends.
        why: the reason in a few words; empty if the backend was named.
    """

    name: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


def choose_backend(
    artifact: Artifact, backend: str = AUTO, *, judging: bool = False, taps: bool = False
) -> BackendChoice:
    """The backend that `--backend` means for an artifact on this machine.

    `auto` takes the artifact's engine if it can run here; else the GPU; else the runtime that a quantized file was made
    for; else onnxruntime's CPU.

    Args:
        artifact: an opened artifact.
        backend: `auto`, or a name or alias from the table of backends; `trt` is the TensorRT of the artifact's engine.
        judging: for a verdict, which wants the values that the file describes: BF16 then stays on onnxruntime, which
            rounds each stored value.
        taps: take only backends that show the output of every block.

    Raises:
        UnavailableError: no such backend.
    """
    manifest = artifact.manifest
    engine = manifest.engine.flavour if manifest.engine else None
    if backend != AUTO:
        name = get_backend(backend).name
        return BackendChoice(engine if backend == "trt" and engine else name)
    if manifest.engine and not taps and _why_no_engine(artifact.path, manifest.engine) is None:
        return BackendChoice(manifest.engine.flavour, "the artifact's engine runs here")
    gpu = _gpu_backend(manifest, taps=taps)
    if gpu is not None:
        return gpu
    target = quant_target(manifest)
    if target is not None and not get_backend(target).gpu and why_absent(get_backend(target)) is None:
        return BackendChoice(target, "the artifact was made for it")
    openvino = not manifest.options.attention_plugin and why_absent(get_backend("openvino")) is None
    if manifest.precision == "bf16" and not judging and openvino:
        return BackendChoice("openvino", "onnxruntime's CPU has no BF16 convolution")
    missing = why_absent(get_backend("onnxruntime-cpu"))
    if missing is not None and openvino:
        return BackendChoice("openvino", missing)
    return BackendChoice("onnxruntime-cpu", "no GPU that runs it" if has_cuda_gpu() else "no GPU found")


def quant_target(manifest: Manifest) -> str | None:
    """The runtime that a quantized file was made for, or None for any other file."""
    return manifest.quantization.target if manifest.quantization else None


def _why_no_engine(artifact: Path, engine: EngineSection) -> str | None:
    """None if the artifact's engine runs here, else the reason."""
    row = get_backend(engine.flavour)
    if (reason := why_absent(row)) is not None:
        return reason
    from .engines.api import load_api
    from .engines.binding import check_binding, current_gpu

    try:
        check_binding(str(artifact), engine, load_api(engine.flavour, to_build=False), current_gpu())
    except FvexportError as error:
        return str(error)
    return None


def _gpu_backend(manifest: Manifest, *, taps: bool) -> BackendChoice | None:
    """A backend that runs the file itself on this machine's GPU, or None."""
    if not has_cuda_gpu():
        return None
    if manifest.precision == "fp8":
        if taps or manifest.options.projector or why_absent(get_backend("triton")) is not None:
            return None
        import torch

        ada = torch.cuda.get_device_capability() >= (8, 9)
        return BackendChoice("triton", "a GPU that multiplies FP8") if ada else None
    cuda = get_backend("onnxruntime-cuda")
    if manifest.precision in cuda.precisions and why_absent(cuda) is None and _cuda_sessions_work():
        return BackendChoice(cuda.name, "there is a GPU")
    return None


@functools.cache
def _cuda_sessions_work() -> bool:
    """Whether onnxruntime finds the CUDA and cuDNN libraries: it lists the provider either way."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception:  # onnxruntime's exceptions share no public base
        return False
    return "CUDAExecutionProvider" in session.get_providers()


# --- sentences -----------------------------------------------------------------------------------


def export_notices(asked: ExportOptions, options: ExportOptions) -> list[str]:
    """What a user should know of where a file with these options runs.

    Args:
        asked: the options as they were given.
        options: the same, resolved.
    """
    if options.precision == "bf16":
        return [BF16_NOTICE]
    if options.precision != "int8":
        return []
    notices, target, fastest = [], str(options.target), fastest_quant_target()
    if asked.target != options.target:
        why = fastest.why if fastest.target == target else "the only target that takes these options"
        if not options.attention_plugin:
            notices.append(
                f"quantized for {target}, this machine's fastest INT8 target ({why}); --target takes another"
            )
    elif fastest.target != target:
        notices.append(f"{_slow_target(target)}; the fastest INT8 target here is {fastest.target} ({fastest.why})")
    if options.reduce_range and asked.reduce_range is None:
        notices.append(
            "weights go from -64 to 64, because 8-bit products saturate on this CPU (no VNNI); --no-reduce-range keeps "
            "all 8 bits, for other CPUs"
        )
    return notices


BF16_NOTICE = (
    "BF16 files run in onnxruntime on a GPU, OpenVINO and TensorRT; onnxruntime's CPU has no BF16 convolution "
    "(NOT_IMPLEMENTED), and fvexport runs them there in float32, rounding each stored value"
)


def _slow_target(target: str) -> str:
    if target == "tensorrt" and (reason := why_no_tensorrt_gpu()) is not None:
        return f"made for TensorRT, and {reason}: on a CPU this file takes longer than an FP32 one"
    absent = why_absent(get_backend(target))
    return f"made for {target}" + (f", and {absent}" if absent else "")


def runtime_notices(artifact: Artifact, backend: str) -> list[str]:
    """What a user should know before an artifact runs on `backend` here: that it is slow, or that its numbers differ.

    They differ where 8-bit products saturate, and where an earlier version did not follow the form's preprocessing.
    """
    manifest = artifact.manifest
    found = (_slow(artifact, backend), _saturation(artifact, backend), _old_preprocessing(artifact))
    notices = [text for text in found if text]
    if manifest.precision == "bf16" and "bf16" not in get_backend(backend).precisions:
        notices.append(
            f"{artifact.path} is BF16, which {backend} computes slowly: in float32, rounding each stored value"
        )
    return notices


def _old_preprocessing(artifact: Artifact) -> str | None:
    own = artifact.manifest.checkpoint
    if own.preprocessing_source is not UNSET or PUBLISHED.get(own.form, RELEASED) == RELEASED:
        return None
    return (
        f"{artifact.path} was made by a version that took FastVLM's mean, std and interpolation for {own.form} "
        "checkpoints too, so its features differ from the checkpoint's own; export it again"
    )


def _slow(artifact: Artifact, backend: str) -> str | None:
    target = quant_target(artifact.manifest)
    if target is None or target in get_backend(backend).fast_with:
        return None
    row = get_backend(target)
    if row.engine:
        where = "builds an engine" if why_no_tensorrt_gpu() is None else "builds an engine on a machine with a GPU"
        fix = f"`fvexport trt --artifact {artifact.path}` {where}"
        if artifact.manifest.precision != "fp8":
            fix += f", `fvexport onnx --int8 --target {fastest_quant_target(cpu_only=True).target}` a file for this CPU"
    else:
        fix = f"take --backend {target}" if why_absent(row) is None else f"`{row.install}`"
    return f"{artifact.path} was made for {row.title} and is slow on {backend}, slower than an FP32 file; {fix}"


def _saturation(artifact: Artifact, backend: str) -> str | None:
    if not may_saturate(artifact, backend):
        return None
    found = saturation_of(artifact)
    share = f"{found.affected} of {found.pairs} pairs of weights in {len(found.layers)} layers"
    begin = f"8-bit products saturate on this CPU (no VNNI), in {share} of {artifact.path}"
    if get_backend(backend).exact_products:
        return f"{begin}: computed exactly, more slowly; `fvexport onnx --reduce-range` makes a file without them"
    return f"{begin}: features can be wrong; export it with --reduce-range"


def may_saturate(artifact: Artifact, backend: str) -> bool:
    """Whether products of this artifact's weights saturate on `backend` and this CPU."""
    manifest = artifact.manifest
    if manifest.precision != "int8" or not products_saturate():
        return False
    return quant_target(manifest) in get_backend(backend).saturates and saturation_of(artifact).affected > 0


def runs_on(manifest: Manifest) -> str:
    """Where a file runs, in one line for a report."""
    if manifest.precision == "bf16":
        return "onnxruntime on a GPU, OpenVINO, TensorRT; not stock onnxruntime on a CPU"
    if manifest.precision == "fp8":
        return "TensorRT on Hopper and later, fvexport's triton from Ada on"
    target = quant_target(manifest)
    if target is not None:
        return f"{get_backend(target).title}; elsewhere more slowly"
    return "onnxruntime, OpenVINO, TensorRT" + ("; fast on GPUs alone" if manifest.precision == "fp16" else "")
