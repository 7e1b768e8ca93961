"""What a phase's process is told: where it writes, what it measures, and until when it may run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .facts import FILE, Facts
from .scope import DRY, REAL, Scope


@dataclass(frozen=True)
class Job:
    """One phase, or a part of one, for a process of its own.

    Attributes:
        phase: its name in `phases`.
        out: folder for results.
        scratch: folder for what only this run needs: weights, caches.
        dry: on a CPU, with a tiny model.
        start: of the whole run, as `time.time()`.
        deadline: when the process is killed, as `time.time()`.
        options: of the phase.
    """

    phase: str
    out: str
    scratch: str
    dry: bool
    start: float
    deadline: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def scope(self) -> Scope:
        """What is measured."""
        return DRY if self.dry else REAL

    @property
    def device(self) -> str:
        """`cuda`, or `cpu` in a dry run."""
        return "cpu" if self.dry else "cuda"

    @property
    def weights(self) -> Path:
        """The file of the fused model, see `phases.weights`."""
        return Path(self.scratch) / "model.pt"

    @property
    def fp8_weights(self) -> Path:
        """The file of the quantized model, see `phases.quantize`."""
        return Path(self.scratch) / "model-fp8.pt"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def facts(self) -> Facts:
        """Where this phase writes what it finds."""
        return Facts(Path(self.out) / FILE, self.phase, self.start)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))
