"""Predicted time of the rivals' kernels: cuBLAS, cuDNN, SDPA, and PyTorch's and Inductor's passes over memory.

Their code cannot be counted without a GPU. Products follow from tiles that cuBLAS has and the share of the tensor cores
that each reaches in published measurements. cuDNN's channels-last depthwise is assumed to take DEPTHWISE times ours:
of all assumptions the weakest, and the first that a measurement should replace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .cost import LAUNCH, Cost, Traffic, stream_rate
from .device import Device

HALF = 2
"""Bytes of a value."""
TILES: tuple[tuple[int, int, float], ...] = (
    (128, 256, 0.92),
    (256, 128, 0.92),
    (128, 128, 0.81),
    (128, 64, 0.58),
    (64, 128, 0.58),
    (64, 64, 0.44),
    (64, 32, 0.25),
)
"""cuBLAS's tiles (rows, columns) and the share of the measured ceiling at which a full GPU of them runs."""
SPLITS = (1, 2, 4, 8)
"""Parts that it cuts K into."""
MIN_SPLIT_K = 256
"""Shortest part of K."""
TILE_TIME = 0.6e-6
"""Seconds of a product's pipeline filling and its epilogue."""
SPLIT_TIME = 1.2e-6
"""Seconds of adding up the parts of K."""
STEP = 0.18e-6
"""Seconds that 64 of K take at least."""
TILE_FLIGHT = 3 * 64 * HALF
"""Bytes per column of a tile that are under way: three stages of 64."""
MEMORY_SHARE = 0.92
"""Share of the memory's rate that weights reach."""
PASS_RATE = 2.8
"""Warp instructions per clock and multiprocessor of an elementwise pass."""
PASS, ERF = 6, 38
"""Instructions per value of an elementwise pass, without and with erf."""
STEM_SHARE = 0.115
"""Share of the ceiling at which cuDNN convolves three channels (padded to eight, 27 taps)."""
DEPTHWISE = 1.5
"""cuDNN's channels-last depthwise over our baseline kernel's time: an estimate between 0.7 and 2."""
SDPA = 1.05
"""PyTorch's flash attention over ours: head_dim 32 is below what it is tuned for."""


def product(device: Device, m: int, n: int, k: int) -> Cost:
    """A product and bias by cuBLAS: the fastest of its tiles and splits."""
    options = [
        _tiled(device, m, n, k, tile, parts)
        for tile in TILES
        for parts in SPLITS
        if parts == 1 or k / parts >= MIN_SPLIT_K
    ]
    return min(options, key=lambda cost: cost.seconds)


def _tiled(device: Device, m: int, n: int, k: int, tile: tuple[int, int, float], parts: int) -> Cost:
    rows, columns, share = tile
    programs = math.ceil(m / rows) * math.ceil(n / columns) * parts
    rounds = math.ceil(programs / device.processors)
    traffic = Traffic(HALF * m * (k + n), HALF * n * k / MEMORY_SHARE, in_flight=columns * TILE_FLIGHT)
    extra = TILE_TIME + (SPLIT_TIME if parts > 1 else 0.0)
    limits = {
        "tensor": rounds * 2 * rows * columns * (k / parts) / (share * device.tensor_each) + extra,
        "latency": k / parts / 64 * STEP,
        "memory": traffic.seconds(device, min(programs, 2 * device.processors)),
    }
    return Cost("cuBLAS", LAUNCH, limits)


def elementwise(device: Device, values: int, *, reads: int = 1, erf: bool = False) -> Cost:
    """A pass over `values` results that reads `reads` tensors of that size: bias, GELU (`erf`), addition."""
    size = HALF * values * (reads + 1)
    issued = device.processors * PASS_RATE * device.clock * 32
    limits = {"memory": size / stream_rate(device, size), "issue": values * (ERF if erf else PASS) / issued}
    return Cost("elementwise", LAUNCH, limits)


def convolution(device: Device, sizes: Mapping[str, int]) -> Cost:
    """The first convolution by cuDNN: three channels, 3 x 3, stride 2, without bias."""
    pixels, values = sizes["batch"] * sizes["height"] * sizes["width"] * 3, sizes["m"] * sizes["c"]
    limits = {
        "memory": HALF * (pixels + values) / stream_rate(device, HALF * 2 * values),
        "tensor": 2 * 27 * values / (STEM_SHARE * device.tensor),
    }
    return Cost("cuDNN", LAUNCH, limits)


def depthwise(baseline: Cost) -> Cost:
    """A channels-last depthwise convolution by cuDNN, without bias."""
    return Cost("cuDNN", DEPTHWISE * baseline.seconds, {})


def attention(ours: Cost) -> Cost:
    """SDPA's flash attention."""
    return Cost("SDPA", SDPA * ours.seconds, {})


def passes(count: int) -> Cost:
    """Small kernels over little data, such as squeeze-excite's: launches alone."""
    return Cost("elementwise", count * LAUNCH, {}, launches=count)
