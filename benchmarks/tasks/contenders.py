"""The encoders of a comparison: the eager model first, then every artifact on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...encoder.checkpoint import CheckpointInfo
from ...encoder.fastvlm import VisionTower
from ...export.artifact import Artifact
from ...export.backend_table import get_backend, require
from ...export.export_options import AUTO
from ...export.placement import choose_backend
from ...export.runtime.encoder import preprocessor_of
from ...export.runtime.vision_tower import ArtifactTower, check_same_weights

EAGER = "eager"
DEFAULT_BACKEND = AUTO


@dataclass(frozen=True)
class Contender:
    """One encoder.

    Attributes:
        name: of its rows: `eager`, or the artifact's folder and the backend.
        resolution: (height, width) of a frame or tile.
        precision: of weights and activations.
        artifact, backend: what runs; None and empty for the eager model.
    """

    name: str
    resolution: tuple[int, int]
    precision: str = "fp32"
    artifact: Artifact | None = None
    backend: str = ""

    @property
    def weights(self) -> list[Any]:
        """What its results depend on besides the checkpoint and how it is asked."""
        return [] if self.artifact is None else [self.backend, self.artifact.manifest.files]

    def check_weights(self, info: CheckpointInfo) -> None:
        """Raises ArtifactError where the artifact was made from other weights."""
        if self.artifact is not None:
            check_same_weights(self.artifact, info.source, info.sha256, info.connector_sha256)

    def tower(self, threads: int | None = None) -> VisionTower | None:
        """What encodes; None for the eager model. Raises what `ArtifactTower` does, but does not check its weights.

        Args:
            threads: see `Encoder`.
        """
        if self.artifact is None:
            return None
        return ArtifactTower(self.artifact, None, backend=self.backend, resolution=self.resolution, threads=threads)


@dataclass(frozen=True)
class Entered:
    """Artifacts that were opened, and for each the backends that it runs on here."""

    artifacts: tuple[Artifact, ...]
    backends: tuple[tuple[str, ...], ...]

    def contenders(self, wanted: tuple[int, int] | None, own: tuple[int, int]) -> list[Contender]:
        """The eager model, then every artifact on every backend.

        Args:
            wanted: (height, width) that is asked of all; None for the one that the artifacts share, or each its own.
            own: the checkpoint's, for the eager model where nothing else says.

        Raises ConfigError for a resolution that an artifact cannot take.
        """
        frames = [preprocessor_of(artifact, wanted) for artifact in self.artifacts]
        sizes = [(frame.height, frame.width) for frame in frames]
        shared = wanted or (sizes[0] if len(set(sizes)) == 1 else own)
        names = [artifact.path.name for artifact in self.artifacts]
        if len(set(names)) < len(names):
            names = [str(artifact.path) for artifact in self.artifacts]
        return [Contender(EAGER, shared)] + [
            Contender(f"{name} {backend}", size, artifact.manifest.precision, artifact, backend)
            for name, size, artifact, backends in zip(names, sizes, self.artifacts, self.backends, strict=True)
            for backend in backends
        ]


def enter(artifacts: Sequence[Path], backends: Sequence[str]) -> Entered:
    """Opens artifacts and looks for backends; raises ArtifactError and UnavailableError before anything is loaded.

    `auto` becomes the backend that it means for each artifact.
    """
    opened = tuple(Artifact.open(path) for path in dict.fromkeys(artifacts))
    chosen = tuple(
        tuple(dict.fromkeys(choose_backend(artifact, backend).name for backend in backends)) for artifact in opened
    )
    for name in dict.fromkeys(name for names in chosen for name in names):
        require(get_backend(name))
    return Entered(opened, chosen)
