"""From a row of the table of backends to the class that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...encoder.checkpoint import Checkpoint
from ..artifact import Artifact
from ..backend_table import get_backend
from .base import Backend
from .onnxruntime_backend import OnnxRuntimeBackend
from .openvino_backend import OpenVinoBackend
from .pytorch_backend import PyTorchBackend
from .tensorrt_backend import TensorRTBackend


class ArtifactBackend(Backend, Protocol):
    """A backend that runs an artifact's file, and can show its inner tensors.

    Attributes:
        stores: the precision in which it keeps what the file has in float32, where that is another.
    """

    stores: str | None

    def run_taps(self, pixel_values: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The features, and the inner tensors asked for, all in float32."""
        ...


def make_backend(
    artifact: Artifact, target: str, *, threads: int | None = None, stored_half: bool = False,
    taps: Sequence[str] = (), checkpoint: Checkpoint | str | None = None,
) -> ArtifactBackend:  # fmt: skip
    """The backend that runs `artifact` on `target`.

    Args:
        artifact: an opened artifact.
        target: a name from the table of backends.
        threads: for one operator; None leaves it to the runtime.
        stored_half: round each stored value of a half-precision file, where the runtime can (see `emulate_half`).
        taps: names of inner tensors to return too, by `run_taps`.
        checkpoint: where a backend that runs the model itself takes its weights; the artifact's own source by default.

    Raises:
        UnavailableError: no such target, or it cannot run here.
        ArtifactError: the runtime refuses the file.
    """
    makers: dict[str, type[OnnxRuntimeBackend] | type[OpenVinoBackend] | type[TensorRTBackend]] = {
        "onnxruntime": OnnxRuntimeBackend,
        "onnxruntime_ep_nv_tensorrt_rtx": OnnxRuntimeBackend,
        "openvino": OpenVinoBackend,
        "tensorrt": TensorRTBackend,
        "tensorrt_rtx": TensorRTBackend,
    }
    target, module = get_backend(target).name, get_backend(target).module
    if module in ("torch", "triton"):
        return PyTorchBackend(
            artifact, target, threads=threads, stored_half=stored_half, taps=taps, checkpoint=checkpoint
        )
    maker = makers[module]
    return maker(artifact, target, threads=threads, stored_half=stored_half, taps=taps)
