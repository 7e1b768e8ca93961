"""A whole sweep: plans, makes files, loads cells into processes, times them in rounds, writes lines as cells end."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core import hardware
from ...core.errors import ArtifactError, CheckpointError, one_line
from ...core.locks import locked
from ...core.output_path import check_place
from ...core.phrases import counted, printable
from ...core.progress import Progress, silent
from ...core.temporary import check_temporary_folder
from .cell_files import Files
from .environment import find_environment, now
from .messages import A, File, Job, Load, TakeWindow, WeightSource, WindowTaken
from .outcome import measured_result
from .plan import make_plan
from .result import MEASURED, Absent, Cell, Result, Status
from .round_group import CellWorker, RoundGroup, first_rounds_s
from .store import RESULTS_FILE, Rounds, append, check_torn_lines, read_sweep
from .sweep_options import Measuring, SweepOptions
from .worker_process import COMMAND, Worker, WorkerError

LOCK_FILE = "sweep.lock"
LOGS = "logs"
RESERVE = 1e9
"""Bytes that stay free when another cell is loaded beside those that wait."""
GUESS = 1.5e9
"""Bytes of a cell before any of its group is known."""
MOST_SAID = 2000
"""Most characters of the reason why a cell has no figures."""


@dataclass(frozen=True)
class SweepReport:
    """What `run_sweep` did.

    Attributes:
        out: the folder.
        results: of every cell that was asked for, in the order of the plan.
        absent: backends and precisions without a cell here.
        measured: cells that this call brought to an end; 0 where all were known.
        seconds: it took.
    """

    out: Path
    results: list[Result]
    absent: list[Absent]
    measured: int
    seconds: float


def run_sweep(
    options: SweepOptions, out: str | os.PathLike[str], *, measuring: Measuring | None = None, command: str = "",
    worker: Sequence[str] = COMMAND, progress: Progress = silent,
) -> SweepReport:  # fmt: skip
    """Measures every cell of `options` that `out` has no result of, and writes each as it ends.

    Ended at any moment, the same call goes on where it stopped: cells with a result are not measured again, and of the
    others the rounds that were taken count.

    Args:
        options: what to measure.
        out: the folder for results and everything made for them.
        measuring: when a cell has been timed enough.
        command: what the user typed, for the report.
        worker: the command that starts a cell's process.
        progress: told of every step.

    Raises:
        ArtifactError: `out` cannot be written, is something else, or another sweep is writing it.
        CheckpointError: the weights cannot be loaded.
        ConfigError: nothing can be measured here.
        UnavailableError: nothing takes temporary files.
    """
    folder = Path(out)
    _check_out(folder)
    check_temporary_folder()  # of files that cells run
    with _locked(folder):
        sweep = _Sweep(options, folder, measuring or Measuring(), command, worker, progress)
        try:
            return sweep.run()
        finally:
            sweep.end()


class _Sweep:
    """The state of one call."""

    def __init__(
        self, options: SweepOptions, out: Path, how: Measuring, command: str, worker: Sequence[str], progress: Progress
    ) -> None:
        self.options, self.out, self.how, self.worker, self.progress = options, out, how, worker, progress
        self.began = time.monotonic()
        self.threads = options.threads or hardware.usable_threads()
        self.cpus = tuple((hardware.usable_cores() + hardware.usable_cpus())[: self.threads])
        self.weights = WeightSource(**options.weights.arguments())
        self.environment = find_environment(how, command)
        self.files = Files(out, self.weights, self._start, self._ask, self.cpus)
        self.rounds = Rounds(out, self.environment.id)
        self.results: dict[str, Result] = {}
        self.group: RoundGroup | None = None
        self.measured = self.total = 0

    def run(self) -> SweepReport:
        """See `run_sweep`."""
        self.progress("loading the weights", 0, None)
        try:
            weights = self.files.describe()
        except WorkerError as error:
            raise CheckpointError(error.reason) from None
        plan = make_plan(self.options, weights, self.environment.id)
        wanted = {cell.id for cell in plan.cells}
        known = self._known()
        self.results = {id_: result for id_, result in known.items() if id_ in wanted}
        pending = [[cell for cell in group if not self._is_final(known.get(cell.id))] for group in plan.groups]
        self.total = sum(len(group) for group in pending)
        if self.total:
            self._announce(plan.absent)
        for group, cells in zip(plan.groups, pending, strict=True):
            if cells:
                self._run_group(group, cells)
        ordered = [self.results[cell.id] for cell in plan.cells]
        return SweepReport(self.out, ordered, plan.absent, self.measured, time.monotonic() - self.began)

    def end(self) -> None:
        """Ends every process that is left."""
        self.files.end()
        for member in self.group.members if self.group else ():
            member.worker.end()

    # --- one group ------------------------------------------------------------------------------

    def _run_group(self, group: list[Cell], pending: list[Cell]) -> None:
        """Measures `pending` beside the cells of `group` that earlier rounds were compared with."""
        references = self.rounds.references(group) | {r.latency.reference for r in self._of(group) if r.latency}
        again = [cell for cell in group if cell.id in references and cell not in pending]
        queue = [*again, *pending]
        self.group = RoundGroup(self.how, self._ask_window, self._lost, self._left)
        files: dict[str, File] = {}
        tried: set[str] = set()
        while queue:
            queue = self._load(queue, files, tried)
            self.files.end()
            for member in self.group.members:
                member.done = member.done or member.cell in again
            self._time(files)
        for member in self.group.members:
            member.worker.end()
        self.group.members.clear()

    def _load(self, queue: list[Cell], files: dict[str, File], tried: set[str]) -> list[Cell]:
        """Loads cells until memory asks to measure first; returns those that wait."""
        assert self.group is not None
        while queue:
            busy = any(not member.done for member in self.group.members)
            if busy and not self._has_room():
                break
            cell, queue = queue[0], queue[1:]
            try:
                self.group.members.append(self._loaded(cell, files))
            except WorkerError as error:
                if error.status == "oom" and busy and cell.id not in tried:
                    tried.add(cell.id)  # once more, when the others are gone
                    return [*queue, cell]
                if cell.id not in self.results or self.results[cell.id].status not in MEASURED:
                    self._close(cell, error.status, error.reason, files.get(cell.id))
        return queue

    def _loaded(self, cell: Cell, files: dict[str, File]) -> CellWorker:
        """Makes what the cell runs, and a process that is ready to run it; raises WorkerError."""
        assert self.group is not None
        reserve = first_rounds_s([member for member in self.group.members if not member.done], self.how)
        self._say("making its file", cell)
        files[cell.id] = self.files.file(cell, reserve)
        reference = self.files.reference(cell, reserve)
        own = self.files.torch_figures(cell, files[cell.id], reserve)
        self._say("loading", cell)
        worker = self._start(cell.id)
        job = Load(
            cell=cell, weights=self.weights, file=files[cell.id].path, reference=reference, torch=own, cpus=self.cpus
        )
        try:
            info = self._ask(worker, job, reserve=reserve)
        except BaseException:
            worker.end()
            raise
        return CellWorker(cell, worker, info, self.rounds.of(cell))

    def _time(self, files: dict[str, File]) -> None:
        """Rounds until all that is loaded is done; each cell's line is written as it ends."""
        assert self.group is not None
        group, written = self.group, {member.cell.id for member in self.group.members if member.done}
        first = 1 + max((w.round for member in group.members for w in member.windows), default=-1)
        for number, taken in enumerate(group.rounds(first), start=first):
            self.rounds.append(taken)
            left = sum(not member.done for member in group.members)
            self._say(f"round {number + 1}, {left} still timed", group.members[0].cell if group.members else None)
            self._write([member for member in group.members if member.done and member.cell.id not in written], files)
            written |= {member.cell.id for member in group.members if member.done}
        self._write([member for member in group.members if member.cell.id not in written], files)
        # The references stay for the cells that were not loaded yet.
        kept = {w.reference for member in group.members for w in member.windows[-1:]}
        for member in [member for member in group.members if member.cell.id not in kept]:
            member.worker.end()
            group.members.remove(member)

    def _write(self, members: list[CellWorker], files: dict[str, File]) -> None:
        """The results of cells that get no more rounds."""
        for member in members:
            member.done = True
            if not member.windows:
                self._close(member.cell, "skipped", self._budget("before its first window"), files[member.cell.id])
                continue
            result = measured_result(member, files[member.cell.id], self.how, self.environment.id, now())
            self._note(result)

    # --- processes and the clock ---------------------------------------------------------------

    def _start(self, name: str) -> Worker:
        limit = self.options.memory_gb
        available = hardware.memory_available()
        memory = int(1e9 * limit) if limit is not None else None if available is None else int(0.9 * available)
        log = self.out / LOGS / f"{name.replace(' ', '_').replace('/', '_')}.log"
        return Worker(log, self.threads, memory, self.worker)

    def _ask(self, worker: Worker, job: Job[A], patience: float = 1, reserve: float = 0) -> A:
        """The answer to a job, within its timeout and the budget."""
        timeout, left = patience * self.options.timeout_s, self._left() - reserve
        if left <= 0:
            raise WorkerError("skipped", self._budget("before it was loaded"))
        try:
            return worker.ask(job, min(timeout, left))
        except WorkerError as error:
            if error.status == "timeout" and left < timeout:
                raise WorkerError("skipped", self._budget("while it was loaded")) from None
            raise

    def _ask_window(self, worker: Worker, job: TakeWindow) -> WindowTaken:
        """Some calls in a row; the budget ends rounds, not calls."""
        return worker.ask(job, self.options.timeout_s)

    def _left(self) -> float:
        """Seconds until the budget ends."""
        budget = self.options.budget_s
        return math.inf if budget is None else budget - (time.monotonic() - self.began)

    def _budget(self, when: str) -> str:
        seconds = self.options.budget_s or 0
        return f"the budget of {f'{seconds:.3g} s' if seconds < 120 else f'{seconds / 60:.3g} min'} ended {when}"

    def _has_room(self) -> bool:
        """Whether another cell as large as the largest so far fits beside those that wait."""
        assert self.group is not None
        available = hardware.memory_available()
        largest = max((1e6 * (member.info.peak_host_mb or 0) for member in self.group.members), default=0) or GUESS
        return available is None or available - largest > RESERVE

    # --- lines ---------------------------------------------------------------------------------

    def _known(self) -> dict[str, Result]:
        """Results of this environment that stand in the file."""
        if not (self.out / RESULTS_FILE).is_file():
            return {}
        return {r.cell.id: r for r in read_sweep(self.out).results if r.environment == self.environment.id}

    def _announce(self, absent: list[Absent]) -> None:
        """The environment and the absent backends, where the file does not have them."""
        file = self.out / RESULTS_FILE
        seen = read_sweep(file) if file.is_file() else None
        records: list[Any] = [] if seen and self.environment.id in seen.environments else [self.environment]
        append(file, *records, *(entry for entry in absent if seen is None or entry not in seen.absent))

    def _is_final(self, result: Result | None) -> bool:
        """Whether a cell needs nothing more: a budget that ended early leaves it unfinished."""
        if result is None or result.status == "skipped":
            return False
        if result.latency is not None and result.status == "unstable":
            return len(result.latency.windows) >= self.how.max_rounds
        return result.status == "ok" or not self.options.retry

    def _of(self, cells: list[Cell]) -> list[Result]:
        return [self.results[cell.id] for cell in cells if cell.id in self.results]

    def _lost(self, member: CellWorker, error: WorkerError) -> None:
        """A process died while it was timed; what it had measured before is no result."""
        if not member.done:
            rounds = len(member.windows)
            after = f" (after {counted(rounds, 'round')})" if rounds else ""
            self._close(member.cell, error.status, error.reason + after)

    def _close(self, cell: Cell, status: Status, reason: str, file: File | None = None) -> None:
        """A cell that ends without figures."""
        known = file or File()
        self._note(
            Result(
                cell=cell,
                status=status,
                reason=one_line(printable(reason))[:MOST_SAID],
                environment=self.environment.id,
                date=now(),
                build_s=known.seconds,
                artifact_mb=known.mb,
            )
        )

    def _note(self, result: Result) -> None:
        before = self.results.get(result.cell.id)
        self.results[result.cell.id] = result
        unfinished = result.status in ("skipped", "unstable")
        if before is not None and unfinished and (before.status, before.latency) == (result.status, result.latency):
            return  # nothing new
        if result.status != "skipped":
            self.measured += 1
        append(self.out / RESULTS_FILE, result)

    def _say(self, what: str, cell: Cell | None) -> None:
        about = f"{cell.resolution} {cell.series}: " if cell else ""
        self.progress(f"{about}{what}", self.measured, self.total)


def _check_out(out: Path) -> None:
    """Raises ArtifactError where `out` is something else than a sweep's folder, or cannot be written."""
    check_place(out / RESULTS_FILE, 0)
    if out.is_dir() and any(out.iterdir()) and not (out / LOCK_FILE).is_file():
        raise ArtifactError(f"{out} exists and holds no sweep of fvexport; choose another --out")
    check_torn_lines(out)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps a second sweep out of the folder while this process lives."""
    with contextlib.ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(
                locked(out / LOCK_FILE, f"another sweep is writing {out}; wait for it, or choose another --out")
            )
        except OSError as error:
            raise ArtifactError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
        yield
