"""From a row of the table of backends to the class that runs it."""

from __future__ import annotations

from ...core.threads import check_threads
from ...encoder.checkpoint import Checkpoint
from ..artifact import Artifact
from ..backend_table import get_backend
from .base import Backend
from .onnxruntime_backend import OnnxRuntimeBackend
from .openvino_backend import OpenVinoBackend
from .pytorch_backend import PyTorchBackend
from .tensorrt_backend import TensorRTBackend


def make_backend(
    artifact: Artifact, target: str, *, threads: int | None = None, checkpoint: Checkpoint | str | None = None
) -> Backend:
    """The backend that runs `artifact` on `target`.

    Args:
        artifact: an opened artifact.
        target: a name from the table of backends.
        threads: for one operator; None leaves it to the runtime, within the container's CPU quota.
        checkpoint: where a backend that runs the model itself takes its weights; the artifact's own source by default.

    Raises:
        ConfigError: a number of threads that makes no sense.
        UnavailableError: no such target, or it cannot run here.
        ArtifactError: the runtime refuses the file.
    """
    check_threads(threads)
    makers: dict[str, type[OnnxRuntimeBackend] | type[OpenVinoBackend] | type[TensorRTBackend]] = {
        "onnxruntime": OnnxRuntimeBackend,
        "onnxruntime_ep_nv_tensorrt_rtx": OnnxRuntimeBackend,
        "openvino": OpenVinoBackend,
        "tensorrt": TensorRTBackend,
        "tensorrt_rtx": TensorRTBackend,
    }
    target, module = get_backend(target).name, get_backend(target).module
    if module in ("torch", "triton"):
        return PyTorchBackend(artifact, target, threads=threads, checkpoint=checkpoint)
    return makers[module](artifact, target, threads=threads)
