"""A model's launches recorded once and replayed: what Python and the driver take for each launch is gone."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..errors import ConfigError, UnavailableError

WARMUP = 3
"""Calls before the capture: kernels are compiled and libraries choose algorithms in them."""


class CudaGraph:
    """A captured model: call it as the model, on inputs of the captured shape and dtype.

    Calls are to come from one stream at a time. Weights changed in place count; replaced ones do not.

    Attributes:
        shape, dtype: of the input.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype = shape, dtype
        self._model = model  # the graph reads its weights where they are
        # The stem takes channels-last: then the copy into the graph is the conversion too.
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        with torch.inference_mode(), torch.cuda.device(device):
            self._input = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=layout)
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARMUP):
                    model(self._input)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = model(self._input)

    def __call__(self, x: Tensor) -> Tensor:
        """An input on any device -> what the model makes of it, the caller's to keep.

        Raises ConfigError for an input of another shape or dtype than the captured one.
        """
        self.check(x)
        with torch.inference_mode():
            self._input.copy_(x, non_blocking=True)
            self._graph.replay()
            return self._output.clone()

    def check(self, x: Tensor) -> None:
        """Raises ConfigError for an input of another shape or dtype than the captured one."""
        if tuple(x.shape) != self.shape or x.dtype != self.dtype:
            raise ConfigError(
                f"this CUDA graph takes {self.shape} in {self.dtype}; found {tuple(x.shape)} in {x.dtype}: "
                "capture another with cuda_graph(model, shape)"
            )


def cuda_graph(model: nn.Module, shape: tuple[int, ...], *, dtype: torch.dtype | None = None) -> CudaGraph:
    """Captures a model that stands on a GPU, for inputs (B, 3, H, W) of one shape.

    Args:
        model: in eval mode, for instance what `accelerate` makes, from one tensor to one tensor.
        shape: of the input.
        dtype: of the input; by default uint8 for a model that takes levels, else that of the model's first weight.

    Raises:
        UnavailableError: PyTorch finds no NVIDIA GPU.
        ConfigError: the model is elsewhere, or cannot take inputs of that shape.
    """
    if not torch.cuda.is_available():
        raise UnavailableError("a CUDA graph needs an NVIDIA GPU, and PyTorch finds none; call the model itself")
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cuda":
        where = "no weights" if weight is None else f"weights on {weight.device}"
        raise ConfigError(f"a CUDA graph is captured of a model on the GPU; found {where}: call model.cuda() first")
    if dtype is None:
        dtype = torch.uint8 if getattr(model, "uint8_input", False) else weight.dtype
    return CudaGraph(model, tuple(shape), dtype, weight.device)


class CudaGraphs:
    """A model that is captured anew for each shape and dtype of input it meets.

    Args:
        model: as `cuda_graph` takes it.
        keep: graphs to keep, each with memory of its own; the one unused for longest goes first.
    """

    def __init__(self, model: nn.Module, *, keep: int = 8) -> None:
        self.model, self.keep = model, keep
        self._graphs: OrderedDict[tuple[tuple[int, ...], torch.dtype], CudaGraph] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        """An input (B, 3, H, W) on any device -> what the model makes of it, the caller's to keep."""
        key = (tuple(x.shape), x.dtype)
        graph = self._graphs.pop(key, None)
        if graph is None:
            while len(self._graphs) >= self.keep:
                self._graphs.popitem(last=False)
            graph = cuda_graph(self.model, x.shape, dtype=x.dtype)
        self._graphs[key] = graph
        return graph(x)
