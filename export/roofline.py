"""Bytes and operations of the encoder, and the floor they set on a GPU: no kernel can be faster than that.

An operator reads its inputs and weights once, and writes its output once; operators in one kernel pass tensors on
without memory. A kernel then takes at least the longest of

    bytes / bandwidth,   2 · multiply-adds / rate of tensor cores,   2 · multiply-adds / rate of CUDA cores

(the roofline of Williams, Waterman and Patterson, CACM 52(4), 2009), and a block the sum over its kernels, which run
one after the other. Dense products run on tensor cores, grouped convolutions in FP32 on CUDA cores. What is not
counted: caches (a tensor that stays in L2 is counted as read from memory), launches, GELU's erf, softmax's exp,
LayerNorm's sums, views, and casts of the model's input and output.

Tensors are channels-last, so that tokens and feature maps are the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..core.dtypes import BITS
from ..core.errors import ConfigError
from ..core.gpus import REGISTERS, Gpu
from ..encoder.config import FastViTHDConfig, variant_name
from .operators import Block, Operator, operators, source_of

FloorPrecision = Literal["fp16", "bf16", "fp32"]
BYTES = {name: BITS[name] // 8 for name in get_args(FloorPrecision)}
"""Of one stored value. FP32 is multiplied on CUDA cores: tensor cores would round it to TF32."""

MEMORY, TENSOR, CUDA = "memory", "tensor_cores", "cuda_cores"
"""What can bound a kernel."""

MLP_ROWS = 64
"""Rows that a fused MLP must hold: with fewer it reads each weight from L2 oftener, per operation, than two products in
128 x 128 tiles read theirs (a weight of 2 bytes does 2 operations per row; such a tile does 64 per byte)."""
MLP_MAX_DIM = REGISTERS // 2 // MLP_ROWS
"""Channels at which the FP32 sums of that many rows fill half of the registers (512); the rest is for operands."""


@dataclass(frozen=True)
class Fusion:
    """Operators that one kernel can do: `groups` of names within a block; `max_dim` where it ends to be possible."""

    name: str
    groups: tuple[tuple[str, ...], ...] = ()
    max_dim: int | None = None


FUSIONS: tuple[Fusion, ...] = (
    Fusion("epilogue"),
    Fusion("attention", (("token_mixer.scores", "token_mixer.softmax", "token_mixer.values"),)),
    Fusion("norm_linear", (("norm", "token_mixer.qkv"),)),
    Fusion("linear_residual", (("token_mixer.proj", "token_mixer.residual"), ("mlp.fc2", "mlp.residual"))),
    Fusion("mlp", (("mlp.fc1", "mlp.act", "mlp.fc2", "mlp.residual"),), max_dim=MLP_MAX_DIM),
    Fusion("depthwise", (("token_mixer.reparam_conv", "mlp.conv"),)),
)
"""In the order in which they are put on, each on top of those before: what they remove adds up.

`epilogue` (GELU, ReLU and sigmoid in the kernel that makes their input) is what every compiler does; the next four are
this project's kernels. `depthwise` is what is left: it still writes the 3 x 3's output, which the residual reads, and
so saves one read of it. No kernel does that, since each tile would compute the 3 x 3 around its edge once more.
"""


@dataclass(frozen=True)
class Work:
    """What kernels do to a batch.

    Attributes:
        kernels: how many.
        bytes: read and written.
        us_by: microseconds of the floor that memory, tensor cores and CUDA cores each set.
    """

    kernels: int
    bytes: int
    us_by: dict[str, float]

    @property
    def us(self) -> float:
        """The floor in microseconds."""
        return sum(self.us_by.values())

    @property
    def bound(self) -> str:
        """What sets most of the floor."""
        return max(self.us_by, key=lambda unit: self.us_by[unit])

    def __add__(self, other: Work) -> Work:
        by = {unit: self.us_by[unit] + other.us_by[unit] for unit in self.us_by}
        return Work(self.kernels + other.kernels, self.bytes + other.bytes, by)

    def __mul__(self, count: int) -> Work:
        return Work(count * self.kernels, count * self.bytes, {unit: count * us for unit, us in self.us_by.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"us": self.us, "bound": self.bound}


def kernels_of(block: Block, fusions: Sequence[Fusion]) -> list[list[Operator]]:
    """The block's operators, those of one kernel together."""
    kernel = {op.name: index for index, op in enumerate(block.operators)}

    def join(names: Sequence[str]) -> None:
        joined = {kernel[name] for name in names}
        kernel.update((name, min(joined)) for name, index in kernel.items() if index in joined)

    for fusion in fusions:
        if fusion.max_dim is not None and block.dim > fusion.max_dim:
            continue
        if fusion.name == "epilogue":
            for op in block.operators:
                if op.pointwise:
                    join((op.inputs[0], op.name))
        for group in fusion.groups:
            if kernel.keys() >= set(group):
                join(group)
    return [[op for op in block.operators if kernel[op.name] == index] for index in sorted(set(kernel.values()))]


def work_of(block: Block, fusions: Sequence[Fusion], gpu: Gpu, precision: FloorPrecision, batch: int) -> Work:
    """Bytes and floor of one block under `fusions`."""
    sizes = {op.name: op.size for op in block.operators} | {"x": block.input_size}
    total = Work(0, 0, dict.fromkeys((MEMORY, TENSOR, CUDA), 0.0))
    for kernel in kernels_of(block, fusions):
        own = {op.name for op in kernel}
        read = {source for op in kernel for source in op.inputs if source_of(source) not in own}
        later = {source_of(source) for op in block.operators if op.name not in own for source in op.inputs}
        written = own & (later | {block.operators[-1].name})
        elements = sum(_read(source, sizes) for source in read) + sum(sizes[name] for name in written)
        moved = BYTES[precision] * (batch * elements + sum(op.weights for op in kernel))
        macs = {unit: sum(op.macs for op in kernel if _unit(op, precision) == unit) for unit in (TENSOR, CUDA)}
        times = {
            MEMORY: moved / gpu.bandwidth / 1e3,
            TENSOR: 2 * batch * macs[TENSOR] / gpu.tflops / 1e6,
            CUDA: 2 * batch * macs[CUDA] / (gpu.fp32_tflops or math.inf) / 1e6,
        }
        bound = max(times, key=lambda unit: times[unit])
        total += Work(1, moved, {unit: us if unit == bound else 0.0 for unit, us in times.items()})
    return total


def _read(source: str, sizes: dict[str, int]) -> int:
    """Elements read of a tensor: `qkv[q]` is a third of `qkv`."""
    name = source_of(source)
    return sizes[name] // 3 if name != source else sizes[name]


def _unit(op: Operator, precision: FloorPrecision) -> str:
    return CUDA if op.grouped or precision == "fp32" else TENSOR


# --- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockFloor:
    """One block, of which there are `count`: multiply-adds of the batch, one kernel per operator, all fusions on."""

    name: str
    count: int
    gmacs: float
    unfused: Work
    fused: Work

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"unfused": self.unfused.to_dict(), "fused": self.fused.to_dict()}


@dataclass(frozen=True)
class Removal:
    """What a fusion removes from all blocks of one place, on top of the fusions before it.

    Attributes:
        fusion: its name in FUSIONS.
        where: `stage 1` to `stage 5`, `stem` or `final_conv`.
        dim: channels there.
        kernels, bytes, us: fewer launches, bytes and microseconds of the floor.
    """

    fusion: str
    where: str
    dim: int
    kernels: int
    bytes: int
    us: float


@dataclass(frozen=True)
class Floor:
    """The encoder at one resolution.

    Attributes:
        resolution: (height, width) in pixels.
        gmacs: 1e9 multiply-adds of one image in convolutions and linear layers: what papers count.
        attention_gmacs: the same of attention's two products, which they leave out.
        unfused, fused: over all blocks.
        blocks: in the order of the data.
        removals: in the order of FUSIONS; places where nothing is removed are left out.
    """

    resolution: tuple[int, int]
    gmacs: float
    attention_gmacs: float
    unfused: Work
    fused: Work
    blocks: list[BlockFloor]
    removals: list[Removal]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        works = {"unfused": self.unfused.to_dict(), "fused": self.fused.to_dict()}
        return (
            asdict(self)
            | works
            | {"resolution": list(self.resolution), "blocks": [block.to_dict() for block in self.blocks]}
        )


@dataclass(frozen=True)
class Roofline:
    """Floors of one architecture on one GPU.

    Attributes:
        variant: name of the architecture, or `custom`.
        gpu: with the rates that were used.
        precision: of weights and activations.
        batch: images per call; times and bytes are of all of them.
        mlp_break_even: channels from which a fused MLP removes nothing from the floor of large images: both of its
            products are bound by their multiply-adds anyway.
        mlp_max_dim: channels up to which a fused MLP has room on a multiprocessor.
        floors: one per resolution.
    """

    variant: str
    gpu: Gpu
    precision: str
    batch: int
    mlp_break_even: float
    mlp_max_dim: int
    floors: list[Floor]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        gpu = {"name": self.gpu.name, **self.gpu.rates()}
        return asdict(self) | {"gpu": gpu, "floors": [floor.to_dict() for floor in self.floors]}


def roofline(
    config: FastViTHDConfig, resolutions: Sequence[tuple[int, int]], gpu: Gpu, *, precision: FloorPrecision = "fp16",
    batch: int = 1,
) -> Roofline:  # fmt: skip
    """Bytes, operations and floor of every block, and what each fusion removes.

    Args:
        config: the architecture.
        resolutions: (height, width) in pixels.
        gpu: peak rates.
        precision: of weights and activations.
        batch: images per call.

    Raises:
        ConfigError: a resolution that the architecture has not, an unknown precision, or no image.
    """
    if precision not in BYTES:
        raise ConfigError(f"unknown precision {precision!r}; known are {', '.join(get_args(FloorPrecision))}")
    if batch < 1:
        raise ConfigError(f"batch must be at least 1; found {batch}")
    if precision == "fp32" and gpu.fp32_tflops is None:
        raise ConfigError("a floor in fp32 needs the rate of the GPU's CUDA cores; give --fp32-tflops")
    floors = [_floor(list(operators(config, *size)), size, gpu, precision, batch) for size in resolutions]
    break_even = mlp_break_even(config.mlp_ratio, gpu, precision)
    return Roofline(variant_name(config), gpu, precision, batch, break_even, MLP_MAX_DIM, floors)


def mlp_break_even(ratio: int, gpu: Gpu, precision: FloorPrecision) -> float:
    """Channels C from which fc1 with GELU and fc2 with its residual are both bound by their multiply-adds.

    Per position each does 2·ratio·C² operations; fc2 moves more, (ratio + 2)·C values, beside weights that hardly count
    in a large image. The two take equal time at C = bytes · (ratio + 2) / (2 · ratio) · rate / bandwidth.
    """
    rate = gpu.fp32_tflops if precision == "fp32" else gpu.tflops
    assert rate is not None
    return BYTES[precision] * (ratio + 2) / (2 * ratio) * rate * 1e3 / gpu.bandwidth


def _floor(blocks: list[Block], size: tuple[int, int], gpu: Gpu, precision: FloorPrecision, batch: int) -> Floor:
    steps = [[work_of(b, FUSIONS[:n], gpu, precision, batch) for b in blocks] for n in range(len(FUSIONS) + 1)]
    rows = [
        BlockFloor(b.name, b.count, batch * sum(op.macs for op in b.operators) / 1e9, unfused, fused)
        for b, unfused, fused in zip(blocks, steps[0], steps[-1], strict=True)
    ]
    removals: dict[tuple[str, str], Removal] = {}
    for fusion, before, after in zip(FUSIONS, steps, steps[1:], strict=False):
        for block, old, new in zip(blocks, before, after, strict=True):
            if old.kernels == new.kernels:
                continue
            where = block.name.split(".")[0] if block.stage is None else f"stage {block.stage + 1}"
            less = [block.count * (a - b) for a, b in ((old.kernels, new.kernels), (old.bytes, new.bytes))]
            us = block.count * (old.us - new.us)
            known = removals.get((fusion.name, where), Removal(fusion.name, where, block.dim, 0, 0, 0.0))
            removals[fusion.name, where] = Removal(
                fusion.name, where, block.dim, known.kernels + less[0], known.bytes + less[1], known.us + us
            )
    each = [(op.macs * block.count, op.product) for block in blocks for op in block.operators]
    return Floor(
        size,
        gmacs=sum(macs for macs, product in each if not product) / 1e9,
        attention_gmacs=sum(macs for macs, product in each if product) / 1e9,
        unfused=_total(rows, "unfused"),
        fused=_total(rows, "fused"),
        blocks=rows,
        removals=list(removals.values()),
    )


def _total(rows: list[BlockFloor], which: str) -> Work:
    first, *rest = (getattr(row, which) * row.count for row in rows)
    return sum(rest, first)
