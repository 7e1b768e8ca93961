"""The operators of the encoder at its real sizes and in awkward cases, and which kernels can compute each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....encoder.config import FastViTHDConfig
from ....encoder.layers import Layer, encoder_layers
from ....kernels.attention import attention
from ....kernels.depthwise import depthwise
from ....kernels.dispatch import FP8, HALF_ONLY, OPS
from ....kernels.fp8 import End
from ....kernels.linear_fp8 import linear_fp8
from ....kernels.linear_gelu import linear_gelu
from ....kernels.linear_residual import linear_residual
from ....kernels.mlp import MAX_CHANNELS, mlp
from ....kernels.norm_fp8 import norm_fp8
from ....kernels.norm_linear import norm_linear
from ....kernels.policy import FP8_CHANNELS, ROWS, depthwise_part
from ....kernels.products import KERNELS
from ....kernels.quantize_fp8 import quantize_fp8
from ....kernels.stem import flat_taps, stem
from .scope import Size

Operator = Callable[..., Tensor]

PARTS: dict[str, tuple[str, ...]] = {
    "stem": ("stem",),
    "depthwise": ("depthwise",),
    "depthwise 7x7": ("depthwise 7x7",),
    "depthwise x2": ("depthwise x2",),
    "linear_gelu": ("pointwise", "fc1"),
    "linear_residual": ("proj", "fc2"),
    "mlp": ("ConvFFN",),
    "norm_linear": ("qkv",),
    "attention": ("attention",),
    "linear_fp8": ("qkv fp8", "proj fp8", "fc1 fp8", "fc2 fp8"),
    "norm_fp8": ("norm fp8",),
    "quantize_fp8": ("quantize fp8",),
}
"""Parts of the model, as `policy.ROWS` names them, by the operator that computes them.

Depthwise convolutions that have kernels of their own count as operators."""

ALWAYS: dict[str, tuple[str, ...]] = {
    "depthwise 7x7": ("depthwise",),
    "depthwise x2": ("depthwise",),
    "linear_gelu": tuple(KERNELS),
    "linear_residual": tuple(KERNELS),
    "norm_linear": ("norm_linear", *KERNELS),
}
"""Kernels that an operator takes in every dtype, whatever the policy says; those of other operators: their own name."""

STEP = 0.02
"""Of FP8 numbers that stand for values of order one."""


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        op: name of the operator.
        what: sizes and strides, for people.
        run: called with the tensors, `kernel` and `modes`.
        tensors: inputs.
    """

    op: str
    what: str
    run: Operator
    tensors: tuple[Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """That everything but FP8 numbers and levels has."""
        return self.tensors[-1].dtype


def kernels_of(op: str, dtype: torch.dtype, arch: str) -> list[str]:
    """The kernels that can compute an operator: those that it always takes, and those that `policy.ROWS` has for it."""
    rows = [
        row.kernel for row in ROWS
        if row.part in PARTS[op] and dtype in row.dtypes and (not row.arch or arch in row.arch)
    ]  # fmt: skip
    found = dict.fromkeys((*ALWAYS.get(op, (op,)), *rows))
    return [name for name in found if dtype != torch.float32 or name not in HALF_ONLY]


def uncovered() -> list[str]:
    """Kernels and parts of the tables that no case here checks."""
    parts = {part for parts in PARTS.values() for part in parts}
    checked = {name for op in PARTS for name in (*ALWAYS.get(op, (op,)), *_kernels_in_rows(op))}
    missing = [f"kernel {name}" for name in OPS if name not in checked]
    return missing + sorted({f"part {row.part}" for row in ROWS if row.part not in parts})


def _kernels_in_rows(op: str) -> Iterator[str]:
    yield from (row.kernel for row in ROWS if row.part in PARTS[op])


class Random:
    """Random tensors of order one, the same in every run.

    Args:
        dtype, device: of the tensors.
        seed: of the generator.
    """

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, std: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return x.mul_(std).to(self.dtype)


def encoder_cases(config: FastViTHDConfig, size: Size, make: Random) -> Iterator[Case]:
    """Every operator of the encoder at one size of its images; shapes that come twice come once."""
    seen: set[tuple[str, str]] = set()
    for case in _all_cases(config, size, make):
        if (case.op, case.what) not in seen:
            seen.add((case.op, case.what))
            yield case


def _all_cases(config: FastViTHDConfig, size: Size, make: Random) -> Iterator[Case]:
    height, width, batch = size
    layers = encoder_layers(config, height, width)
    for layer in layers:
        m, c, out = batch * layer.positions, layer.channels, layer.out_channels
        high, wide = layer.stride * layer.height, layer.stride * layer.width
        if layer.kind == "stem":
            yield from stem_cases(make, batch, high, wide, out)
        elif layer.kind == "depthwise":
            yield depthwise_case(
                make, (batch, high, wide, c), layer.kernel, stride=layer.stride, gelu=layer.gelu, outputs=layer.outputs
            )
        elif layer.kind == "pointwise":
            yield gelu_case(make, m, c, out)
        elif layer.kind == "attention":
            yield norm_case(make, m, c)
            yield attention_case(make, batch, layer.positions, layer.heads, c)
            yield residual_case(make, m, c, c)
        elif layer.kind == "ffn":
            if c <= MAX_CHANNELS:
                yield mlp_case(make, m, c, layer.hidden)
            yield gelu_case(make, m, c, layer.hidden)
            yield residual_case(make, m, layer.hidden, c)
    if make.dtype != torch.float32:
        wide_enough = FP8_CHANNELS if config.dims[-1] >= FP8_CHANNELS else 0
        for layer in layers:
            yield from _fp8_cases(layer, batch, make, wide_enough)


def _fp8_cases(layer: Layer, batch: int, make: Random, channels: int) -> Iterator[Case]:
    """What the encoder calls in FP8: attention blocks, and the products of ConvFFNs of at least `channels`."""
    m, c = batch * layer.positions, layer.channels
    if layer.kind == "attention":
        yield norm_fp8_case(make, m, c)
        yield linear_fp8_case(make, m, c, 3 * c)
        yield attention_case(make, batch, layer.positions, layer.heads, c, STEP)
        yield linear_fp8_case(make, m, c, c, residual=True)
    elif layer.name == "mlp.conv" and c >= FP8_CHANNELS:
        yield depthwise_case(make, (batch, layer.height, layer.width, c), layer.kernel, out_scale=STEP)
    elif layer.kind == "ffn" and c >= channels:
        yield quantize_case(make, m, c)
        yield linear_fp8_case(make, m, c, layer.hidden, gelu=True)
        yield linear_fp8_case(make, m, layer.hidden, c, residual=True)


def awkward_cases(make: Random, channels: int = 192) -> Iterator[Case]:
    """Sizes that fill no tile, inputs with other strides, and rows whose mean is far from zero."""
    c = channels
    for m in (1, 17, 129, 1003):
        yield gelu_case(make, m, c, c + 24)
        yield residual_case(make, m, c, c + 24)
        yield mlp_case(make, m, c // 2, 2 * c)
        yield norm_case(make, m, c)
        if make.dtype != torch.float32:
            yield norm_fp8_case(make, m, c)
            yield quantize_case(make, m, c + 3)
            yield linear_fp8_case(make, m, c, c + 24, gelu=True)
            yield linear_fp8_case(make, m, c, c + 24, residual=True)
    for tokens in (1, 35, 250):
        yield attention_case(make, 2, tokens, c // 32, c)
    for height, width in ((1, 1), (5, 13), (33, 18)):
        for kernel, stride, outputs in ((3, 1, 1), (7, 1, 1), (3, 2, 1), (7, 2, 2), (3, 1, 2)):
            shape = (2, height, width, c // 2)
            yield depthwise_case(make, shape, kernel, stride=stride, gelu=stride == 2, outputs=outputs)
    yield from (case for sides in ((1, 1), (5, 13), (33, 18)) for case in stem_cases(make, 2, *sides, c // 2))
    yield from _strided(make, c)
    yield from _far(make, c)


def _strided(make: Random, c: int) -> Iterator[Case]:
    def turned(x: Tensor) -> Tensor:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)

    cases = [
        gelu_case(make, 130, c, c), residual_case(make, 130, c, c), mlp_case(make, 130, c // 2, 2 * c),
        norm_case(make, 130, c), attention_case(make, 2, 65, c // 32, c), depthwise_case(make, (2, 9, 11, c), 3),
        depthwise_case(make, (2, 9, 11, c), 7), depthwise_case(make, (2, 10, 12, c), 7, stride=2, outputs=2),
        *stem_cases(make, 2, 10, 12, c),
    ]  # fmt: skip
    if make.dtype != torch.float32:
        cases += [norm_fp8_case(make, 130, c), quantize_case(make, 130, c), linear_fp8_case(make, 130, c, c)]
    for case in cases:
        tensors = tuple(turned(t) if t.ndim > 1 else t for t in case.tensors)
        yield Case(case.op, f"{case.what} strided", case.run, tensors)


def _far(make: Random, c: int) -> Iterator[Case]:
    """LayerNorm where the mean is many deviations, and where all channels are equal."""
    case = norm_case(make, 130, c)
    x, *rest = case.tensors
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    for what, moved in (
        ("mean 100 x deviation", x + 100),
        ("some rows far", torch.where(rows % 3 == 0, x * 0.01 + 30, x)),
        ("equal channels", torch.where(rows % 2 == 0, torch.full_like(x, 3.0), x)),
    ):
        yield Case(case.op, f"{case.what} {what}", case.run, (moved.to(x.dtype), *rest))


def stem_cases(make: Random, batch: int, height: int, width: int, c: int) -> Iterator[Case]:
    """The first convolution, of pixels and of levels, channels first and channels last."""
    weight, bias = flat_taps(make(c, 3, 3, 3, std=27**-0.5)), make(c)
    pixels = make(batch, 3, height, width)
    levels = (pixels.float().abs() * 64).clamp(max=255).to(torch.uint8)
    for name, x in (("pixels", pixels), ("levels", levels)):
        scaled = weight if x is pixels else weight / 64
        for layout in (torch.contiguous_format, torch.channels_last):
            what = f"{batch}x{height}x{width} c={c} {name}{' last' if layout == torch.channels_last else ''}"
            yield Case("stem", what, stem, (x.contiguous(memory_format=layout), scaled, bias))


def gelu_case(make: Random, m: int, k: int, n: int) -> Case:
    """A product and GELU."""
    return Case("linear_gelu", f"m={m} k={k} n={n}", linear_gelu, (make(m, k), make(n, k, std=k**-0.5), make(n)))


def residual_case(make: Random, m: int, k: int, n: int) -> Case:
    """A product and a residual."""
    tensors = make(m, k), make(n, k, std=k**-0.5), make(n), make(m, n)
    return Case("linear_residual", f"m={m} k={k} n={n}", linear_residual, tensors)


def mlp_case(make: Random, m: int, c: int, hidden: int) -> Case:
    """A ConvFFN's two products."""
    first, second = make(hidden, c, std=c**-0.5), make(c, hidden, std=hidden**-0.5)
    tensors = make(m, c), first, make(hidden), second, make(c), make(m, c)
    return Case("mlp", f"m={m} c={c} hidden={hidden}", mlp, tensors)


def norm_case(make: Random, m: int, c: int) -> Case:
    """LayerNorm and qkv."""
    tensors = make(m, c), make(3 * c, c, std=c**-0.5), make(3 * c)
    return Case("norm_linear", f"m={m} k={c} n={3 * c}", norm_linear, tensors)


def attention_case(make: Random, batch: int, tokens: int, heads: int, c: int, out_scale: float | None = None) -> Case:
    """Attention on packed qkv; the result is FP8 in steps of `out_scale` if that is given."""

    def run(qkv: Tensor, **how: Any) -> Tensor:
        return attention(qkv, heads, out_scale=out_scale, **how)

    what = f"batch={batch} tokens={tokens} heads={heads}{'' if out_scale is None else ' fp8'}"
    return Case("attention", what, run, (make(batch, tokens, 3 * c),))


def norm_fp8_case(make: Random, m: int, c: int) -> Case:
    """LayerNorm with its affine, in FP8."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, **how: Any) -> Tensor:
        return norm_fp8(x, weight, bias, STEP, **how)

    return Case("norm_fp8", f"m={m} k={c}", run, (make(m, c), make(c), make(c)))


def quantize_case(make: Random, m: int, c: int) -> Case:
    """Rounding to FP8."""

    def run(x: Tensor, **how: Any) -> Tensor:
        return quantize_fp8(x, STEP, **how)

    return Case("quantize_fp8", f"m={m} c={c}", run, (make(m, c),))


def linear_fp8_case(make: Random, m: int, k: int, n: int, *, gelu: bool = False, residual: bool = False) -> Case:
    """A product of FP8 numbers: qkv, or fc1 with GELU and its result in FP8, or fc2 and proj with a residual."""

    def run(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, *rest: Tensor, **how: Any) -> Tensor:
        end = End(gelu, rest[0] if rest else None, STEP if gelu else None)
        return linear_fp8(x, weight, scale, bias, end, **how)

    x, weight = ((make(*shape) / STEP).to(FP8) for shape in ((m, k), (n, k)))
    scale = torch.full((n,), STEP * STEP * k**-0.5, device=x.device)
    tensors = (x, weight, scale, make(n), *([make(m, n)] if residual else []))
    end = " gelu" if gelu else " residual" if residual else ""
    return Case("linear_fp8", f"m={m} k={k} n={n}{end}", run, tensors)


def depthwise_case(
    make: Random, shape: tuple[int, int, int, int], kernel: int, *, stride: int = 1, gelu: bool = False,
    outputs: int = 1, out_scale: float | None = None,
) -> Case:  # fmt: skip
    """A grouped convolution of x (B, H, W, C); the result is FP8 in steps of `out_scale` if that is given."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, **how: Any) -> Tensor:
        return depthwise(x, weight, bias, stride, gelu, out_scale=out_scale, **how)

    out = outputs * shape[3]
    tensors = make(*shape), make(kernel, kernel, out, std=1 / kernel), make(out)
    what = f"{'x'.join(map(str, shape))} k={kernel} s={stride} m={outputs}{' gelu' if gelu else ''}"
    what += "" if out_scale is None else " fp8"
    return Case(depthwise_part(kernel, stride, outputs), what, run, tensors)
