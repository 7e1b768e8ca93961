"""Which kernels a model launches, and how each launch is compiled: found by calling the launchers, with no GPU.

The launchers run on meta tensors while `recording` notes the launches in place of making them. So what is compiled
ahead of time is what runs: the same kernels, block sizes and specializations, with nothing listed twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encoder.config import MIXERS, FastViTHDConfig
from ..errors import UnavailableError
from . import language
from .attention import launch_attention
from .depthwise import launch_depthwise
from .depthwise_mma import launch_depthwise_mma
from .depthwise_pairs import launch_depthwise_pairs
from .depthwise_rows import launch_depthwise_rows
from .linear_residual import launch_linear
from .mlp import MAX_CHANNELS, launch_mlp
from .norm_linear import NORM_EPS, launch_norm_linear
from .table import Config, default_config, dtype_class

TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
ALIGNED = 16
"""Bytes that every tensor of PyTorch begins at a multiple of; sizes that are multiples of it are compiled as such."""


@dataclass(frozen=True)
class Launch:
    """One kernel as Triton specializes it for one call.

    Attributes:
        kernel: the `triton.jit` function.
        signature: (name, Triton's type) of each argument that stays one at run time, in order.
        constants: (name, value) of the others.
        divisible: arguments known to be multiples of 16.
        num_warps, num_stages: Triton's own.
        grid: programs along each axis.
        pdl: launched with programmatic dependent launch.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    grid: tuple[int, ...]
    pdl: bool = False

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches of the same code."""
        return self.name, self.signature, self.constants, self.divisible, self.num_warps, self.num_stages, self.pdl


@dataclass(frozen=True)
class Call:
    """One call of an operator: its name in the tables, the sizes that choose its configuration, what launches it."""

    op: str
    sizes: dict[str, int]
    launch: Callable[[Config], object]


def launches_of(calls: Sequence[Call], arch: str, dtype: torch.dtype) -> list[tuple[Call, Launch]]:
    """Every launch of `calls` on an architecture (`sm_90`) with the committed configurations; equal code once."""
    found: dict[tuple[Any, ...], tuple[Call, Launch]] = {}
    for call in calls:
        with recording() as made:
            call.launch(default_config(call.op, arch, dtype_class(dtype), call.sizes))
        for launch in made:
            found.setdefault(launch.key, (call, launch))
    return list(found.values())


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within the block every launch of a Triton kernel is appended to the list, and none runs.

    Raises UnavailableError where there is no Triton, or kernels belong to its interpreter.
    """
    if not language.INSTALLED:
        raise UnavailableError('compiling kernels needs Triton; `pip install "fvexport[triton]"` on Linux')
    if language.INTERPRETED:
        raise UnavailableError("compiling kernels needs Triton's compiler; unset TRITON_INTERPRET")
    from triton.runtime.jit import JITFunction

    made: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        made.append(_specialized(self, args, kwargs, grid))

    own = JITFunction.run
    JITFunction.run = run
    try:
        yield made
    finally:
        JITFunction.run = own


def _specialized(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any) -> Launch:
    """As Triton's own launcher does: None and 1 become constants, and multiples of 16 are known as such."""
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "launch_pdl") if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, divisible = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            constants.append((name, value))
        elif isinstance(value, Tensor):
            signature.append((name, f"*{TRITON_TYPES[value.dtype]}"))
            divisible.append(name)
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % ALIGNED == 0:
                divisible.append(name)
    return Launch(
        kernel, tuple(signature), tuple(constants), tuple(divisible), options.get("num_warps", 4),
        options.get("num_stages", 3), tuple(grid), options.get("launch_pdl", False),
    )  # fmt: skip


# --- the calls of the encoder -------------------------------------------------------------------------


def encoder_calls(
    config: FastViTHDConfig, height: int, width: int, batch: int, dtype: torch.dtype, *, device: str = "meta",
    modes: int = 0,
) -> Iterator[Call]:  # fmt: skip
    """Every call of an operator that the encoder can be put together from, at one size.

    A part that several kernels compute is there once for each: a ConvFFN as `mlp`, where that has room, and as its two
    products; a grouped convolution as `depthwise`, as `depthwise_rows` or `depthwise_pairs`, and as `depthwise_mma`.
    Elsewhere than on the meta device tensors are of order one, as activations are. `modes`, of `dispatch.Modes`, are
    those of every call.
    """
    make = _Make(torch.empty if device == "meta" else torch.randn, dtype, device, modes)
    stem = config.dims[0]
    yield from _depthwise(batch, height // 2, width // 2, stem, 3, make, stride=2, gelu=True)
    yield from _linear(batch * height * width // 16, stem, stem, make, gelu=True)
    for stage, (c, (h, w)) in enumerate(zip(config.dims, config.stage_resolutions(height, width), strict=True)):
        m, hidden = batch * h * w, config.mlp_ratio * c
        if stage:
            before = config.dims[stage - 1]
            yield from _depthwise(batch, 2 * h, 2 * w, before, 7, make, stride=2, gelu=True, outputs=c // before)
            yield from _linear(m, c, c, make, gelu=True)
        if MIXERS[stage] == "attention":
            yield from _attention(batch, h * w, config.num_heads(stage), make, c)
            yield from _linear(m, c, c, make, residual=True)
        else:
            yield from _depthwise(batch, h, w, c, 3, make)
        yield from _depthwise(batch, h, w, c, 7, make)
        if c <= MAX_CHANNELS:
            yield from _mlp(m, c, hidden, make)
        yield from _linear(m, hidden, c, make, gelu=True)
        yield from _linear(m, c, hidden, make, residual=True)
    h, w = config.stage_resolutions(height, width)[-1]
    yield from _depthwise(batch, h, w, config.dims[-1], 3, make, outputs=2)


class _Make:
    """Makes tensors of a dtype on a device, and knows the modes of the calls that they are for."""

    def __init__(self, make: Callable[..., Tensor], dtype: torch.dtype, device: str, modes: int) -> None:
        self.make, self.dtype, self.device, self.modes = make, dtype, device, modes

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.make(*shape, dtype=dtype or self.dtype, device=self.device)


def _attention(batch: int, tokens: int, heads: int, make: _Make, c: int) -> Iterator[Call]:
    x, qkv = make(batch, tokens, c), make(batch, tokens, 3 * c)
    weight, bias = make(3 * c, c), make(3 * c)
    sums = make(3 * c, dtype=torch.float32)
    yield Call(
        "norm_linear",
        {"m": batch * tokens, "n": 3 * c, "k": c},
        lambda config: launch_norm_linear(x, weight, bias, sums, NORM_EPS, config, modes=make.modes),
    )
    yield Call(
        "attention",
        {"tokens": tokens, "batch": batch, "heads": heads},
        lambda config: launch_attention(qkv, heads, config, modes=make.modes),
    )


def _linear(m: int, n: int, k: int, make: _Make, *, gelu: bool = False, residual: bool = False) -> Iterator[Call]:
    x, weight, bias = make(m, k), make(n, k), make(n)
    stream = make(m, n) if residual else None
    yield Call(
        "linear",
        {"m": m, "n": n, "k": k},
        lambda config: launch_linear(x, weight, bias, None, stream, config, gelu=gelu, modes=make.modes),
    )


def _mlp(m: int, c: int, hidden: int, make: _Make) -> Iterator[Call]:
    x, w1, w2 = make(m, c), make(hidden, c), make(c, hidden)
    b1, b2 = make(hidden), make(c)
    yield Call(
        "mlp",
        {"m": m, "c": c, "hidden": hidden},
        lambda config: launch_mlp(x, w1, b1, w2, b2, x, config, modes=make.modes),
    )


def _depthwise(
    batch: int, height: int, width: int, c: int, kernel: int, make: _Make, *, stride: int = 1,
    gelu: bool = False, outputs: int = 1,
) -> Iterator[Call]:  # fmt: skip
    x, out = make(batch, height, width, c), outputs * c
    weight, bias = make(kernel, kernel, out), make(out)
    sizes = {
        "batch": batch, "height": -(-height // stride), "width": -(-width // stride), "c": out, "kernel": kernel,
        "stride": stride, "multiplier": outputs,
    }  # fmt: skip
    yield Call(
        "depthwise",
        sizes,
        lambda config: launch_depthwise(x, weight, bias, stride, gelu, config, modes=make.modes),
    )
    taps = make(outputs, kernel, kernel, c, dtype=torch.float32)
    launch = launch_depthwise_rows if outputs == 1 else launch_depthwise_pairs
    yield Call(
        "depthwise_rows" if outputs == 1 else "depthwise_pairs",
        sizes,
        lambda config: launch(x, taps, bias, stride, gelu, config, modes=make.modes),
    )
    if kernel == 7 and outputs == stride == 1 and make.dtype != torch.float32:
        yield Call(
            "depthwise_mma",
            sizes,
            lambda config: launch_depthwise_mma(x, weight, bias, gelu, config, modes=make.modes),
        )
