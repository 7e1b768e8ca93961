"""One cell at work in its process: loaded, compared, timed."""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from ...core.records import plain
from ...core.verdict.figures import Figures
from ...core.verdict.judging import THRESHOLDS, judge, unmeasured
from ...core.verdict.reference import Reference
from ...core.verdict.sections import FiguresSection
from .loading import load_cell
from .messages import Ready, WeightSource, WindowTaken
from .process_memory import go_first, peak_mb, reset_peak
from .result import PARITY_FIGURES, Cell, Parity
from .timing import Energy, Timer, make_timer, take_window


class CellRunner:
    """A cell that has been loaded, has made its first call, and was compared.

    Args:
        cell: what to load.
        weights: the checkpoint.
        file: the artifact, or a peer's file; None where it runs the checkpoint.
        reference: file of what to compare with, see `Reference`.
        own: PyTorch's figures in the cell's precision; None if they are not known.
    """

    def __init__(
        self, cell: Cell, weights: WeightSource, file: str | None, reference: str, own: FiguresSection | None = None
    ) -> None:
        torch.set_num_threads(cell.threads)
        self.cell = cell
        start = time.perf_counter()
        self.model = load_cell(cell, weights, file)
        self.load_s = time.perf_counter() - start
        known = Reference.load(reference)
        self.tokens = known.features.shape[1] * cell.tiles
        self.x = known.values[np.resize(np.arange(len(known.values)), cell.batch * cell.tiles)]
        start = time.perf_counter()
        first = self.model.run(self.x[: cell.batch])
        self.first_ms = 1e3 * (time.perf_counter() - start)
        self.parity = None if cell.kind == "ttft" else self._parity(known, first, own)
        self.timer = self._timer(weights)
        self.energy = Energy(self.model.device)
        self.expected_ms = self.timer.once()
        self.peak_host_mb = peak_mb()
        self.resets = reset_peak()

    def _timer(self, weights: WeightSource) -> Timer:
        if self.cell.kind == "ttft":
            from .prefilling import TtftTimer

            return TtftTimer(self.cell, weights, self.model, self.x)
        return make_timer(self.model, self.x)

    def ready(self) -> Ready:
        """What there is to know before the first window."""
        return Ready(
            computes=self.model.computes + (f"; {self.timer.note}" if self.timer.note else ""),
            device=self.model.device, timer=self.timer.name, load_s=self.load_s, first_ms=self.first_ms,
            call_ms=self.expected_ms, peak_host_mb=self.peak_host_mb, parity=self.parity, tokens=self.tokens,
        )  # fmt: skip

    def window(self, seconds: float, max_calls: int) -> WindowTaken:
        """Calls for so many seconds, and the memory and energy they took."""
        go_first()  # in each window, since threads may have joined; a process that waits takes nothing
        before = self.energy.read()
        times, calls = take_window(self.timer, seconds, max_calls, self.expected_ms)
        after = self.energy.read()
        self.expected_ms = times[-1]
        return WindowTaken(
            times_ms=tuple(times),
            parts_ms=tuple(self.timer.parts[-len(times) :]),
            run_host_mb=peak_mb() if self.resets else None,
            gpu_mb=self._gpu_mb(),
            energy_j=None if before is None or after is None else (after - before) / (calls * self.cell.batch),
        )

    def _parity(self, known: Reference, first: np.ndarray, own: FiguresSection | None) -> Parity:
        """The verdict and the figures it is about; `first` is the first call's result, `own` PyTorch's figures."""
        allowed = THRESHOLDS[self.cell.precision]
        figures = known.figures(self.model.run, batch=self.cell.batch, first=first)
        status, _ = judge(figures, Figures.from_dict(plain(own)) if own else unmeasured(allowed), allowed)
        found = figures.to_dict()
        return Parity(status, **{name: found[name] for name in PARITY_FIGURES})

    def _gpu_mb(self) -> float | None:
        if self.model.device != "cuda":
            return None
        # Without NVML, what torch holds: 0 for a runtime that allocates by itself, so then unknown.
        return self.energy.process_mb(os.getpid()) or torch.cuda.max_memory_reserved() / 1e6 or None
