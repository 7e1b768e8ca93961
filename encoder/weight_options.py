"""Which weights a command or function works on. Imports nothing heavy: the command line reads its choices from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.progress import Progress, silent
from .config import FastViTHDConfig, get_variant

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """The weights, as `load_checkpoint` takes them.

    Attributes:
        checkpoint: a file, a folder, a Hugging Face id or loaded weights; None for seeded weights.
        revision: branch, tag or commit of a Hugging Face id.
        variant: name of the architecture; None to detect it from the checkpoint.
        seed: of seeded weights.
    """

    checkpoint: Checkpoint | str | os.PathLike[str] | None = None
    revision: str | None = None
    variant: str | None = None
    seed: int = 0

    @property
    def architecture(self) -> FastViTHDConfig:
        """The named architecture, or the default if the checkpoint decides. Raises ConfigError for an unknown name."""
        return FastViTHDConfig() if self.variant is None else get_variant(self.variant)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `load_checkpoint`; `source` may be loaded weights."""
        return {"source": self.checkpoint, "revision": self.revision, "variant": self.variant, "seed": self.seed}

    def load(self, *, require_connector: bool = False, progress: Progress = silent) -> Checkpoint:
        """Loads the weights, unless they are loaded already. Raises what `load_checkpoint` raises."""
        from .checkpoint import Checkpoint, load_checkpoint

        if isinstance(self.checkpoint, Checkpoint):
            return self.checkpoint
        return load_checkpoint(**self.arguments(), require_connector=require_connector, progress=progress)
