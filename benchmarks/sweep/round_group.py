"""One heat: cells of one resolution, each in its process, timed in the same rounds.

In every round each cell makes some calls in a row (a window), in an order that turns with the rounds, and the reference
cell makes its own after every few of them. A cell's ratio is taken to the reference's windows just before and after, so
that what the machine does meanwhile hits both alike. A cell leaves once its last windows agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .result import Cell
from .sweep_options import Measuring
from .windows import Taken, is_stable
from .worker_process import Worker, WorkerError


@dataclass
class Live:
    """A cell whose process waits for its next window.

    Attributes:
        cell, worker: what runs where.
        info: the answer to its `load`.
        windows: of earlier rounds, and of these.
        peaks: the largest of each figure that windows report beside times.
        energy: joules of one image, by window.
        done: its figures suffice; kept only as the reference of others.
    """

    cell: Cell
    worker: Worker
    info: dict[str, Any]
    windows: list[Taken] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    energy: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def device(self) -> str:
        return str(self.info["device"])

    @property
    def window_s(self) -> float:
        """Seconds that one more window takes, about."""
        return max(0.3, 1.2 * self.info["call_ms"] / 1e3)


class Heat:
    """The rounds of some cells.

    Args:
        how: when windows suffice.
        ask: hands a worker its job under the sweep's clock; raises WorkerError.
        lost: told of a cell whose process is gone.
        left: seconds until the budget ends.
    """

    def __init__(
        self, how: Measuring, ask: Callable[[Worker, dict[str, Any]], dict[str, Any]],
        lost: Callable[[Live, WorkerError], None], left: Callable[[], float],
    ) -> None:  # fmt: skip
        self.how, self.ask, self.lost, self.left = how, ask, lost, left
        self.lives: list[Live] = []

    def rounds(self, first: int) -> Iterator[dict[str, Taken]]:
        """Yields what each round took, by cell id; ends as all cells are done, have had their rounds, or time is up."""
        number = first
        while any(not live.done for live in self.lives) and self.left() > 0:
            taken: dict[str, Taken] = {}
            for device in sorted({live.device for live in self.lives}):
                for live, window in self._round(device, number):
                    live.windows.append(window)
                    taken[live.cell.id] = window
            for live in self.lives:
                enough = is_stable(live.windows, self.how) or len(live.windows) >= self.how.max_rounds
                live.done = live.done or enough
            number += 1
            yield taken

    def _round(self, device: str, number: int) -> list[tuple[Live, Taken]]:
        """One window of every cell on a device, in between those of the reference."""
        group = [live for live in self.lives if live.device == device]
        if all(live.done for live in group):
            return []
        reference, others = group[0], [live for live in group[1:] if not live.done]
        turn = number % len(others) if others else 0
        others = others[turn:] + others[:turn]
        found: list[tuple[Live, dict[str, Any], int]] = []
        beside: list[list[float]] = []
        for start in range(0, max(1, len(others)), self.how.beside):
            if self.left() <= 0:
                break
            beside.append(self._window(reference))
            for live in others[start : start + self.how.beside]:
                if self.left() > 0 and (answer := self._ask(live)):
                    found.append((live, answer, len(beside) - 1))
        if others:
            beside.append(self._window(reference))
        medians = [statistics.median(times) if times else None for times in beside]
        name = reference.cell.id
        windows = []
        for live, answer, place in found:
            known = [m for m in medians[place : place + 2] if m is not None]
            near = statistics.fmean(known) if known else None
            windows.append((live, _taken(number, answer, name if near else "", near)))
        own = [t for times in beside for t in times]
        if own and reference in self.lives and not reference.done:
            parts = tuple(tuple(p) for p in reference.info.pop("parts", ()))
            windows.append((reference, Taken(number, tuple(own), name, statistics.median(own), parts)))
        return windows

    def _window(self, live: Live) -> list[float]:
        """The reference's calls; none where it is gone."""
        if live not in self.lives or not (answer := self._ask(live)):
            return []
        live.info.setdefault("parts", []).extend(answer["parts_ms"])
        return list(answer["times_ms"])

    def _ask(self, live: Live) -> dict[str, Any] | None:
        job = {"do": "window", "seconds": self.how.window_s, "max_calls": self.how.max_calls}
        try:
            answer = self.ask(live.worker, job)
        except WorkerError as error:
            self.lives.remove(live)
            self.lost(live, error)
            return None
        for name in ("run_host_mb", "gpu_mb"):
            if answer[name] is not None:
                live.peaks[name] = max(live.peaks.get(name, 0.0), answer[name])
        if answer["energy_j"] is not None:
            live.energy.append(answer["energy_j"])
        return answer


def _taken(number: int, answer: dict[str, Any], reference: str, reference_ms: float | None) -> Taken:
    parts = tuple(tuple(part) for part in answer["parts_ms"])
    return Taken(number, tuple(answer["times_ms"]), reference, reference_ms, parts)


def first_rounds_s(lives: Sequence[Live], how: Measuring) -> float:
    """Seconds that the rounds every cell gets will take, about: what loading must leave of a budget."""
    return how.min_rounds * sum(max(how.window_s, live.window_s) for live in lives)
