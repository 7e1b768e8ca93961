"""Which model answers, and how it sees pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...core.errors import ConfigError
from ...core.progress import Progress, silent
from ...core.threads import check_threads
from ...encoder.checkpoint import CheckpointInfo
from ...encoder.fastvlm import FastVLM, Tiling, load_fastvlm


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A checkpoint and its settings.

    Attributes:
        checkpoint, revision: where its weights are (see `load_fastvlm`).
        tokenizer: of another folder or hub id, for weights that came without one.
        device: of the language model and the eager encoder; a GPU where there is one.
        dtype: of the language model (see `load_fastvlm`).
        resolution: (height, width) of a frame or tile, for every encoder; by default that of the artifacts where they
            share one, else the checkpoint's for the eager encoder and each artifact's own.
        anyres: cut pictures into tiles, as the checkpoint says or LLaVA-1.6 does.
        grids: (rows, columns) of tiles to choose from instead of those.
        force: take artifacts that were made from other weights.
        threads: on the CPU, for PyTorch and for artifacts; None leaves it to them, within the container's CPU quota.
    """

    checkpoint: str
    revision: str | None = None
    tokenizer: str | None = None
    device: str | None = None
    dtype: str | None = None
    resolution: tuple[int, int] | None = None
    anyres: bool = False
    grids: tuple[tuple[int, int], ...] = ()
    force: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.grids and not self.anyres:
            raise ConfigError("--grid has no effect without --anyres")
        check_threads(self.threads)

    @property
    def place(self) -> str:
        """The device: the one that was asked for, else a GPU where there is one."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def load(self, progress: Progress = silent) -> FastVLM:
        """The model; raises what `load_fastvlm` does, and ConfigError for a device that is not here."""
        try:
            torch.empty(0, device=self.place)
        except (RuntimeError, AssertionError):
            raise ConfigError(
                f"no device {self.place!r} here; take --device cpu, or cuda where there is a GPU"
            ) from None
        return load_fastvlm(
            self.checkpoint, revision=self.revision, tokenizer=self.tokenizer or True, dtype=self.dtype,
            device=self.place, progress=progress,
        )  # fmt: skip

    def tiling(self, vlm: FastVLM) -> Tiling | None:
        """How pictures are cut, or None where they are taken whole."""
        tiling = (vlm.tiling or Tiling()) if self.anyres else vlm.tiling
        return replace(tiling, grids=self.grids) if tiling is not None and self.grids else tiling


def weights_of(info: CheckpointInfo) -> tuple[str | None, ...]:
    """What tells a checkpoint's weights apart from another's. Of the language model it is where they came from."""
    return info.source, info.revision, info.sha256, info.connector_sha256
