"""Times cells of one resolution in the same rounds, each cell in its own process.

In every round each cell makes some calls in a row (a window), in an order that rotates, and after every few cells the
reference cell makes its own. A cell's ratio is to the reference's windows just before and after, so that other load on
the machine affects both alike. A cell leaves the group once its last windows agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .messages import Ready, TakeWindow, WindowTaken
from .result import Cell
from .sweep_options import Measuring
from .windows import TimedWindow, is_stable
from .worker_process import Worker, WorkerError


@dataclass
class CellWorker:
    """A cell whose process waits for its next window.

    Attributes:
        cell, worker: what runs where.
        info: the answer to its `Load`.
        windows: of earlier rounds, and of these.
        parts: of the calls of this round, if it is the reference (see `TimedWindow.parts_ms`).
        run_host_mb, gpu_mb: the largest that a window reported.
        energy: joules of one image, by window.
        done: needs no more windows; stays only as a reference.
    """

    cell: Cell
    worker: Worker
    info: Ready
    windows: list[TimedWindow] = field(default_factory=list)
    parts: list[tuple[float, float, float]] = field(default_factory=list)
    run_host_mb: float | None = None
    gpu_mb: float | None = None
    energy: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def device(self) -> str:
        return self.info.device

    @property
    def window_s(self) -> float:
        """Approximate seconds of one more window."""
        return max(0.3, 1.2 * self.info.call_ms / 1e3)

    def count(self, answer: WindowTaken) -> None:
        """Adds the memory and energy of a window."""
        self.run_host_mb = _larger(self.run_host_mb, answer.run_host_mb)
        self.gpu_mb = _larger(self.gpu_mb, answer.gpu_mb)
        if answer.energy_j is not None:
            self.energy.append(answer.energy_j)


class RoundGroup:
    """The rounds of some cells.

    Args:
        how: when windows suffice.
        ask: sends a job to a worker, within the sweep's time limits; raises WorkerError.
        lost: called with a cell whose process is gone.
        left: seconds until the budget ends.
    """

    def __init__(
        self, how: Measuring, ask: Callable[[Worker, TakeWindow], WindowTaken],
        lost: Callable[[CellWorker, WorkerError], None], left: Callable[[], float],
    ) -> None:  # fmt: skip
        self.how, self.ask, self.lost, self.left = how, ask, lost, left
        self.members: list[CellWorker] = []

    def rounds(self, first: int) -> Iterator[dict[str, TimedWindow]]:
        """Yields the windows of each round, by cell id; ends when all cells are done or time is up."""
        number = first
        while any(not member.done for member in self.members) and self.left() > 0:
            taken: dict[str, TimedWindow] = {}
            for device in sorted({member.device for member in self.members}):
                for member, window in self._round(device, number):
                    member.windows.append(window)
                    taken[member.cell.id] = window
            for member in self.members:
                enough = is_stable(member.windows, self.how) or len(member.windows) >= self.how.max_rounds
                member.done = member.done or enough
            number += 1
            yield taken

    def _round(self, device: str, number: int) -> list[tuple[CellWorker, TimedWindow]]:
        """One window of every cell on a device, in between those of the reference."""
        group = [member for member in self.members if member.device == device]
        if all(member.done for member in group):
            return []
        reference, others = group[0], [member for member in group[1:] if not member.done]
        turn = number % len(others) if others else 0
        others = others[turn:] + others[:turn]
        found: list[tuple[CellWorker, WindowTaken, int]] = []
        beside: list[list[float]] = []
        for start in range(0, max(1, len(others)), self.how.beside):
            if self.left() <= 0:
                break
            beside.append(self._window(reference))
            for member in others[start : start + self.how.beside]:
                if self.left() > 0 and (answer := self._ask(member)):
                    found.append((member, answer, len(beside) - 1))
        if others:
            beside.append(self._window(reference))
        medians = [statistics.median(times) if times else None for times in beside]
        name = reference.cell.id
        windows = []
        for member, answer, place in found:
            known = [m for m in medians[place : place + 2] if m is not None]
            near = statistics.fmean(known) if known else None
            windows.append((member, _timed_window(number, answer, name if near else "", near)))
        own = [t for times in beside for t in times]
        if own and reference in self.members and not reference.done:
            window = TimedWindow(number, tuple(own), name, statistics.median(own), tuple(reference.parts))
            windows.append((reference, window))
            reference.parts.clear()
        return windows

    def _window(self, member: CellWorker) -> list[float]:
        """The reference's calls; none if its process is gone."""
        if member not in self.members or not (answer := self._ask(member)):
            return []
        member.parts.extend(answer.parts_ms)
        return list(answer.times_ms)

    def _ask(self, member: CellWorker) -> WindowTaken | None:
        try:
            answer = self.ask(member.worker, TakeWindow(seconds=self.how.window_s, max_calls=self.how.max_calls))
        except WorkerError as error:
            self.members.remove(member)
            self.lost(member, error)
            return None
        member.count(answer)
        return answer


def _timed_window(number: int, answer: WindowTaken, reference: str, reference_ms: float | None) -> TimedWindow:
    return TimedWindow(number, answer.times_ms, reference, reference_ms, answer.parts_ms)


def _larger(one: float | None, other: float | None) -> float | None:
    return max((mb for mb in (one, other) if mb is not None), default=None)


def first_rounds_s(members: Sequence[CellWorker], how: Measuring) -> float:
    """Approximate seconds of the rounds that every cell gets; loading must leave this much of the budget."""
    return how.min_rounds * sum(max(how.window_s, member.window_s) for member in members)
