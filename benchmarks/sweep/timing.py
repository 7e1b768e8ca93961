"""Calls of one loaded cell: by the host's clock, or by the GPU's (`kernels/timing.py`), around a graph's replay."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...kernels.timing import CaptureError, Clock, Replay, default_clock
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


class DeviceTimer:
    """Device time of a call: input and result stay on the GPU, and the host launches ahead of it.

    Times the replay of a CUDA graph of the call where that can be recorded. A call that replays a graph of its own
    cannot, nor one that waits for the GPU; the timer looks for both before it records anything.

    Args:
        call: from tensor to tensor.
        x: its input, on the GPU.
        captures: whether to record it.
        clock: `default_clock()` if not given.

    Raises UnavailableError where a failed recording leaves a GPU that this process can no longer use.
    """

    def __init__(
        self, call: Callable[[Tensor], Tensor], x: Tensor, *, captures: bool, clock: Clock | None = None
    ) -> None:
        self.clock = clock or default_clock()
        self.name, self.note = "cuda-events", ""
        self.parts: list[tuple[float, float, float]] = []
        self.launch: Callable[[], object] = lambda: call(x)
        if captures:
            try:
                replay = Replay(self.launch, copies=1, clock=self.clock)
                self.launch, self.result = replay.replay, replay.result
                self.name = "cuda-graph"
            except CaptureError as error:
                self.note = f"no CUDA graph: {error}"
        self.clock.measure(self.launch)
        if not self.clock.ahead:
            self.note = "; ".join(filter(None, (self.note, "the call waits for the GPU: the host's time is in it")))

    def once(self) -> float:
        return self.clock.measure(self.launch)


def make_timer(loaded: Loaded, pixel_values: np.ndarray) -> Timer:
    """What times `loaded` on (B, 3, H, W) float32."""
    if loaded.device == "cuda" and loaded.run_tensor is not None:
        x = torch.from_numpy(pixel_values).cuda()
        return DeviceTimer(loaded.launch or loaded.run_tensor, x, captures=loaded.captures)
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
