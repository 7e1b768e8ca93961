"""Searches block sizes on the GPU at hand, for the kernels that the policy uses at given sizes.

Each search starts from the committed table's choice and changes one size at a time, to half or double, as long as that
is faster. The candidates of a step are compiled in parallel first; those that spill registers are not timed. Searches
run in the order of the time that their calls are predicted to take in the encoder, so that a time limit cuts off the
least important ones. What is found goes to the user's cache (`table.cache_file`), where `table.config_for` looks
first. Only `fvexport tune` calls this: no model searches while it runs.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.cache import make_cache
from ..core.errors import UnavailableError, first_line
from ..core.output_path import os_errors, put_file, scratch_beside
from ..core.progress import Progress, silent
from ..core.records import plain
from ..encoder.config import FastViTHDConfig
from . import language
from .dispatch import DEFAULTS, SWITCH, modes_for, switched_on
from .launches import Call, encoder_calls
from .share import predicted_us, used
from .table import (
    BOUNDS,
    Config,
    arch_of,
    cache_file,
    default_config,
    dtype_class,
    environment_of,
    key_of,
    read_tuned,
    tuned,
)
from .timing import Clock, Replay, check_alive, default_clock
from .warm import Built, Compilers

WORTH = 0.98
"""A change has to bring a time under this share of the best one so far: less is the clock's noise."""


AGREE = 1e-2
"""Relative L2 distance between results of two configurations: half precision's rounding, nothing more."""

COMPILE_S = 20.0
"""Seconds that one candidate may compile for."""
SETS = 6
"""Copies of a call's tensors that are taken in turn where weights are most of what it reads."""
SAMPLES = 7
WARM_SHARE = 0.4
"""Share of a time limit that compiling the first candidates of all searches may take."""


@dataclass(frozen=True)
class Search:
    """What a search would begin with, or what it found.

    Attributes:
        key: what it is kept under (`table.key_of`).
        start: the committed table's choice.
        neighbours: configurations that the first step tries.
        predicted_us: time of its calls in one call of the encoder, as predicted for an H100: only their order counts.
        config: the fastest one found, None before it ran.
        start_ms, ms: medians of the start and of the fastest one, None before it ran.
        tried: configurations that ran.
        failed: configurations that did not compile or fit, spilled, or computed something else.
        finished: no neighbour of `config` is faster; False where the time was over.
        error: why there is no result, empty otherwise.
    """

    key: str
    start: Config
    neighbours: int
    predicted_us: float = 0.0
    config: Config | None = None
    start_ms: float | None = None
    ms: float | None = None
    tried: int = 0
    failed: int = 0
    finished: bool = False
    error: str = ""


@dataclass(frozen=True)
class TuneReport:
    """Searches, and where their results are kept (None for a plan).

    Attributes:
        left: searches that there was no time for.
        stopped: why it ended before all searches ran, empty if they did.
    """

    arch: str
    searches: tuple[Search, ...]
    file: Path | None = None
    left: int = 0
    stopped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"file": None if self.file is None else str(self.file)}


@dataclass(frozen=True)
class Scope:
    """What is searched for.

    Attributes:
        config: the architecture.
        resolutions: (height, width) of images.
        batches: images per call.
        dtype: searches in float16 hold for bfloat16.
        names: kernels and modes in use.
    """

    config: FastViTHDConfig
    resolutions: Sequence[tuple[int, int]]
    batches: Sequence[int]
    dtype: torch.dtype = torch.float16
    names: Collection[str] = DEFAULTS


def plan(
    config: FastViTHDConfig, resolutions: Sequence[tuple[int, int]], batches: Sequence[int],
    dtype: torch.dtype = torch.float16, *, names: Collection[str] | None = None, arch: str | None = None,
) -> TuneReport:  # fmt: skip
    """What `tune` would search, on any machine: one search for each key, in order.

    Args:
        config: the architecture.
        resolutions: (height, width) of images.
        batches: images per call.
        dtype: searches in float16 hold for bfloat16.
        names: kernels and modes in use, by default those that `FVEXPORT_KERNELS` selects. Kernels that the policy
            does not take for a size are not searched for it.
        arch: whose table to start from (`sm_90`); by default that of the GPU at hand, sm_90 where there is none.
    """
    if arch is None:
        arch = arch_of(torch.device("cuda")) if torch.cuda.is_available() else "sm_90"
    scope = Scope(config, resolutions, batches, dtype, _in_use(names))
    return TuneReport(arch, tuple(task.planned for task in _tasks(scope, arch)))


def tune(
    config: FastViTHDConfig, resolutions: Sequence[tuple[int, int]], batches: Sequence[int],
    dtype: torch.dtype = torch.float16, *, names: Collection[str] | None = None, jobs: int | None = None,
    budget_s: float = float("inf"), progress: Progress = silent,
) -> TuneReport:  # fmt: skip
    """Searches on the GPU, and writes the cache after each search: a run that is killed keeps what it found.

    Args: as `plan` has them, and
        jobs: processes that compile; as many as there are processors if not given.
        budget_s: nothing begins after so many seconds. The search that is under way keeps its best so far.

    A GPU that can no longer be used ends it; the report's `stopped` says so.

    Raises:
        UnavailableError: no GPU that the kernels run on, or no Triton.
        ArtifactError: the cache cannot be written.
    """
    check_gpu()
    device = torch.device("cuda", torch.cuda.current_device())
    bench = Bench(arch_of(device), "cuda", default_clock(), time.monotonic() + budget_s)
    out, environment = cache_file(device), environment_of(device)
    with os_errors(out):
        make_cache(out)
    try:
        with Compilers(jobs, COMPILE_S) as compilers, torch.inference_mode():
            return bench.run(
                Scope(config, resolutions, batches, dtype, _in_use(names)), compilers, out, environment, progress
            )
    finally:
        tuned.cache_clear()


def _in_use(names: Collection[str] | None) -> Collection[str]:
    return switched_on(os.environ.get(SWITCH, "")) if names is None else names


# --- the calls to search for ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One search to be made, and how to make its call again: the `index`-th of the encoder's at one size."""

    planned: Search
    call: Call
    size: tuple[int, int, int]
    index: int

    def calls(self, scope: Scope, arch: str, device: str, count: int) -> list[Call]:
        """The call on a device, `count` times with tensors of its own."""
        height, width, batch = self.size
        modes = modes_for(arch, scope.names)
        made = (
            encoder_calls(scope.config, height, width, batch, scope.dtype, device=device, modes=modes)
            for _ in range(count)
        )
        return [next(itertools.islice(calls, self.index, None)) for calls in made]


def _tasks(scope: Scope, arch: str) -> list[Task]:
    """Searches of the calls that the policy makes, each key once at its largest size; the longest calls first."""
    found: dict[str, Task] = {}
    sizes = sorted(((h * w * b, h, w, b) for h, w in scope.resolutions for b in scope.batches), reverse=True)
    modes = modes_for(arch, scope.names)
    for _, height, width, batch in sizes:
        calls = encoder_calls(scope.config, height, width, batch, scope.dtype, modes=modes)
        for index, call in enumerate(calls):
            key = key_of(call.op, scope.dtype, call.sizes)
            if key in found or not used(call, scope.config, scope.dtype, arch, scope.names):
                continue
            start = default_config(call.op, arch, dtype_class(scope.dtype), call.sizes)
            predicted = predicted_us(call, scope.config, scope.dtype)
            planned = Search(key, start, len(list(neighbours(start))), predicted)
            found[key] = Task(planned, call, (height, width, batch), index)
    return sorted(found.values(), key=lambda task: -task.planned.predicted_us)


# --- searching ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where candidates are compiled and timed.

    Attributes:
        arch: whose table searches start from.
        device: of the tensors.
        clock: times candidates.
        until: nothing begins later (of `time.monotonic`).
    """

    arch: str
    device: str
    clock: Clock
    until: float = float("inf")

    def run(
        self, scope: Scope, compilers: Compilers, out: Path, environment: Mapping[str, Any], progress: Progress = silent
    ) -> TuneReport:
        """All searches of `scope`, as long as there is time; each result is added to `out` at once."""
        tasks, done, stopped = _tasks(scope, self.arch), list[Search](), ""
        first = [(t.call, c) for t in tasks for c in (t.planned.start, *neighbours(t.planned.start))]
        share = time.monotonic() + WARM_SHARE * (self.until - time.monotonic())
        compilers.warm(first, self.arch, resources=True, until=share, progress=progress)
        for task in tasks:
            if time.monotonic() >= self.until:
                stopped = "the time is over"
                break
            progress(f"tune {task.planned.key}", len(done), len(tasks))
            try:
                done.append(self.search(task, scope, compilers))
            except UnavailableError as error:
                stopped = str(error)
                break
            if done[-1].config is not None:
                write(out, dict(environment), {task.planned.key: done[-1]})
        return TuneReport(self.arch, tuple(done), out, len(tasks) - len(done), stopped)

    def search(self, task: Task, scope: Scope, compilers: Compilers) -> Search:
        """One search. Raises UnavailableError where the GPU can no longer be used."""
        calls = task.calls(scope, self.arch, self.device, SETS if weighs_most(task.call) else 1)
        wanted: list[Tensor] = []

        def measure(candidate: Config) -> float:
            try:
                found = _result(calls[0].launch(candidate))
                if not wanted:
                    wanted.append(found)
                if not (found - wanted[0]).norm() <= AGREE * wanted[0].norm():
                    raise ValueError("another result")
                replay = Replay([lambda call=call: call.launch(candidate) for call in calls], clock=self.clock)  # type: ignore[misc]
                return statistics.median(replay.times(SAMPLES))
            except Exception:
                if self.device == "cuda":
                    check_alive()
                raise

        def refused(candidates: Sequence[Config]) -> list[str]:
            built = compilers.warm(
                [(task.call, c) for c in candidates], self.arch, resources=True, until=self.until
            )  # fmt: skip
            return [why_refused(launches) for launches in built]

        planned = task.planned
        try:
            return search(
                planned.key,
                planned.start,
                measure,
                refused=refused,
                until=self.until,
                predicted_us=planned.predicted_us,
            )
        except UnavailableError:
            raise
        except Exception as error:  # the committed sizes themselves do not run here
            return Search(planned.key, planned.start, planned.neighbours, planned.predicted_us, error=first_line(error))


def _result(found: object) -> Tensor:
    """What a launcher returned, in float32; of several tensors the first."""
    tensor = found[0] if isinstance(found, tuple) else found
    assert isinstance(tensor, Tensor)
    return tensor.float()


def weighs_most(call: Call) -> bool:
    """Whether a product's weights are more than its input and result: then they come from memory in a model."""
    sizes = call.sizes
    if "hidden" in sizes:
        return 2 * sizes["c"] * sizes["hidden"] > 3 * sizes["m"] * sizes["c"]
    return {"m", "n", "k"} <= sizes.keys() and sizes["n"] * sizes["k"] > sizes["m"] * (sizes["n"] + sizes["k"])


def why_refused(launches: Sequence[Built]) -> str:
    """Why a candidate is not worth timing, empty where it is."""
    for launch in launches:
        if launch.error:
            return launch.error
        if launch.spills:
            return f"{launch.kernel} spills {launch.spills} bytes"
    return ""


def search(
    key: str, start: Config, measure: Callable[[Config], float], *,
    refused: Callable[[Sequence[Config]], list[str]] = lambda candidates: [""] * len(candidates),
    until: float = float("inf"), predicted_us: float = 0.0,
) -> Search:  # fmt: skip
    """Goes from `start` to the fastest neighbour until none is faster, or the time is over.

    Args:
        key: of the result.
        start: has to run.
        measure: milliseconds of a configuration; raises for one that does not compile, fit or agree.
        refused: for each candidate of a step why it is not to be measured, or "".
        until: no candidate is measured later (of `time.monotonic`).
        predicted_us: of the result.

    Raises what `measure` raises for the start, and any UnavailableError: the GPU is lost.
    """
    times: dict[str, float | None] = {}

    def timed(config: Config) -> float | None:
        try:
            return measure(config)
        except UnavailableError:
            raise
        except Exception:  # whatever the compiler or the driver says: this one is not used
            return None

    start_ms = measure(start)
    times[repr(start.arguments)] = start_ms
    best, best_ms, finished = start, start_ms, False
    while not finished and time.monotonic() < until:
        found: list[tuple[float, Config]] = []
        fresh = [c for c in neighbours(best) if repr(c.arguments) not in times]
        complete = True
        for config, reason in zip(fresh, refused(fresh), strict=True):
            complete = complete and time.monotonic() < until
            if complete:
                ms = None if reason else timed(config)
                times[repr(config.arguments)] = ms
                found += [] if ms is None else [(ms, config)]
        ms, nearest = min(found, key=lambda pair: pair[0], default=(best_ms, best))
        if ms < WORTH * best_ms:
            best, best_ms = nearest, ms
        else:
            finished = complete
    failed = sum(ms is None for ms in times.values())
    return Search(
        key, start, len(list(neighbours(start))), predicted_us, best, start_ms, best_ms, len(times) - failed, failed,
        finished,
    )  # fmt: skip


def neighbours(config: Config) -> Iterator[Config]:
    """The configurations that differ in one size: half or double of it, one stage less or more."""
    arguments = config.arguments
    for name, value in arguments.items():
        low, high = BOUNDS.get(name, (value, value))
        for other in (value - 1, value + 1) if name in ("num_stages", "PERSISTENT") else (value // 2, value * 2):
            if low <= other <= high:
                changed = arguments | {name: other}
                warps, stages = changed.pop("num_warps"), changed.pop("num_stages")
                yield Config(changed, warps, stages)


def write(out: Path, environment: dict[str, Any], found: dict[str, Search]) -> None:
    """Adds searches to a cache file, which is the old one or the new one at any moment.

    Raises ArtifactError where it cannot be written.
    """
    configs = {key: plain(row) for key, row in read_tuned(out).items()}
    for key, result in found.items():
        assert result.config is not None
        configs[key] = result.config.to_dict() | {"ms": result.ms, "default_ms": result.start_ms}
    with os_errors(out), scratch_beside(out) as scratch:
        scratch.write_text(json.dumps({"environment": environment, "configs": configs}, indent=1), encoding="utf-8")
        scratch.chmod(0o600)
        put_file(scratch, out)


def check_gpu() -> None:
    """Raises UnavailableError where kernels cannot be timed."""
    if not language.INSTALLED or language.INTERPRETED:
        found = "TRITON_INTERPRET is set" if language.INTERPRETED else "Triton is not installed"
        raise UnavailableError(f'cannot time kernels: {found}; `pip install "fvexport[triton]"` on Linux')
    if not torch.cuda.is_available():
        raise UnavailableError("cannot time kernels: PyTorch finds no NVIDIA GPU; --dry-run lists what would be tried")
    try:
        arch_of(torch.device("cuda"))
    except RuntimeError as error:
        raise UnavailableError(f"cannot time kernels: {first_line(error)}") from None
