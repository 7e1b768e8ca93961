"""Time of one launch, from what it does and what the GPU can do.

A launch takes a fixed time, then the longest of its overlapped limits, then what nothing overlaps:

    seconds = fixed + max(issue, tensor, cache, memory, latency) + tail

Each constant below says what it stands for. None of them is measured here; those without a source are estimates, and
they are why a predicted total may be off by a third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .....core.gpus import MAX_SHARED, REGISTERS, SCHEDULERS
from .codes import Code
from .device import Device

LAUNCH = 2.3e-6
"""Seconds that a kernel in a CUDA graph takes at least: the gap before it, its ramp, one load and one store."""
PDL_SAVES = 0.9e-6
"""Of LAUNCH, what programmatic dependent launch hides: the next kernel is set up while the one before ends."""
ISSUED = (0.42, 0.42, 0.55, 0.65)
"""Instructions that a scheduler issues per clock with 0, 1, 2 and 3 or more resident warps; interpolated."""
CACHE_SHARE = 0.75
"""Share of L2's rate that a stream of hot activations reaches."""
LOAD = 0.45e-6
"""Seconds from a load to its value where the loop cannot run ahead: L2 under load."""
MEMORY_LATENCY = 0.9e-6
"""Seconds that a byte from global memory is under way under load: what is in flight over it is the rate."""
SHARED = 1024 * MAX_SHARED["sm_90"]
"""Bytes of shared memory of a multiprocessor that blocks may use."""
MAX_BLOCKS = 32
"""Blocks that a multiprocessor holds."""
TENSOR_CLOCK = 4096
"""FP16 FLOPs of a multiprocessor's tensor cores per clock on sm_90, by wgmma at its widest."""
SHARED_CLOCK = 128
"""Bytes that a multiprocessor reads from shared memory per clock."""
MMA_SHARE = 0.62
"""Share of wgmma's rate that mma.sync reaches on sm_90 (published microbenchmarks)."""
MMA_MACS = 16 * 8 * 16
"""Multiply-adds of an mma.sync m16n8k16."""
WGMMA_ROWS = 64
"""Rows of every wgmma."""
MUFU_CLOCKS = 8
"""Clocks of a scheduler for one warp of exp2, rcp and the like: 4 lanes (CUDA C++ Programming Guide, throughput)."""
LAUNCH_NAME = "launch"


@dataclass(frozen=True)
class Cost:
    """Predicted time of one or more kernels that run one after the other.

    Attributes:
        kernel: what runs.
        fixed: seconds of launches.
        limits: seconds that each limit sets; they overlap, so the longest counts.
        tail: seconds that nothing overlaps.
        launches: how many kernels.
        pdl: of those, how many can start before the kernel ahead of them ends.
        grid: programs along each axis, empty for a library's kernel.
        code: what was counted of it, None for a library's kernel.
        issued: instructions of all threads together.
        rest: the kernels that follow.
    """

    kernel: str
    fixed: float
    limits: Mapping[str, float]
    tail: float = 0.0
    launches: int = 1
    pdl: int = 0
    grid: tuple[int, ...] = ()
    code: Code | None = None
    issued: float = 0.0
    rest: tuple[Cost, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Predicted time of all of them."""
        return self.fixed + max(self.limits.values(), default=0.0) + self.tail + sum(c.seconds for c in self.rest)

    @property
    def bound(self) -> str:
        """What takes most of the time: a limit by its name, or `launch`."""
        longest = max(self.limits, key=lambda name: self.limits[name], default=LAUNCH_NAME)
        own = longest if self.limits.get(longest, 0.0) > self.fixed else LAUNCH_NAME
        slowest = max((self, *self.rest), key=lambda cost: cost.seconds - sum(c.seconds for c in cost.rest))
        return own if slowest is self else slowest.bound

    @property
    def all_launches(self) -> int:
        """Kernels, those that follow included."""
        return self.launches + sum(cost.all_launches for cost in self.rest)

    def flat(self) -> Iterator[Cost]:
        """One for each kernel, in order."""
        for _ in range(self.launches):
            yield replace(self, fixed=self.fixed / self.launches, launches=1, rest=())
        for cost in self.rest:
            yield from cost.flat()

    def then(self, *costs: Cost) -> Cost:
        """The same, followed by others."""
        return replace(self, rest=(*self.rest, *costs))

    def with_pdl(self) -> Cost:
        """The same with programmatic dependent launch wherever the kernels support it."""
        saved = PDL_SAVES * self.pdl
        return replace(self, fixed=self.fixed - saved, pdl=0, rest=tuple(cost.with_pdl() for cost in self.rest))


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch.

    Attributes:
        activations: read and written, each once.
        weights: read from global memory, always cold: all of the model's pass between two uses.
        in_flight: bytes of weights that one program has under way at a time, 0 where all of them have enough.
    """

    activations: float
    weights: float = 0.0
    in_flight: float = 0.0

    def seconds(self, device: Device, programs: int) -> float:
        """Time of the slower of the two streams. Few programs cannot keep enough bytes of weights under way."""
        rate = device.memory
        if self.in_flight:
            rate = min(rate, programs * self.in_flight / MEMORY_LATENCY)
        return max(self.weights / rate, self.activations / stream_rate(device, self.activations))


def stream_rate(device: Device, size: float) -> float:
    """Bytes per second of activations: those that fit half of L2 were left there by the kernel before."""
    return max(device.cache * CACHE_SHARE, device.memory) if size < device.hot else device.memory


def issue_rate(device: Device, resident_warps: float) -> float:
    """Warp instructions per second of one multiprocessor that holds that many warps."""
    each = min(max(resident_warps / SCHEDULERS, 0.0), len(ISSUED) - 1.0)
    below = int(each)
    above = min(below + 1, len(ISSUED) - 1)
    issued = ISSUED[below] + (each - below) * (ISSUED[above] - ISSUED[below])
    return issued * SCHEDULERS * device.clock


def blocks_resident(code: Code, warps: int) -> int:
    """Programs that a multiprocessor has room for, by registers and shared memory."""
    by_registers = REGISTERS // max(1, code.registers * 32 * warps)
    by_shared = SHARED // code.shared if code.shared else MAX_BLOCKS
    return max(1, min(by_registers, by_shared, MAX_BLOCKS))


def tensor_clocks(code: Code, warps: int, *, fp8: bool = False) -> float:
    """Clocks of a multiprocessor's tensor cores for one pass of a program's loop.

    A wgmma m64nNk16 of four warps takes N / 2 clocks, or as long as its operands take from shared memory if that is
    longer: one of N = 32 runs at two thirds of the rate. FP8 has k = 32 in the same time and bytes. An mma.sync
    m16n8k16 has 2048 multiply-adds of one warp, and reaches MMA_SHARE of the rate.
    """
    if not code.mma:
        return 0.0
    if code.mma_macs <= MMA_MACS:
        return code.mma * warps * 2 * code.mma_macs / (TENSOR_CLOCK * MMA_SHARE)
    columns = code.mma_macs * 4 / (WGMMA_ROWS * (32 if fp8 else 16))
    operands = 32 * (WGMMA_ROWS + columns) / SHARED_CLOCK
    return code.mma * warps / 4 * max(columns * 2 * WGMMA_ROWS * 16 / TENSOR_CLOCK, operands)


def rounds_of(programs: int, device: Device) -> int:
    """Programs of the busiest multiprocessor."""
    return math.ceil(programs / device.processors)
