"""A whole sweep: plans, makes files, loads cells into processes, times them in rounds, writes lines as cells end."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core import hardware
from ...core.errors import ArtifactError, CheckpointError
from ...core.output_path import check_place
from ...core.progress import Progress, silent
from .cell_files import File, Files
from .environment import find_environment, now
from .outcome import measured_result
from .plan import make_plan
from .result import MEASURED, Absent, Cell, Result, Status
from .round_group import Heat, Live, first_rounds_s
from .store import RESULTS_FILE, Rounds, append, read_sweep
from .sweep_options import Measuring, SweepOptions
from .worker_process import COMMAND, Worker, WorkerError

LOCK_FILE = "sweep.lock"
LOGS = "logs"
RESERVE = 1e9
"""Bytes that stay free when another cell is loaded beside those that wait."""
GUESS = 1.5e9
"""Bytes of a cell before any of its heat is known."""


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
    """
    folder = Path(out)
    _check_out(folder)
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
        self.threads = options.threads or len(hardware.usable_cores())
        self.cpus = (hardware.usable_cores() + hardware.usable_cpus())[: self.threads]
        self.environment = find_environment(how, command)
        self.files = Files(out, options.weights(), self._start, self._ask, self.cpus)
        self.rounds = Rounds(out, self.environment.id)
        self.results: dict[str, Result] = {}
        self.heat: Heat | None = None
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
        pending = [[cell for cell in heat if not self._is_final(known.get(cell.id))] for heat in plan.heats]
        self.total = sum(len(heat) for heat in pending)
        if self.total:
            self._announce(plan.absent)
        for heat, cells in zip(plan.heats, pending, strict=True):
            if cells:
                self._run_heat(heat, cells)
        ordered = [self.results[cell.id] for cell in plan.cells]
        return SweepReport(self.out, ordered, plan.absent, self.measured, time.monotonic() - self.began)

    def end(self) -> None:
        """Ends every process that is left."""
        self.files.end()
        for live in self.heat.lives if self.heat else ():
            live.worker.end()

    # --- one heat ------------------------------------------------------------------------------

    def _run_heat(self, heat: list[Cell], pending: list[Cell]) -> None:
        """Measures `pending` beside the cells of `heat` that earlier rounds were compared with."""
        references = self.rounds.references(heat) | {r.latency.reference for r in self._of(heat) if r.latency}
        again = [cell for cell in heat if cell.id in references and cell not in pending]
        queue = [*again, *pending]
        self.heat = Heat(self.how, self._ask_window, self._lost, self._left)
        files: dict[str, File] = {}
        tried: set[str] = set()
        while queue:
            queue = self._load(queue, files, tried)
            self.files.end()
            for live in self.heat.lives:
                live.done = live.done or live.cell in again
            self._time(files)
        for live in self.heat.lives:
            live.worker.end()
        self.heat.lives.clear()

    def _load(self, queue: list[Cell], files: dict[str, File], tried: set[str]) -> list[Cell]:
        """Loads cells until memory asks to measure first; returns those that wait."""
        assert self.heat is not None
        while queue:
            busy = any(not live.done for live in self.heat.lives)
            if busy and not self._has_room():
                break
            cell, queue = queue[0], queue[1:]
            try:
                self.heat.lives.append(self._loaded(cell, files))
            except WorkerError as error:
                if error.status == "oom" and busy and cell.id not in tried:
                    tried.add(cell.id)  # once more, when the others are gone
                    return [*queue, cell]
                if cell.id not in self.results or self.results[cell.id].status not in MEASURED:
                    self._close(cell, error.status, error.reason, files.get(cell.id))
        return queue

    def _loaded(self, cell: Cell, files: dict[str, File]) -> Live:
        """Makes what the cell runs, and a process that is ready to run it; raises WorkerError."""
        assert self.heat is not None
        reserve = first_rounds_s([live for live in self.heat.lives if not live.done], self.how)
        self._say("making its file", cell)
        files[cell.id] = self.files.file(cell, reserve)
        reference = self.files.reference(cell, reserve)
        own = self.files.torch_figures(cell, files[cell.id], reserve)
        self._say("loading", cell)
        worker = self._start(cell.id)
        job = {
            "do": "load", "cell": asdict(cell), "weights": self.options.weights(), "file": files[cell.id].path,
            "reference": reference, "own": own, "cpus": self.cpus,
        }  # fmt: skip
        try:
            info = self._ask(worker, job, reserve=reserve)
        except BaseException:
            worker.end()
            raise
        return Live(cell, worker, info, self.rounds.of(cell))

    def _time(self, files: dict[str, File]) -> None:
        """Rounds until all that is loaded is done; each cell's line is written as it ends."""
        assert self.heat is not None
        heat, written = self.heat, {live.cell.id for live in self.heat.lives if live.done}
        first = 1 + max((w.round for live in heat.lives for w in live.windows), default=-1)
        for number, taken in enumerate(heat.rounds(first), start=first):
            self.rounds.append(taken)
            left = sum(not live.done for live in heat.lives)
            self._say(f"round {number + 1}, {left} still timed", heat.lives[0].cell if heat.lives else None)
            self._write([live for live in heat.lives if live.done and live.cell.id not in written], files)
            written |= {live.cell.id for live in heat.lives if live.done}
        self._write([live for live in heat.lives if live.cell.id not in written], files)
        # The references stay for the cells that were not loaded yet.
        kept = {w.reference for live in heat.lives for w in live.windows[-1:]}
        for live in [live for live in heat.lives if live.cell.id not in kept]:
            live.worker.end()
            heat.lives.remove(live)

    def _write(self, lives: list[Live], files: dict[str, File]) -> None:
        """The results of cells that get no more rounds."""
        for live in lives:
            live.done = True
            if not live.windows:
                self._close(live.cell, "skipped", self._budget("before its first window"), files[live.cell.id])
                continue
            result = measured_result(live, files[live.cell.id], self.how, self.environment.id, now())
            self._note(result)

    # --- processes and the clock ---------------------------------------------------------------

    def _start(self, name: str) -> Worker:
        limit = self.options.memory_gb
        available = hardware.memory_available()
        memory = int(1e9 * limit) if limit is not None else None if available is None else int(0.9 * available)
        log = self.out / LOGS / f"{name.replace(' ', '_').replace('/', '_')}.log"
        return Worker(log, self.threads, memory, self.worker)

    def _ask(self, worker: Worker, job: dict[str, Any], patience: float = 1, reserve: float = 0) -> dict[str, Any]:
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

    def _ask_window(self, worker: Worker, job: dict[str, Any]) -> dict[str, Any]:
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
        assert self.heat is not None
        available = hardware.memory_available()
        largest = max((1e6 * (live.info["peak_host_mb"] or 0) for live in self.heat.lives), default=0) or GUESS
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

    def _lost(self, live: Live, error: WorkerError) -> None:
        """A process died while it was timed; what it had measured before is no result."""
        if not live.done:
            rounds = len(live.windows)
            after = f" (after {rounds} round{'s' if rounds > 1 else ''})" if rounds else ""
            self._close(live.cell, error.status, error.reason + after)

    def _close(self, cell: Cell, status: Status, reason: str, file: File | None = None) -> None:
        """A cell that ends without figures."""
        known = file or File(None, None, None)
        self._note(
            Result(cell, status, reason, self.environment.id, now(), build_s=known.seconds, artifact_mb=known.mb)
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


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps a second sweep out of the folder while this process lives, where the system can."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / LOCK_FILE).open("ab")
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    with stream:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"another sweep is writing {out}; wait for it, or choose another --out") from None
        yield
