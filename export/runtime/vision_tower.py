"""An artifact in the place of FastVLM's vision tower."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...encoder.checkpoint import Checkpoint, CheckpointInfo
from ..artifact import Artifact

if TYPE_CHECKING:
    from torch import Tensor


class ArtifactTower:
    """An artifact as a `VisionTower` (see `encoder.fastvlm.vision`).

    >>> tower = ArtifactTower("fastvithd-1024", vlm.info, backend="onnxruntime-cpu")
    >>> answer = vlm.generate(["photo.jpg"], "What is this?", tower=tower)

    Args:
        artifact: a folder that `fvexport onnx` wrote, or an opened `Artifact`; with `--projector` or without.
        info: of the model it is to serve: `FastVLM.info`. Raises ArtifactError where the artifact was made from other
            weights, unless `force`.
        backend, threads, checkpoint: see `Encoder`.
        resolution: (height, width) for artifacts with dynamic resolution; any by default.

    Raises:
        ArtifactError: not usable, or of other weights.
        ConfigError: a resolution that the artifact cannot take.
        UnavailableError: the backend cannot run here.
    """

    name: str
    projected: bool
    resolution: tuple[int, int] | None

    def __init__(
        self, artifact: str | os.PathLike[str] | Artifact, info: CheckpointInfo, *, backend: str = "onnxruntime-cpu",
        resolution: tuple[int, int] | None = None, threads: int | None = None,
        checkpoint: Checkpoint | str | None = None, force: bool = False,
    ) -> None:  # fmt: skip
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> Tensor:
        """Levels 0..255, uint8 (B, 3, H, W), or floats in [0, 1] -> tokens (B, N, C), floating; any B at once."""
        raise NotImplementedError
