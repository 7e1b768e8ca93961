"""Measures the time that work takes on a GPU, without the time that Python takes to launch it.

`CudaClock` queues a delay kernel first, so that the host has launched everything before the GPU begins, and reads
events around the work. `Replay` captures many copies of a call in one CUDA graph: kernels of a few microseconds are
otherwise hidden by the cost of a launch. `paired` times candidates side by side. Without a GPU `HostClock` takes the
clock's place, so that every line here also runs on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from ..core.errors import FvexportError, UnavailableError, first_line
from .capture import captured

Run = Callable[[], object]

FIRST_LEAD = 1 << 19
"""Clock cycles of the first delay: 0.3 ms at 1.7 GHz, longer than the host takes to launch a few kernels or a graph."""
LONGEST_LEAD = 1 << 28
"""Clock cycles of the longest delay (0.16 s at 1.7 GHz). A call that needs more waits for the GPU itself."""
SAMPLE_MS = 20.0
"""Device time of one sample in `paired`: long against an event's resolution (0.5 us) and the gap between graphs."""
GRAPH_MS = 1.5
"""Device time of one replay where `Replay` chooses the number of copies: long against a graph's launch (about 5 us)."""
MAX_COPIES = 512
WARMUP = 3
"""Runs before a capture: kernels are compiled and libraries choose algorithms in them."""
MIN_ROUNDS = 3


class CaptureError(FvexportError):
    """A call cannot be recorded in a CUDA graph. The process can go on using the GPU."""


class Clock(Protocol):
    """Measures calls, and repeats them without the cost of launching them.

    Attributes:
        name: of the method, for results: `cuda-events` or `host`.
        ahead: whether the host had launched the last measured work before the GPU began it. If not, the time
            includes some of the host's.
    """

    name: str
    ahead: bool

    def measure(self, run: Run, runs: int = 1) -> float:
        """Milliseconds of `runs` calls of `run` back to back, all together."""
        ...

    def capture(self, runs: Sequence[Run], copies: int) -> tuple[Run, object]:
        """A call that does `copies` runs, taken in turn from `runs`, and the result of the last one.

        Raises CaptureError for calls that cannot be recorded.
        """
        ...


class HostClock:
    """The host's clock: the time of a call that ends when its result is there."""

    name = "host"

    def __init__(self) -> None:
        self.ahead = True

    def measure(self, run: Run, runs: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return 1e3 * (time.perf_counter() - start)

    def capture(self, runs: Sequence[Run], copies: int) -> tuple[Run, object]:
        with torch.inference_mode():
            result = runs[(copies - 1) % len(runs)]()

        def repeat() -> None:
            with torch.inference_mode():
                for index in range(copies):
                    runs[index % len(runs)]()

        return repeat, result


class CudaClock:
    """Events on the current stream of the current GPU.

    The delay in front of the work doubles until the host is done before the GPU begins. At most about 1000 launches
    fit into a stream's queue: the host cannot run ahead of a call that makes more, or that waits for the GPU.

    Args:
        cuda: `torch.cuda`, or what stands in for it in a test.
    """

    name = "cuda-events"

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self.ahead = True
        self._cuda = cuda
        self._leads: WeakKeyDictionary[Run, dict[int, int]] = WeakKeyDictionary()
        """Delay in cycles by call and number of runs, 0 if no delay is long enough."""

    def measure(self, run: Run, runs: int = 1) -> float:
        leads = self._leads.setdefault(run, {})
        lead = leads.get(runs, FIRST_LEAD)
        while True:
            milliseconds = self._measure(run, runs, lead or FIRST_LEAD)
            if self.ahead or not lead:
                break
            lead = 2 * lead if lead < LONGEST_LEAD else 0
        leads[runs] = lead
        return milliseconds

    def _measure(self, run: Run, runs: int, lead: int) -> float:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda._sleep(lead)
        start.record()
        for _ in range(runs):
            run()
        end.record()
        self.ahead = not start.query()
        end.synchronize()
        return float(start.elapsed_time(end))

    def capture(self, runs: Sequence[Run], copies: int) -> tuple[Run, object]:
        before = self._cuda.current_stream()
        stream = self._cuda.Stream()
        stream.wait_stream(before)
        with torch.inference_mode():
            with self._cuda.stream(stream):
                for run in runs:
                    for _ in range(WARMUP):
                        run()
                    self._check(run)
            self._cuda.synchronize()

            def every() -> object:
                for index in range(copies):
                    result = runs[index % len(runs)]()
                return result

            try:
                graph, result = captured(every, stream=stream, errors="global", cuda=self._cuda)
            except Exception as error:
                reason = first_line(error)
                self._recover(before, reason)
                raise CaptureError(f"cannot record a CUDA graph: {reason}") from error
        self._cuda.synchronize()

        def replay() -> None:
            graph.replay()  # by name at each call, so that `_watched` sees it

        return replay, result

    def _check(self, run: Run) -> None:
        """Raises CaptureError for a call that a capture would fail on, before anything is captured."""
        with self._watched() as replays:
            try:
                run()
            except RuntimeError as error:
                check_alive(self._cuda)
                raise CaptureError(f"cannot record a CUDA graph: {first_line(error)}") from error
        if replays:
            raise CaptureError("cannot record a CUDA graph: the call replays one of its own")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[object]]:
        """Makes PyTorch raise where it would wait for the GPU; the list gets every graph that is replayed."""
        graphs, replays = self._cuda.CUDAGraph, list[object]()
        own, mode = graphs.replay, self._cuda.get_sync_debug_mode()

        def replay(graph: Any) -> None:
            replays.append(graph)
            own(graph)

        graphs.replay = replay
        self._cuda.set_sync_debug_mode("error")
        try:
            yield replays
        finally:
            self._cuda.set_sync_debug_mode(mode)
            graphs.replay = own

    def _recover(self, stream: Any, reason: str) -> None:
        """Makes the GPU usable after a capture that failed.

        `torch.cuda.graph` then leaves its stream current, and PyTorch's random generator in the state of a capture,
        which the next successful capture ends.

        Raises UnavailableError if that does not help.
        """
        self._cuda.set_stream(stream)
        try:
            self._cuda.synchronize()
            value = torch.zeros(1, device=self._device())
            captured(lambda: value.add_(1), errors="global", cuda=self._cuda)
            torch.rand(1, device=self._device())
            self._cuda.synchronize()
        except Exception as error:
            raise UnavailableError(
                f"a CUDA graph could not be recorded ({reason}), and this process can no longer use the GPU "
                f"({first_line(error)}); start another"
            ) from error

    def _device(self) -> torch.device:
        return torch.device("cuda", self._cuda.current_device())


def check_alive(cuda: Any = torch.cuda) -> None:
    """Raises UnavailableError after an error that no later call in this process recovers from."""
    try:
        cuda.synchronize()
    except RuntimeError as error:
        raise UnavailableError(
            f"this process can no longer use the GPU ({first_line(error)}); start another"
        ) from error


def default_clock() -> Clock:
    """The GPU's clock where PyTorch finds a GPU, else the host's."""
    return CudaClock() if torch.cuda.is_available() else HostClock()


def device_times(
    run: Run, *, samples: int = 20, inner: int = 1, budget_s: float | None = None, clock: Clock | None = None
) -> list[float]:
    """Milliseconds of device time per run, one value per sample.

    Args:
        run: launches work on the current stream.
        samples: measurements; the first, uncounted run comes on top.
        inner: runs per sample, for calls that are short against an event's resolution (0.5 us).
        budget_s: no sample starts later than so many seconds after the first, which is always taken.
        clock: `default_clock()` if not given.
    """
    clock = clock or default_clock()
    clock.measure(run)
    start = time.perf_counter()
    times = [clock.measure(run, inner) / inner]
    while len(times) < samples and (budget_s is None or time.perf_counter() - start < budget_s):
        times.append(clock.measure(run, inner) / inner)
    return times


class Replay:
    """Copies of a call in one CUDA graph.

    Args:
        runs: one call, or several that are taken in turn: the same kernel on several sets of weights, so that they
            come from memory and not from the cache, as in a model.
        copies: runs in the graph; 0 for as many as take about GRAPH_MS. At least one of each.
        clock: `default_clock()` if not given.

    Attributes:
        copies: runs in the graph.
        result: what the last run returned; each replay computes it again in the same place.

    Raises CaptureError for calls that cannot be recorded.
    """

    def __init__(self, runs: Run | Sequence[Run], *, copies: int = 0, clock: Clock | None = None) -> None:
        self.clock = clock or default_clock()
        several = [runs] if callable(runs) else list(runs)
        if not copies:
            with torch.inference_mode():
                one = min(device_times(several[0], samples=3, clock=self.clock))
            copies = min(MAX_COPIES, math.ceil(GRAPH_MS / max(one, 1e-6)))
        self.copies = max(len(several), copies)
        self._runs = several  # a graph reads weights where they are, so what owns them has to stay
        self.replay, self.result = self.clock.capture(several, self.copies)

    def __call__(self) -> None:
        """Launches all copies."""
        self.replay()

    def times(self, samples: int = 20, *, inner: int = 1, budget_s: float | None = None) -> list[float]:
        """Milliseconds of device time per run, see `device_times`; `inner` replays per sample."""
        times = device_times(self.replay, samples=samples, inner=inner, budget_s=budget_s, clock=self.clock)
        return [ms / self.copies for ms in times]


# --- side by side ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """One candidate over all rounds, in milliseconds per run; ratios are baseline over candidate, per round."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float
    speedup_p10: float
    speedup_p90: float
    rounds: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def paired(
    candidates: Mapping[str, Run], *, baseline: str | None = None, rounds: int = 15, budget_s: float | None = None,
    sample_ms: float = SAMPLE_MS, warmup: int = 1, clock: Clock | None = None,
) -> list[Timing]:  # fmt: skip
    """Times every candidate once per round, and summarizes the rounds; ratios are taken within a round.

    Args:
        candidates, rounds, budget_s, sample_ms, warmup, clock: as of `rounds_of`.
        baseline: the candidate that ratios are over; the first by default.
    """
    times = rounds_of(
        candidates, rounds=rounds, budget_s=budget_s, sample_ms=sample_ms, warmup=warmup, clock=clock
    )  # fmt: skip
    return [timing(name, taken, times[baseline or next(iter(times))]) for name, taken in times.items()]


def rounds_of(
    candidates: Mapping[str, Run], *, rounds: int = 15, budget_s: float | None = None, sample_ms: float = SAMPLE_MS,
    warmup: int = 1, clock: Clock | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Milliseconds per run of each candidate, one value per round.

    A round runs every candidate once, in an order that turns with the rounds, so that drift affects all alike: on a
    shared machine the ratio of two runs a second apart means more than absolute times.

    Args:
        candidates: name -> call or `Replay`, of which each run counts.
        rounds: at most so many.
        budget_s: no round starts later than so many seconds after the first, except the first MIN_ROUNDS.
        sample_ms: time of one sample: a short candidate runs several times in it. 0 for once.
        warmup: rounds that do not count, of one run each.
        clock: `default_clock()` if not given.
    """
    clock = clock or default_clock()
    names, start = list(candidates), time.perf_counter()
    repeats = dict.fromkeys(names, 1)
    for _ in range(warmup):
        for name in names:
            clock.measure(candidates[name])
    if sample_ms:
        repeats = {name: _repeats(candidates[name], sample_ms, clock) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        if budget_s is not None and index >= MIN_ROUNDS and time.perf_counter() - start > budget_s:
            break
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            run, count = candidates[name], repeats[name]
            times[name].append(clock.measure(run, count) / (count * getattr(run, "copies", 1)))
    return times


def _repeats(run: Run, sample_ms: float, clock: Clock) -> int:
    """Runs that take `sample_ms`; one for a call whose launches the host cannot keep ahead of."""
    count = max(1, round(sample_ms / max(clock.measure(run), 1e-3)))
    if count > 1:
        clock.measure(run, count)
    return count if clock.ahead else 1


def timing(name: str, taken: Sequence[float], base: Sequence[float]) -> Timing:
    """Medians and the first and last decile of milliseconds, and of the ratios `base` / `taken` round by round."""
    ratios = [b / max(t, 1e-9) for b, t in zip(base, taken, strict=True)]
    low, high = p10_p90(taken)
    ratio_low, ratio_high = p10_p90(ratios)
    return Timing(
        name, statistics.median(taken), low, high, statistics.median(ratios), ratio_low, ratio_high, len(taken)
    )


def p10_p90(values: Sequence[float]) -> tuple[float, float]:
    """The first and the last decile; of a single value that value."""
    if len(values) < 2:
        return values[0], values[0]
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return deciles[0], deciles[-1]
