"""An artifact in the place of FastVLM's vision tower."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...core.errors import ArtifactError, ConfigError
from ...encoder.checkpoint import Checkpoint, CheckpointInfo
from ..artifact import Artifact
from ..export_options import AUTO
from .encoder import Encoder

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ArtifactTower:
    """An artifact as a `VisionTower` (see `encoder.fastvlm.vision`).

    >>> tower = ArtifactTower("fastvithd-1024", vlm.info)
    >>> answer = vlm.generate(["photo.jpg"], "What is this?", tower=tower)

    Args:
        artifact: a folder that `fvexport onnx` wrote, or an opened `Artifact`; with `--projector` or without.
        info: of the model it is to serve: `FastVLM.info`. An artifact of other weights is refused, unless `force`.
        backend, threads, checkpoint: see `Encoder`.
        resolution: (height, width) for artifacts with dynamic resolution; any by default.

    Raises:
        ArtifactError: not usable, or of other weights.
        ConfigError: a resolution that the artifact cannot take.
        UnavailableError: the backend cannot run here.
    """

    def __init__(
        self, artifact: str | os.PathLike[str] | Artifact, info: CheckpointInfo | None, *,
        backend: str = AUTO, resolution: tuple[int, int] | None = None, threads: int | None = None,
        checkpoint: Checkpoint | str | None = None, force: bool = False,
    ) -> None:  # fmt: skip
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        if not force and info is not None:
            check_same_weights(self.artifact, info.source, info.sha256, info.connector_sha256)
        self.encoder = Encoder(self.artifact, backend, resolution=resolution, threads=threads, checkpoint=checkpoint)
        options = self.artifact.manifest.options
        self.name = self.encoder.chosen.name
        self.projected = options.projector
        own = self.encoder.preprocessor.height, self.encoder.preprocessor.width
        self.resolution: tuple[int, int] | None = None if options.dynamic_res and resolution is None else own

    def encode(self, pixels: Tensor) -> Tensor:
        """Levels 0..255, uint8 (B, 3, H, W), or normalized floats -> tokens (B, N, C), floating; any B at once.

        Raises ConfigError for pixels of another size than the artifact takes.
        """
        height, width = pixels.shape[-2:]
        if self.resolution is not None and (height, width) != self.resolution:
            own = "x".join(map(str, self.resolution))
            raise ConfigError(f"{self.artifact.path} takes {own} alone; found pixels of {height}x{width}")
        self.artifact.manifest.architecture.check_resolution(height, width)
        return self.encoder.run_tensor(pixels)


def check_same_weights(
    artifact: Artifact, source: str, sha256: str, connector_sha256: str | None, *, dtype: torch.dtype | None = None
) -> str | None:
    """Compares the weights that an artifact was made from with those of `source`.

    Args:
        artifact: an opened artifact; its connector counts if it ends with one.
        source: whose weights the hashes are of, for the message.
        sha256, connector_sha256: as `CheckpointInfo` has them, of tensors in float32.
        dtype: what `source` holds its tensors in, for the message; None for float32.

    Returns:
        A notice, if the weights are the same but for a rounding to bfloat16 or float16; else None.

    Raises:
        ArtifactError: the weights differ.
    """
    made_from = artifact.manifest.checkpoint
    ends = artifact.manifest.options.projector
    own = made_from.sha256, made_from.connector_sha256 if ends else None
    theirs = sha256, connector_sha256 if ends else None
    if own == theirs:
        return None
    fix = "export this checkpoint, or take the artifact as it is with --force (force=True)"
    for kind, hashes in made_from.rounded.items():
        if (hashes.sha256, hashes.connector_sha256 if ends else None) == theirs:
            return (
                f"{source} holds its weights rounded to {kind}; {artifact.path} was made from the same weights before "
                "that rounding."
            )
    kind = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if kind != "float32" and kind not in made_from.rounded:  # of an earlier version
        fix = f"load the model in float32 if only the rounding to {kind} differs, or {fix}"
    if own[0] != theirs[0]:
        raise ArtifactError(
            f"{artifact.path} was made from other weights ({made_from.source}, sha256 {made_from.sha256[:12]}…) "
            f"than those of {source} ({sha256[:12]}…); {fix}"
        )
    raise ArtifactError(f"{artifact.path} ends with another connector than that of {source}; {fix}")
