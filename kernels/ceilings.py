"""What a GPU reaches at most in two plain tasks: bytes per second of a copy, FLOP/s of a matrix product.

Data sheets promise more than any kernel gets; what a kernel is held to is measured on the same card, in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .timing import Clock, default_clock, device_times

COPY_BYTES = 4 << 30
"""Size of the buffer that is copied: far more than any L2 cache."""
SIDE = 8192
"""Of the square matrices."""


@dataclass(frozen=True)
class Ceilings:
    """Measured ceilings of one device.

    Attributes:
        copy_bytes_s: bytes read plus bytes written per second, device to device.
        matmul_flops: FLOP/s of a product of square matrices, 2 per multiplication and addition.
        copy_bytes: size of the buffer that was copied.
        side: of the matrices.
        dtype: of the matrices.
        clock: name of the clock.
    """

    copy_bytes_s: float
    matmul_flops: float
    copy_bytes: int
    side: int
    dtype: str
    clock: str

    def floor_ms(self, flops: float, moved: float) -> float:
        """Milliseconds that so many FLOPs and moved bytes take at least: the longer of the two."""
        return 1e3 * max(flops / self.matmul_flops, moved / self.copy_bytes_s)


def ceilings(
    *, copy_bytes: int = COPY_BYTES, side: int = SIDE, dtype: torch.dtype = torch.bfloat16, samples: int = 10,
    device: str = "cuda", clock: Clock | None = None,
) -> Ceilings:  # fmt: skip
    """Measures both ceilings; medians of `samples`. Takes twice `copy_bytes` of memory, and under a second on a GPU.

    Matrices hold random values: products of zeros run faster.
    """
    clock = clock or default_clock()
    copy = statistics.median(device_times(_copy(copy_bytes, device), samples=samples, clock=clock))
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = statistics.median(device_times(lambda: torch.mm(a, b), samples=samples, clock=clock))
    return Ceilings(
        2 * copy_bytes / (1e-3 * copy), 2 * side**3 / (1e-3 * product), copy_bytes, side,
        str(dtype).removeprefix("torch."), clock.name,
    )  # fmt: skip


def _copy(size: int, device: str) -> Callable[[], object]:
    """A copy between two buffers, which are freed with it."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
