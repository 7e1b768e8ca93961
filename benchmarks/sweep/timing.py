"""Calls of one loaded cell: by the host's clock, or by events on the GPU around a graph's replay."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import first_line
from .loading import Loaded

WARM_MS = 1000.0
"""A call shorter than this is made once, uncounted, before each window: the caches are others' by then."""


class Timer(Protocol):
    """Makes one call at a time.

    Attributes:
        name: as `Latency.timer` has it.
        note: how it came to that, empty where there is nothing to tell.
        parts: of every call so far, where it has parts (see `prefilling`).
    """

    name: str
    note: str
    parts: list[tuple[float, float, float]]

    def once(self) -> float:
        """Milliseconds of one call."""
        ...


class WallTimer:
    """The host's clock around a call that ends when its result is there."""

    name, note = "wall", ""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.parts: list[tuple[float, float, float]] = []

    def once(self) -> float:
        start = time.perf_counter()
        self.call()
        return 1e3 * (time.perf_counter() - start)


class CudaTimer:
    """Events around a call on the GPU: input and result stay there. Replays a graph where one can be recorded."""

    def __init__(self, call: Callable[[Tensor], Tensor], x: Tensor, *, captures: bool) -> None:
        self.name, self.note = "cuda-events", ""
        self.parts: list[tuple[float, float, float]] = []
        self.launch: Callable[[], Any] = lambda: call(x)
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        if captures:
            try:
                self.launch = self._recorded(call, x)
                self.name = "cuda-graph"
            except Exception as error:  # whatever in the call may not be recorded; timed without a graph then
                self.note = f"no CUDA graph: {first_line(error)}"

    def _recorded(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # allocates and chooses algorithms, which must not be recorded
                call(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.result = call(x)
        torch.cuda.synchronize()
        return graph.replay

    def once(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.stream):
            start.record()
            self.launch()
            end.record()
        end.synchronize()
        return start.elapsed_time(end)


def make_timer(loaded: Loaded, pixel_values: np.ndarray) -> Timer:
    """What times `loaded` on (B, 3, H, W) float32."""
    if loaded.device == "cuda" and loaded.run_tensor is not None:
        return CudaTimer(loaded.run_tensor, torch.from_numpy(pixel_values).cuda(), captures=loaded.captures)
    return WallTimer(lambda: loaded.run(pixel_values))


def take_window(timer: Timer, seconds: float, max_calls: int, expected_ms: float) -> tuple[list[float], int]:
    """Calls for so many seconds, at least one: milliseconds of each that counts, and the number of all."""
    warm = expected_ms < WARM_MS
    if warm:
        timer.once()
    times: list[float] = []
    while not times or (len(times) < max_calls and sum(times) < 1e3 * seconds):
        times.append(timer.once())
    return times, len(times) + warm


class Energy:
    """The GPU's own energy counter, where NVML can be asked; of the whole GPU, whoever uses it."""

    def __init__(self, device: str) -> None:
        self._handle = None
        if device == "cuda":
            with contextlib.suppress(Exception):  # an optional package, over a driver's library that may lack it
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
                uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                self._joules()  # raises where this GPU has no counter

    def _joules(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3

    def read(self) -> float | None:
        """Joules since the driver was loaded; None where they are not counted."""
        return None if self._handle is None else self._joules()

    def process_mb(self, pid: int) -> float | None:
        """GPU memory of a process; None where the driver does not tell."""
        if self._handle is not None:
            with contextlib.suppress(Exception):
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                    if process.pid == pid and process.usedGpuMemory:
                        return process.usedGpuMemory / 1e6
        return None
