"""The GPU's timer against a simulated GPU, whose host and device each have a clock of their own; and on a real one."""

from __future__ import annotations

import gc
import statistics
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fvexport.core.errors import UnavailableError
from fvexport.kernels import timing
from fvexport.kernels.ceilings import ceilings
from fvexport.kernels.timing import CaptureError, CudaClock, HostClock, Replay, check_alive, device_times, paired

CYCLES_PER_MS = 1_700_000


class FakeCuda:
    """One stream: the host launches at its own pace, the device works off what it has. Stands in for `torch.cuda`."""

    def __init__(self) -> None:
        self.host = self.device = 0.0
        """Milliseconds: now, and when everything launched so far is done."""
        self.graph: list[float] | None = None
        self.mode = 0
        self.broken = False
        self.current = "the first stream"
        cuda = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self) -> None:
                self.at = max(cuda.host, cuda.device)

            def query(self) -> bool:
                return self.at <= cuda.host

            def synchronize(self) -> None:
                cuda.host = max(cuda.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        class Graph:
            work: list[float]

            def replay(self) -> None:
                cuda.launch(sum(self.work), host_ms=0.005)

        class Stream:
            def wait_stream(self, other: object) -> None:
                assert other == "the first stream"

        self.Event, self.CUDAGraph, self.Stream = Event, Graph, Stream

    def _sleep(self, cycles: int) -> None:
        self.launch(cycles / CYCLES_PER_MS, host_ms=0.002)

    def launch(self, device_ms: float, host_ms: float) -> None:
        if self.graph is not None:
            self.graph.append(device_ms)
            return
        self.host += host_ms
        self.device = max(self.device, self.host) + device_ms

    def wait(self) -> None:
        """A call that needs its result on the host."""
        if self.mode or self.graph is not None:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.host = max(self.host, self.device)

    def synchronize(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.host = max(self.host, self.device)

    def current_stream(self) -> Any:
        return self.current

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    def current_device(self) -> int:
        return 0

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.mode = {"error": 2}.get(mode, mode)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        yield

    @contextmanager
    def recording(self, graph: Any, stream: Any = None, **options: Any) -> Iterator[None]:
        before, self.current, self.graph = self.current, stream, []
        try:
            yield
            graph.work = self.graph
            self.current = before  # a capture that fails leaves its stream current, as in PyTorch
        finally:
            self.graph = None


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


class Seam:
    """`FakeCuda` under the names of `torch.cuda`: `graph` is a context there."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.graph = cuda.recording

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cuda, name)


@pytest.fixture
def clock(cuda: FakeCuda) -> CudaClock:
    return CudaClock(Seam(cuda))


def a_call(cuda: FakeCuda, device_ms: float, host_ms: float, launches: int = 1) -> Callable[[], int]:
    def run() -> int:
        for _ in range(launches):
            cuda.launch(device_ms / launches, host_ms / launches)
        return 7

    return run


@pytest.mark.parametrize(("device_ms", "host_ms"), [(0.01, 0.05), (1.5, 12.0), (20.0, 0.1)])
def test_the_hosts_time_is_not_in_it(cuda: FakeCuda, clock: CudaClock, device_ms: float, host_ms: float) -> None:
    """Events around a call alone would measure the longer of the two."""
    run = a_call(cuda, device_ms, host_ms, launches=10)
    assert clock.measure(run) == pytest.approx(device_ms) and clock.ahead
    before = cuda.host
    assert clock.measure(run, 3) == pytest.approx(3 * device_ms) and clock.ahead
    assert clock.measure(run) == pytest.approx(device_ms)
    assert cuda.host - before < 20 * (3 * device_ms + 3 * host_ms) + 5  # the delay is no longer than it has to be


def test_a_call_that_waits_is_told(cuda: FakeCuda, clock: CudaClock) -> None:
    def run() -> None:
        cuda.launch(1.0, 0.1)
        cuda.wait()

    assert clock.measure(run) >= 1.0 and not clock.ahead
    before = cuda.host
    clock.measure(run)
    assert not clock.ahead and cuda.host - before < 3  # no second search for a delay that is long enough
    assert clock.measure(a_call(cuda, 1.0, 0.1)) == pytest.approx(1.0) and clock.ahead


def test_device_times(cuda: FakeCuda, clock: CudaClock) -> None:
    run = a_call(cuda, 0.5, 1.0)
    assert device_times(run, samples=4, inner=10, clock=clock) == pytest.approx([0.5] * 4)
    assert len(device_times(run, samples=100, budget_s=0, clock=clock)) == 1


def test_replay_takes_its_runs_in_turn(cuda: FakeCuda, clock: CudaClock) -> None:
    runs = [a_call(cuda, ms, 1.0) for ms in (0.1, 0.2, 0.3)]
    replay = Replay(runs, copies=7, clock=clock)
    assert replay.copies == 7 and replay.result == 7 and cuda.current == "the first stream"
    assert replay.times(3) == pytest.approx([(3 * 0.1 + 2 * 0.2 + 2 * 0.3) / 7] * 3)
    assert Replay(runs, copies=1, clock=clock).copies == 3


@pytest.mark.parametrize(("device_ms", "copies"), [(0.0031, 484), (0.0001, 512), (0.4, 4), (9.0, 1)])
def test_replay_is_long_enough_to_be_timed(cuda: FakeCuda, clock: CudaClock, device_ms: float, copies: int) -> None:
    replay = Replay(a_call(cuda, device_ms, 0.01), clock=clock)
    assert replay.copies == copies and replay.times(2) == pytest.approx([device_ms] * 2)


def test_replay_keeps_what_owns_its_weights(cuda: FakeCuda, clock: CudaClock) -> None:
    """A graph reads weights where they are: a model that only the recorded call refers to has to stay."""
    model = torch.nn.Linear(1, 1)
    alive, launch = weakref.ref(model), a_call(cuda, 1.0, 0.1)
    replay = Replay(lambda model=model: launch(), copies=1, clock=clock)  # type: ignore[misc]
    del model
    gc.collect()
    assert alive() is not None
    del replay
    gc.collect()
    assert alive() is None


def test_what_cannot_be_recorded_is_refused_before(cuda: FakeCuda, clock: CudaClock) -> None:
    """Nothing was captured: the process is as it was."""
    inner = Replay(a_call(cuda, 1.0, 0.1), copies=1, clock=clock)
    with pytest.raises(CaptureError, match="the call replays one of its own"):
        Replay(inner, copies=1, clock=clock)

    def waits() -> None:
        if cuda.mode:
            cuda.wait()

    with pytest.raises(CaptureError, match="synchronizing"):
        Replay(waits, copies=1, clock=clock)
    assert cuda.mode == 0 and cuda.current == "the first stream"
    assert inner.times(1) == pytest.approx([1.0])


def test_a_recording_that_fails(cuda: FakeCuda, clock: CudaClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is the caller's again, and a capture that succeeds follows it."""
    monkeypatch.setattr(CudaClock, "_device", lambda self: torch.device("cpu"))

    def run() -> None:
        if cuda.graph is not None:
            raise RuntimeError("out of memory")
        cuda.launch(1.0, 0.1)

    with pytest.raises(CaptureError, match="cannot record a CUDA graph: out of memory"):
        Replay(run, copies=1, clock=clock)
    assert cuda.current == "the first stream" and device_times(run, samples=1, clock=clock) == [pytest.approx(1.0)]

    def breaks() -> None:
        if cuda.graph is not None:
            cuda.broken = True
            raise RuntimeError("illegal address")

    cuda.broken = False
    with pytest.raises(UnavailableError, match="can no longer use the GPU"):
        clock.capture([breaks], 1)


def test_a_lost_gpu(cuda: FakeCuda) -> None:
    check_alive(cuda)
    cuda.broken = True
    with pytest.raises(UnavailableError, match="illegal memory access"):
        check_alive(cuda)


def test_paired(cuda: FakeCuda, clock: CudaClock) -> None:
    order: list[str] = []

    def named(name: str, run: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            run()

        return call

    candidates = {"slow": named("slow", a_call(cuda, 8.0, 0.1)), "fast": Replay(a_call(cuda, 0.5, 9.0), clock=clock)}
    slow, fast = paired(candidates, rounds=4, sample_ms=20, clock=clock)
    assert slow.median_ms == pytest.approx(8.0) and fast.median_ms == pytest.approx(0.5)
    assert (slow.speedup, fast.speedup, slow.rounds) == (pytest.approx(1), pytest.approx(16), 4)
    assert fast.to_dict()["p90_ms"] == pytest.approx(0.5)

    order.clear()
    both = {name: named(name, a_call(cuda, 1.0, 0.1)) for name in "ab"}
    paired(both, rounds=3, sample_ms=0, warmup=0, clock=clock)
    assert "".join(order) == "abbaab"
    assert paired(both, rounds=50, budget_s=0, sample_ms=0, clock=clock)[0].rounds == timing.MIN_ROUNDS
    assert [t.speedup for t in paired(both, baseline="b", rounds=2, sample_ms=0, clock=clock)] == pytest.approx([1, 1])


def test_a_call_that_the_host_cannot_keep_ahead_of_runs_once(cuda: FakeCuda, clock: CudaClock) -> None:
    def waits() -> None:
        cuda.launch(0.1, 0.01)
        cuda.wait()

    assert timing._repeats(waits, 20.0, clock) == 1
    assert timing._repeats(a_call(cuda, 0.1, 0.01), 20.0, clock) == 200


def test_the_host_stands_in_for_a_gpu() -> None:
    """What a dry run does: the same calls, by the host's clock."""
    clock, calls = HostClock(), list[int]()
    replay = Replay([lambda: calls.append(1), lambda: calls.append(2)], copies=5, clock=clock)
    calls.clear()
    replay()
    assert calls == [1, 2, 1, 2, 1] and clock.ahead and clock.name == "host"
    assert min(replay.times(2)) > 0
    found = ceilings(copy_bytes=1 << 20, side=64, dtype=torch.float32, device="cpu", samples=2, clock=clock)
    assert found.copy_bytes_s > 1e6 and found.matmul_flops > 1e6 and found.clock == "host"
    assert found.floor_ms(found.matmul_flops, 1.0) == pytest.approx(1e3)
    assert found.floor_ms(1.0, 2 * found.copy_bytes_s) == pytest.approx(2e3)
    assert isinstance(timing.default_clock(), CudaClock if torch.cuda.is_available() else HostClock)


# --- on a GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(4096, 4096, device="cuda", dtype=torch.half)


@pytest.mark.gpu
def test_agrees_with_pytorchs_own_timer(matrix: torch.Tensor) -> None:
    from torch.utils.benchmark import Timer

    theirs = Timer("x @ x", globals={"x": matrix}).blocked_autorange(min_run_time=0.2).median * 1e3
    ours = statistics.median(device_times(lambda: matrix @ matrix, samples=30))
    graph = statistics.median(Replay(lambda: matrix @ matrix).times(30))
    assert 0.7 < ours / theirs < 1.3 and 0.7 < graph / theirs < 1.3


@pytest.mark.gpu
def test_a_graph_computes_what_the_call_does(matrix: torch.Tensor) -> None:
    others = [torch.randn_like(matrix) for _ in range(3)]
    replay = Replay([lambda other=other: matrix @ other for other in others], copies=8)
    replay()
    torch.cuda.synchronize()
    assert isinstance(replay.result, torch.Tensor) and torch.equal(replay.result, matrix @ others[7 % 3])


@pytest.mark.gpu
def test_launches_are_not_in_the_time() -> None:
    """Twenty small kernels take the host ten times as long as the GPU."""
    x = torch.randn(256, device="cuda")

    def run() -> torch.Tensor:
        y = x
        for _ in range(20):
            y = y + 1
        return y

    clock = CudaClock()
    run()
    called = statistics.median(device_times(run, samples=20, clock=clock))
    assert clock.ahead and called < 3 * statistics.median(Replay(run).times(20))


@pytest.mark.gpu
def test_a_failed_recording_leaves_the_gpu_usable() -> None:
    x = torch.ones(8, device="cuda")
    with pytest.raises(CaptureError):
        Replay(lambda: x * float(x.sum().item()))

    def synchronizes() -> None:
        torch.cuda.synchronize()

    with pytest.raises(CaptureError):
        Replay(synchronizes)
    assert torch.rand(2, device="cuda").numel() == 2
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert Replay(lambda: x + 1).times(2)


@pytest.mark.gpu
def test_ceilings_of_a_gpu() -> None:
    found = ceilings(copy_bytes=1 << 28, side=2048, samples=5)
    assert 5e10 < found.copy_bytes_s < 2e13 and 1e12 < found.matmul_flops < 5e15
