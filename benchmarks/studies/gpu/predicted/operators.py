"""Predicted time of our Triton kernels: each launch as `kernels.launches` records it, with its counted code.

How a call is cut into programs, block sizes and constants come from the launch itself, and how often a program's loop
runs from `kernels.work`. Here is only what limits each kind of kernel:

    product     wgmma or mma.sync, operands from L2, weights from memory; bias, GELU and addition after the loop
    stencil     depthwise: issue of instructions, and the loads of each column of taps
    chain       mlp and attention: products and pointwise work of one program wait for each other
    stream      row statistics and everything else: issue and bytes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .....core.errors import ConfigError
from .....core.gpus import SCHEDULERS
from .....kernels.attention import HEAD_DIM
from .....kernels.launches import Launch
from .....kernels.work import sizes_of, work_of
from .codes import WARP, Code, code_of
from .cost import (
    LAUNCH,
    LOAD,
    MUFU_CLOCKS,
    Cost,
    Traffic,
    blocks_resident,
    issue_rate,
    rounds_of,
    tensor_clocks,
)
from .device import Device

HALF = 2
"""Bytes of a value."""
FLOAT = 4
"""Bytes of a float32 sum."""
PIXELS = 12
"""Values of the image for each position of the first convolution: 3 colors of 2 x 2 pixels."""
TENSOR_SHARE = 0.70
"""Share of the tensor cores' clocks that a pipelined Triton product keeps busy when nothing else limits it."""
STEP = 0.25e-6
"""Seconds of one pass over BLOCK_K for a lone program: copies through registers' addresses, barrier, wgmma."""
TMA_STEP = 0.15e-6
"""The same with TMA, which one thread starts."""
EPILOGUE = 0.65
"""Instructions per clock and scheduler of a tile's epilogue: its values are independent, so few warps suffice."""
BEHIND = 0.6
"""Share of a tile's epilogue that other programs of the multiprocessor do not hide."""
BUFFERED = 3
"""Programs of a multiprocessor whose weights are under way at a time, at most."""
CHAIN_OVERLAP = 0.7
"""Share of the shorter of issue and tensor time that several resident programs of a chain hide in the longer one."""
PORT = 64
"""Bytes per clock that a multiprocessor reads from L2 at most."""
FILL = 1.5e-6
"""Seconds before a chain's first product: its rows and the first weights, loaded one after the other."""


@dataclass(frozen=True)
class Placed:
    """One launch on a device.

    Attributes:
        launch: as recorded.
        sizes: of the call.
        code: counted for it.
        steps: of the main loop as the source has it, per program.
        passes: of the loop in the code, which may be unrolled or start after a few steps.
        programs, warps: of the launch, and of each program.
        device: that it runs on.
    """

    launch: Launch
    sizes: Mapping[str, int]
    code: Code
    steps: int
    passes: float
    programs: int
    warps: int
    device: Device

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def constants(self) -> dict[str, Any]:
        return dict(self.launch.constants)

    @property
    def rounds(self) -> int:
        """Programs of the busiest multiprocessor."""
        return rounds_of(self.programs, self.device)

    @property
    def resident(self) -> int:
        """Programs that it holds at a time."""
        return min(self.rounds, blocks_resident(self.code, self.warps))

    def issue(self, instructions: float) -> float:
        """Seconds in which the busiest multiprocessor issues that many instructions of every warp of its programs."""
        return self.rounds * self.warps * instructions / issue_rate(self.device, self.resident * self.warps)

    @property
    def instructions(self) -> float:
        """Of every warp, from the first to the last."""
        return self.code.outside + self.passes * self.code.loop

    def cache(self, size: float) -> float:
        """Seconds in which every program reads `size` bytes from L2, which a lone multiprocessor reads at PORT."""
        port = self.rounds * size / (PORT * self.device.clock)
        return max(self.programs * size / self.device.cache, port)

    @property
    def grid(self) -> tuple[int, ...]:
        """Of the launch on this device."""
        return (min(self.programs, self.device.processors),) if self.constants.get("PERSISTENT") else self.launch.grid

    def cost(self, limits: Mapping[str, float], tail: float = 0.0) -> Cost:
        """The launch's cost, with what is known of its code."""
        issued = WARP * self.warps * self.programs * self.instructions
        return Cost(
            self.name, LAUNCH, limits, tail, pdl=self.pdl, grid=self.grid, code=self.code, issued=issued
        )  # fmt: skip

    @property
    def tensor(self) -> float:
        """Seconds of its tensor cores, at full rate."""
        return self.rounds * self.passes * tensor_clocks(self.code, self.warps, fp8=self.fp8) / self.device.clock

    @property
    def mufu(self) -> float:
        """Seconds of its units for exp2 and reciprocals."""
        clocks = self.rounds * self.passes * self.code.mufu * MUFU_CLOCKS * self.warps / SCHEDULERS
        return clocks / self.device.clock

    @property
    def has_residual(self) -> bool:
        return any(name.startswith("residual") for name, _ in self.launch.signature)

    @property
    def tma(self) -> bool:
        """Whether operands are copied by TMA."""
        return any(kind.startswith("tensordesc") for _, kind in self.launch.signature)

    @property
    def fp8(self) -> bool:
        """Whether operands are FP8."""
        return any("fp8" in kind for name, kind in self.launch.signature if name.startswith("weight"))

    @property
    def result_size(self) -> int:
        """Bytes of a value of the result."""
        return 1 if any("fp8" in kind for name, kind in self.launch.signature if name.startswith("out")) else HALF

    @property
    def pdl(self) -> int:
        """1 where the kernel is written to start before the one ahead of it ends."""
        return int("PDL" in self.launch.kernel.arg_names)


def place(launch: Launch, sizes: Mapping[str, int], device: Device) -> Placed:
    """A recorded launch with its code and the passes of its loop."""
    sizes = sizes_of(launch.name, sizes, launch.grid)
    work = work_of(launch.name, dict(launch.constants), sizes)
    if work is None:
        raise ConfigError(f"the model knows no work of a program of {launch.name}; add it to kernels/work.py")
    code = code_of(launch)
    passes = max(0.0, (work.steps - code.peeled) / code.unrolled) if code.loop else 0.0
    return Placed(launch, sizes, code, work.steps, passes, _programs(launch, sizes), launch.num_warps, device)


def _programs(launch: Launch, sizes: Mapping[str, int]) -> int:
    """Programs of a launch; tiles of a persistent one, whose programs are as many as the GPU has room for."""
    constants = dict(launch.constants)
    if not constants.get("PERSISTENT"):
        return math.prod(launch.grid)
    return math.ceil(sizes["m"] / constants["BLOCK_M"]) * math.ceil(sizes["n"] / constants["BLOCK_N"])


def cost_of(launch: Launch, sizes: Mapping[str, int], device: Device) -> Cost:
    """Predicted time of one launch of one of our kernels."""
    placed = place(launch, sizes, device)
    kind = next((kind for name, kind in KINDS.items() if launch.name.startswith(name)), stream)
    return kind(placed)


def product(placed: Placed) -> Cost:
    """Of x (m, k) and weight (n, k)^T, with whatever follows in the same kernel."""
    m, n, k = (placed.sizes[name] for name in "mnk")
    blocks, device, code = placed.constants, placed.device, placed.code
    tile_m, tile_n, tile_k = (blocks[f"BLOCK_{axis}"] for axis in "MNK")
    width = 1 if placed.fp8 else HALF
    parts = placed.sizes.get("parts", 1)
    results = FLOAT * parts if "parts" in placed.sizes else placed.result_size + HALF * int(placed.has_residual)
    traffic = Traffic(
        activations=width * m * k + results * m * n,
        weights=width * n * k,
        in_flight=max(1, placed.launch.num_stages - 1) * tile_n * tile_k * width,
    )
    alone = placed.programs <= device.processors
    limits = {
        "issue": placed.issue(placed.passes * code.loop),
        "tensor": placed.tensor / TENSOR_SHARE,
        "cache": placed.cache((tile_m + tile_n) * k * width / parts),
        "memory": traffic.seconds(device, min(placed.programs, device.processors * BUFFERED)),
        "latency": placed.steps * (TMA_STEP if placed.tma else STEP) if alone else 0.0,
    }
    warps = placed.rounds * placed.warps
    tail = warps * code.outside / (EPILOGUE * SCHEDULERS * device.clock) * (1.0 if placed.rounds == 1 else BEHIND)
    return placed.cost(limits, tail)


def stencil(placed: Placed) -> Cost:
    """A depthwise convolution: x is read once for `stride` squared over `multiplier` values of each result."""
    sizes = placed.sizes
    values = sizes["batch"] * sizes["height"] * sizes["width"] * sizes["c"]
    size = values * (placed.result_size + HALF * sizes["stride"] ** 2 / sizes["multiplier"])
    waves = math.ceil(placed.rounds / placed.resident)
    limits = {
        "issue": placed.issue(placed.instructions),
        "tensor": placed.tensor / TENSOR_SHARE,
        "memory": Traffic(size).seconds(placed.device, placed.programs),
        "latency": waves * placed.steps * LOAD,
    }
    return placed.cost(limits)


def chain(placed: Placed) -> Cost:
    """The fused MLP or attention: in a program each product waits for the pointwise work before it."""
    sizes, device = placed.sizes, placed.device
    if "hidden" in sizes:
        activations, weights = 3 * sizes["m"] * sizes["c"], 2 * sizes["c"] * sizes["hidden"]
        each = weights
    else:
        positions = sizes["batch"] * sizes["tokens"]
        width = sizes["heads"] * HEAD_DIM
        activations, weights, each = 4 * positions * width, 0, 2 * sizes["tokens"] * HEAD_DIM
    issue, tensor = placed.issue(placed.instructions), placed.tensor
    limits = {
        "issue": issue,
        "tensor": tensor,
        "mufu": placed.mufu,
        "cache": placed.cache(HALF * each),
        "memory": Traffic(HALF * activations, HALF * weights).seconds(device, placed.programs),
    }
    hidden = CHAIN_OVERLAP if placed.resident > 1 else 0.0
    return placed.cost(limits, FILL + (1 - hidden) * min(issue, tensor))


def stream(placed: Placed) -> Cost:
    """A pass over its tensors: row statistics, the first convolution, the ends of cut products."""
    waves = math.ceil(placed.rounds / placed.resident)
    limits = {
        "issue": placed.issue(placed.instructions),
        "memory": Traffic(_streamed(placed)).seconds(placed.device, placed.programs),
        "latency": waves * LOAD,
    }
    return placed.cost(limits)


def _streamed(placed: Placed) -> float:
    """Bytes that such a pass reads and writes."""
    sizes, residual = placed.sizes, int(placed.has_residual)
    if placed.name.startswith("stem"):
        return HALF * (sizes["m"] * sizes["c"] + sizes["m"] * PIXELS)
    if placed.name.startswith("sum_parts"):
        return sizes["m"] * sizes["n"] * (FLOAT * placed.constants["PARTS"] + HALF * (1 + residual))
    if placed.name.startswith("norm_fp8"):
        return (HALF + 1) * sizes["m"] * sizes["k"]
    if placed.name.startswith("quantize_fp8"):
        return (HALF + 1) * sizes["m"]
    if placed.name.startswith("finish"):
        return HALF * sizes["m"] * sizes["n"] * (2 + residual)
    return HALF * sizes["m"] * sizes["k"]


KINDS = {
    "linear": product,
    "norm_linear": product,
    "split_k": product,
    "depthwise": stencil,
    "mlp": chain,
    "attention": chain,
}
"""What limits a kernel, by how its name begins; others are passes over their tensors."""
