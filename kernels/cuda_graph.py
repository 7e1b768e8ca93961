"""A model's launches recorded once and replayed: what Python and the driver take for each launch is gone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, UnavailableError
from ..encoder.convolution_trials import cudnn_trials
from ..encoder.exact import exact_float32
from .capture import captured

WARMUP = 3
"""Calls before the capture: kernels are compiled and libraries choose algorithms in them."""


@runtime_checkable
class ReadsPixels(Protocol):
    """A model that says in which layout it reads its input (B, 3, H, W) fastest."""

    def input_layout(self, device: torch.device) -> torch.memory_format:
        """`torch.contiguous_format` or `torch.channels_last`, on a device."""
        ...


class GraphMemory:
    """What the graphs of a model share: memory for intermediate tensors, a stream for captures, and whose turn it is.

    A graph writes the same addresses at every replay. A later capture into the same pool may use those addresses again,
    for what it computes and for its output. That is safe if two replays never overlap and nothing in the pool is
    read after another graph has run. Both hold: a graph's input and the model's weights are outside the pool, a replay
    writes all else that it reads, its output is copied on the same stream before its turn ends, and `wait` makes each
    call wait for the end of the one before, on whatever stream and thread either is. The libraries' workspaces, which
    belong to the capturing stream, are shared in the same way.

    Source: PyTorch's notes "CUDA semantics", on sharing memory across captures.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle()
        # On this GPU: torch.cuda.graph's default one is on the GPU that was current when it was first used.
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.lock = threading.Lock()
        self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Makes the current stream wait for the call before, which may have been on another one."""
        torch.cuda.current_stream(self.device).wait_event(self._ended)

    def end(self) -> None:
        """Marks the end of this call on the current stream."""
        self._ended.record(torch.cuda.current_stream(self.device))


class CudaGraph:
    """A captured model: call it as the model, on inputs of the captured shape and dtype.

    May be called from any stream and thread, but runs one call at a time. Weights changed in place count; replaced ones
    do not. Float32 is computed without TF32.

    Attributes:
        shape, dtype: of the input.
        output: what the last replay wrote; the next one, also of a graph that shares its memory, may overwrite it.
    """

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device,
        memory: GraphMemory | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.dtype = shape, dtype
        self._model = model  # the graph reads its weights where they are
        self._memory = memory = memory or GraphMemory(device)
        # As the model's first layer reads it: then the copy into the graph is the conversion too.
        layouts = (part.input_layout(device) for part in model.modules() if isinstance(part, ReadsPixels))
        layout = next(layouts, torch.channels_last) if len(shape) == 4 else torch.contiguous_format
        stream = memory.stream
        with (
            memory.lock, torch.inference_mode(), exact_float32(), cudnn_trials(device), torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),  # a capture that fails leaves its own one current
        ):  # fmt: skip
            memory.wait()
            self._input = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=layout)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARMUP):
                    model(self._input)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph, self.output = captured(lambda: model(self._input), stream=stream, pool=memory.pool)
            memory.end()

    def __call__(self, x: Tensor) -> Tensor:
        """An input on any device -> what the model makes of it, the caller's to keep.

        Raises ConfigError for an input of another shape or dtype than the captured one.
        """
        self.check(x)
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Like a call; a floating `x` of another dtype is converted as it is copied."""
        with torch.inference_mode(), torch.cuda.device(self._memory.device):
            # Not `non_blocking`: from pinned memory that returns before the host's tensor was read, and the caller may
            # write to it at once. Types and layouts are converted on the GPU, in the one copy into the graph's input.
            x = x.to(self._memory.device)
            with self._memory.lock:
                self._memory.wait()
                self._input.record_stream(torch.cuda.current_stream(self._memory.device))
                self._input.copy_(x)
                self.replay()
                result = self.output.clone()
                self._memory.end()
            return result

    def replay(self) -> None:
        """Runs on the input of the last call, on the current stream, and writes `output`: what a call costs the GPU."""
        self._graph.replay()

    def check(self, x: Tensor) -> None:
        """Raises ConfigError for an input of another shape or dtype than the captured one."""
        if tuple(x.shape) != self.shape or x.dtype != self.dtype:
            raise ConfigError(
                f"this CUDA graph takes {self.shape} in {self.dtype}; found {tuple(x.shape)} in {x.dtype}: "
                "capture another with cuda_graph(model, shape)"
            )


def cuda_graph(
    model: nn.Module, shape: tuple[int, ...], *, dtype: torch.dtype | None = None, memory: GraphMemory | None = None
) -> CudaGraph:
    """Captures a model that is on a GPU, for inputs (B, 3, H, W) of one shape.

    Args:
        model: in eval mode, for instance what `accelerate` makes, from one tensor to one tensor.
        shape: of the input.
        dtype: of the input; by default uint8 for a model that takes levels, else that of the model's first weight.
        memory: to share with other graphs; its own by default.

    Raises:
        UnavailableError: PyTorch finds no NVIDIA GPU.
        ConfigError: the model is elsewhere, or cannot take inputs of that shape.
    """
    weight = _weight_on_gpu(model)
    if dtype is None:
        dtype = torch.uint8 if getattr(model, "uint8_input", False) else weight.dtype
    return CudaGraph(model, tuple(shape), dtype, weight.device, memory)


def _weight_on_gpu(model: nn.Module) -> Tensor:
    """The model's first weight; raises what `cuda_graph` says where it is not on a GPU."""
    if not torch.cuda.is_available():
        raise UnavailableError("a CUDA graph needs an NVIDIA GPU, and PyTorch finds none; call the model itself")
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cuda":
        where = "no weights" if weight is None else f"weights on {weight.device}"
        raise ConfigError(f"a CUDA graph is captured of a model on the GPU; found {where}: call model.cuda() first")
    return weight


class CudaGraphs:
    """A model that is captured anew for each shape and dtype of input it meets.

    Args:
        model: as `cuda_graph` takes it.
        keep: graphs to keep; the one unused for longest goes first. Their intermediate tensors share one pool.
        dtype: that floating inputs are converted to; None leaves them as they are.
    """

    def __init__(self, model: nn.Module, *, keep: int = 8, dtype: torch.dtype | None = None) -> None:
        self.model, self.keep, self.dtype = model, keep, dtype
        self._graphs: OrderedDict[tuple[tuple[int, ...], torch.dtype], CudaGraph] = OrderedDict()
        self._memory: GraphMemory | None = None
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """An input (B, 3, H, W) on any device -> what the model makes of it, the caller's to keep."""
        return self.graph_for(x).run(x)

    def graph_for(self, x: Tensor) -> CudaGraph:
        """The graph that a call on `x` replays, captured first where there is none."""
        dtype = self.dtype if self.dtype is not None and x.is_floating_point() else x.dtype
        key = (tuple(x.shape), dtype)
        with self._lock:
            graph = self._graphs.pop(key, None)
            if graph is None:
                if self._memory is None:
                    self._memory = GraphMemory(_weight_on_gpu(self.model).device)
                graph = cuda_graph(self.model, x.shape, dtype=dtype, memory=self._memory)
                # Only now, since a pool ends with the last graph that uses it.
                while len(self._graphs) >= self.keep:
                    self._graphs.popitem(last=False)
            self._graphs[key] = graph
        return graph
