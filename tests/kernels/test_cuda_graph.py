"""CUDA graphs: replayed in any order out of one pool, from any stream; on a CPU with operators that are run again."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fvexport.core.errors import ConfigError, UnavailableError
from fvexport.kernels.cuda_graph import CudaGraphs, cuda_graph


class Recorder(TorchDispatchMode):
    """Runs operators, and keeps them to be run again in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Emulation:
    """What `cuda_graph` calls of torch.cuda, on the CPU. `log` holds what was done, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.captures: list[dict[str, Any]] = []
        self.pools = 0
        emulation = self

        class Graph:
            calls: list[Any]

            def replay(self) -> None:
                emulation.log.append("replay")
                for func, args, kwargs, result in self.calls:
                    result.copy_(func(*args, **kwargs))

        class Stream:
            def __init__(self, device: torch.device) -> None:
                self.device = device

            def wait_stream(self, other: Any) -> None: ...

            def wait_event(self, event: Any) -> None:
                emulation.log.append("wait")

        class Event:
            def record(self, stream: Any) -> None:
                emulation.log.append("end")

        self.graph_class, self.stream_class, self.event_class = Graph, Stream, Event
        self.current = Stream(torch.device("cpu"))

    @contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        self.captures.append(options | {"tf32": torch.backends.cudnn.allow_tf32})
        with self.stream(options["stream"]), Recorder() as recorder:
            yield
        graph.calls = recorder.calls
        self.log.append("captured")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def handle(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    made = Emulation()
    replacements = {
        "CUDAGraph": made.graph_class, "Stream": made.stream_class, "Event": made.event_class, "graph": made.graph,
        "stream": made.stream, "device": made.device, "graph_pool_handle": made.handle,
        "current_stream": lambda device: made.current,
    }  # fmt: skip
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    module = importlib.import_module("fvexport.kernels.cuda_graph")  # the package has the function of that name
    monkeypatch.setattr(module, "_weight_on_gpu", lambda model: next(model.parameters()))
    return made


@pytest.fixture
def model() -> nn.Module:
    """(B, 3, H, W), floats or levels -> (B, 4, H - 2, W - 2)."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.to(self.conv.weight.dtype) * 2).relu() + 1

    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


SHAPES = ((1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 12, 6))


def test_shapes_in_any_order_share_a_pool(emulation: Emulation, model: nn.Module) -> None:
    graphs = CudaGraphs(model)
    inputs = [torch.rand(SHAPES[index]) for index in (0, 1, 2, 1, 0, 2, 0)]
    results = [graphs(x) for x in inputs]
    for x, y in zip(inputs, results, strict=True):  # each result is the caller's to keep
        torch.testing.assert_close(y, model(x))
    assert len(emulation.captures) == len(SHAPES)
    assert {capture["pool"] for capture in emulation.captures} == {(0, 1)}
    assert len({id(capture["stream"]) for capture in emulation.captures}) == 1
    assert CudaGraphs(model)(inputs[0]).shape and emulation.captures[-1]["pool"] == (0, 2)


def test_captured_on_a_stream_of_its_own_without_tf32(emulation: Emulation, model: nn.Module) -> None:
    caller = emulation.current
    cuda_graph(model, SHAPES[0])
    (capture,) = emulation.captures
    assert capture["stream"] is not caller and capture["stream"].device == torch.device("cpu")
    assert capture["capture_error_mode"] == "thread_local" and capture["tf32"] is False
    assert emulation.current is caller and torch.backends.cudnn.allow_tf32


def test_one_call_at_a_time(emulation: Emulation, model: nn.Module) -> None:
    """On any stream a call first waits for the one before it, of whichever graph, and its end is marked last."""
    graphs = CudaGraphs(model)
    for shape in (*SHAPES, *SHAPES):
        graphs(torch.rand(shape))
    captured, replayed = ["wait", "captured", "end"], ["wait", "replay", "end"]
    assert emulation.log == (captured + replayed) * 3 + replayed * 3


def test_the_oldest_graph_goes_after_the_next_is_captured(emulation: Emulation, model: nn.Module) -> None:
    """The last graph of a pool takes the pool along."""
    graphs = CudaGraphs(model, keep=1)
    weakref.finalize(graphs.graph_for(torch.rand(SHAPES[0])), emulation.log.append, "gone")
    graphs(torch.rand(SHAPES[1]))
    log = [entry for entry in emulation.log if entry in ("captured", "gone")]
    assert log == ["captured", "captured", "gone"]
    graphs(torch.rand(SHAPES[1]))
    assert len(emulation.captures) == 2


def test_dtypes_are_converted_in_the_copy(emulation: Emulation, model: nn.Module) -> None:
    graphs = CudaGraphs(model, dtype=torch.float32)
    x = torch.rand(SHAPES[0], dtype=torch.float64)
    torch.testing.assert_close(graphs(x), model(x.float()))
    torch.testing.assert_close(graphs(x.float()), model(x.float()))
    assert len(emulation.captures) == 1
    levels = torch.randint(0, 256, SHAPES[0], dtype=torch.uint8)
    torch.testing.assert_close(graphs(levels), model(levels), rtol=1e-4, atol=1e-3)
    assert len(emulation.captures) == 2
    CudaGraphs(model)(x.float())
    with pytest.raises(ConfigError, match=r"this CUDA graph takes .*found \(1, 3, 8, 8\) in torch.float64"):
        cuda_graph(model, SHAPES[0])(x)


def test_the_hosts_memory_was_read_when_a_call_returns(emulation: Emulation, model: nn.Module) -> None:
    """A copy from pinned memory that does not block would read what the caller writes there next."""
    graph = cuda_graph(model, SHAPES[0])
    with Recorder() as recorder:
        graph(torch.rand(SHAPES[0]))
    copies = [call for call in recorder.calls if "copy" in str(call[0])]
    assert copies
    for _, args, kwargs, _ in copies:
        assert not kwargs.get("non_blocking") and True not in [a for a in args if isinstance(a, bool)]


def test_a_capture_that_fails_leaves_the_stream_and_the_lock(emulation: Emulation, model: nn.Module) -> None:
    graphs, caller = CudaGraphs(model), emulation.current
    for _ in range(2):
        with pytest.raises(RuntimeError, match="expected input"):
            graphs(torch.rand(1, 5, 8, 8))
    assert emulation.current is caller
    assert graphs(torch.rand(SHAPES[0])).shape == (1, 4, 6, 6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_graph_without_a_gpu(model: nn.Module) -> None:
    for call in (lambda: cuda_graph(model, SHAPES[0]), lambda: CudaGraphs(model)(torch.rand(SHAPES[0]))):
        with pytest.raises(UnavailableError, match="a CUDA graph needs an NVIDIA GPU"):
            call()


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(model: nn.Module) -> nn.Module:
    return model.cuda()


@pytest.mark.gpu
def test_pinned_memory_may_be_written_to_at_once(on_gpu: nn.Module) -> None:
    shape = (8, 3, 512, 512)
    graphs = CudaGraphs(on_gpu)
    x = torch.rand(shape).pin_memory()
    wanted = graphs(x.cuda())
    found = graphs(x)
    x.zero_()
    assert torch.equal(found, wanted)


@pytest.mark.gpu
def test_two_streams_take_turns(on_gpu: nn.Module) -> None:
    """Captured from a stream that is not the default one, and called from two of them without waiting in between."""
    graphs = CudaGraphs(on_gpu)
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [torch.rand((2, 3, 256, 256 + 64 * (i % 3)), device="cuda") for i in range(12)]
    torch.cuda.synchronize()
    results = []
    for i, x in enumerate(inputs):
        with torch.cuda.stream(streams[i % 2]):
            results.append(graphs(x))
    torch.cuda.synchronize()
    for x, y in zip(inputs, results, strict=True):
        torch.testing.assert_close(y, on_gpu(x), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_graphs_share_their_memory(on_gpu: nn.Module) -> None:
    shapes = [(4, 3, side, side) for side in (1024, 896, 768, 640, 512)]

    def reserved(make: Callable[[], list[Any]]) -> int:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        kept = make()
        torch.cuda.empty_cache()
        assert kept
        return torch.cuda.memory_reserved() - before

    graphs = CudaGraphs(on_gpu)
    shared = reserved(lambda: [graphs(torch.rand(shape, device="cuda")).shape for shape in shapes])
    apart = reserved(lambda: [cuda_graph(on_gpu, shape) for shape in shapes])
    assert shared < apart


@pytest.mark.gpu
def test_on_the_second_gpu(model: nn.Module) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    with torch.cuda.device(0):
        graphs = CudaGraphs(model.to("cuda:1"))
        x = torch.rand(SHAPES[0])
        found = [graphs(x), graphs(x.to("cuda:0")), graphs(x.to("cuda:1"))]
        assert torch.cuda.current_device() == 0
    for y in found:
        assert y.device == torch.device("cuda", 1)
        torch.testing.assert_close(y, model(x.to("cuda:1")), rtol=1e-3, atol=1e-3)
