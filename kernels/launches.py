"""Which kernels a model launches, and how each launch is compiled: found by calling the launchers, with no GPU.

The launchers run on meta tensors while `recording` notes the launches in place of making them. So what is compiled
ahead of time is what runs: the same kernels, block sizes and specializations, with nothing listed twice.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.errors import UnavailableError
from ..encoder.config import FastViTHDConfig
from ..encoder.layers import Layer, encoder_layers
from . import language
from .attention import launch_attention
from .depthwise import MAX_KERNEL, launch_depthwise
from .depthwise_pairs import launch_depthwise_pairs
from .depthwise_rows import launch_depthwise_rows
from .depthwise_strips import launch_depthwise_strips
from .dispatch import FP8, NEWEST, capability_of, exists
from .fp8 import End
from .linear_fp8 import launch_linear_fp8
from .linear_tma import ROW_ALIGNED
from .mlp import MAX_CHANNELS, launch_mlp
from .norm_fp8 import launch_norm_fp8
from .norm_linear import NORM_EPS, launch_norm_linear
from .policy import in_fp8
from .products import KERNELS
from .quantize_fp8 import launch_quantize_fp8
from .split_k import FEW_ROWS
from .stem import COLORS, PADDED, launch_stem
from .table import Config, default_config, dtype_class

TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Types that a model computes in."""
TENSOR_TYPES = TRITON_TYPES | {torch.uint8: "u8", FP8: "fp8e4nv"}
"""Types of tensors that kernels read and write."""
ANY_SCALE = 0.1
"""Launches on FP8 numbers take their scales at run time: one stands for all."""
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


def existing(calls: Iterable[Call], arch: str, dtype: torch.dtype) -> Iterator[Call]:
    """The calls of kernels that an architecture (`sm_90`) has for a dtype."""
    return (call for call in calls if exists(call.op, capability_of(arch), dtype))


def launches_of(
    calls: Sequence[Call], arch: str, dtype: torch.dtype, *, each_size: bool = False
) -> list[tuple[Call, Launch]]:
    """Every launch of `calls` on an architecture (`sm_90`) with the committed configurations.

    Equal code once; with `each_size` once for each of the sizes that it is launched for. Calls of kernels that the
    architecture does not have are left out.
    """
    found: dict[tuple[Any, ...], tuple[Call, Launch]] = {}
    for call in existing(calls, arch, dtype):
        with recording() as made:
            call.launch(default_config(call.op, arch, dtype_class(dtype), call.sizes))
        for launch in made:
            key = (*launch.key, *(call.sizes.items() if each_size else ()))
            found.setdefault(key, (call, launch))
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
    from triton.tools.tensor_descriptor import TensorDescriptor

    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "launch_pdl") if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, divisible = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            constants.append((name, value))
        elif isinstance(value, Tensor):
            signature.append((name, f"*{TENSOR_TYPES[value.dtype]}"))
            divisible.append(name)
        elif isinstance(value, TensorDescriptor):
            signature.append((name, f"tensordesc<{TRITON_TYPES[value.base.dtype]}{list(value.block_shape)}>"))
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
    modes: int = 0, precision: Literal["fp8"] | None = None,
) -> Iterator[Call]:  # fmt: skip
    """Every call of an operator that the encoder can be put together from, at one size.

    A part that several kernels can compute is there once for each: a ConvFFN as `mlp`, if that has room, and as its two
    products; a product by each of `products.KERNELS`; a grouped convolution as `depthwise`, as `depthwise_rows` or
    `depthwise_pairs`, and as `depthwise_strips`.
    Elsewhere than on the meta device tensors are of order one, as activations are. `modes`, of `dispatch.Modes`, are
    those of every call. With precision `fp8`, `dtype` is that of everything but the layers that the policy multiplies
    in FP8, and a tensor that its producer may write in FP8 stands there both ways.
    """
    make = _Make(torch.empty if device == "meta" else torch.randn, dtype, device, modes)
    for layer in encoder_layers(config, height, width):
        yield from _calls(layer, batch, make, fp8=precision == "fp8")


def _calls(layer: Layer, batch: int, make: _Make, *, fp8: bool) -> Iterator[Call]:
    m, c, out = batch * layer.positions, layer.channels, layer.out_channels
    image = batch, layer.stride * layer.height, layer.stride * layer.width
    fp8_ffn = fp8 and in_fp8("fc1", c)
    if layer.kind == "stem" and exists("stem", NEWEST, make.dtype):
        yield from _stem(*image, out, make)
    elif layer.kind == "depthwise":
        out_scale = ANY_SCALE if fp8_ffn and layer.name == "mlp.conv" else None
        yield from _depthwise(
            image, c, layer.kernel, make, stride=layer.stride, gelu=layer.gelu, outputs=layer.outputs,
            out_scale=out_scale,
        )  # fmt: skip
    elif layer.kind == "pointwise":
        yield from _linear(m, out, c, make, gelu=layer.gelu)
    elif layer.kind == "attention" and fp8:
        yield from _attention_fp8(batch, layer.positions, layer.heads, make, c)
    elif layer.kind == "attention":
        yield from _attention(batch, layer.positions, layer.heads, make, c)
        yield from _linear(m, c, c, make, residual=True)
    elif layer.kind == "ffn" and fp8_ffn:
        yield from _quantize_fp8(m, c, make)
        yield from _linear_fp8(m, layer.hidden, c, make, End(gelu=True, out_scale=ANY_SCALE))
        yield from _linear_fp8(m, c, layer.hidden, make, End(residual=make(m, c)))
    elif layer.kind == "ffn":
        if c <= MAX_CHANNELS:
            yield from _mlp(m, c, layer.hidden, make)
        yield from _linear(m, layer.hidden, c, make, gelu=True)
        yield from _linear(m, c, layer.hidden, make, residual=True)


class _Make:
    """Makes tensors of a dtype on a device, and knows the modes of the calls that they are for."""

    def __init__(self, make: Callable[..., Tensor], dtype: torch.dtype, device: str, modes: int) -> None:
        self.make, self.dtype, self.device, self.modes = make, dtype, device, modes

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.make(*shape, dtype=dtype or self.dtype, device=self.device)


def _stem(batch: int, height: int, width: int, c: int, make: _Make) -> Iterator[Call]:
    """Of pixels in the model's dtype, and of levels."""
    pixels, weight, bias = make(batch, COLORS, height, width), make(c, PADDED), make(c)
    m = batch * -(-height // 2) * -(-width // 2)
    for x in (pixels, (pixels.abs() * 64).clamp(max=255).to(torch.uint8)):
        run = functools.partial(launch_stem, x, weight, bias, modes=make.modes)
        yield Call("stem", {"m": m, "c": c, "levels": int(x.dtype == torch.uint8)}, run)


def _attention(batch: int, tokens: int, heads: int, make: _Make, c: int) -> Iterator[Call]:
    x, qkv = make(batch, tokens, c), make(batch, tokens, 3 * c)
    weight, bias = make(3 * c, c), make(3 * c)
    yield from _linear(batch * tokens, 3 * c, c, make)
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
    for name, launch in KERNELS.items():
        ends = gelu or residual or name != "cublas"  # which by itself launches none of our kernels
        fits = name != "linear_tma" or (n % ROW_ALIGNED == 0 and k % ROW_ALIGNED == 0)
        if ends and fits and exists(name, NEWEST, make.dtype) and (name != "split_k" or m <= FEW_ROWS):
            run = functools.partial(launch, x, weight, bias, None, stream, gelu=gelu, modes=make.modes)
            yield Call(name, {"m": m, "n": n, "k": k}, run)


def _attention_fp8(batch: int, tokens: int, heads: int, make: _Make, c: int) -> Iterator[Call]:
    x, qkv, gain, shift = make(batch, tokens, c), make(batch, tokens, 3 * c), make(c), make(c)
    m = batch * tokens
    yield Call(
        "norm_fp8",
        {"m": m, "k": c},
        lambda config: launch_norm_fp8(x, gain, shift, ANY_SCALE, NORM_EPS, config, modes=make.modes),
    )
    yield from _linear_fp8(m, 3 * c, c, make, End())
    yield Call(
        "attention",
        {"tokens": tokens, "batch": batch, "heads": heads},
        lambda config: launch_attention(qkv, heads, config, out_scale=ANY_SCALE, modes=make.modes),
    )
    yield from _linear_fp8(m, c, c, make, End(residual=make(m, c)))


def _linear_fp8(m: int, n: int, k: int, make: _Make, end: End) -> Iterator[Call]:
    x, weight = make(m, k).to(FP8), make(n, k).to(FP8)
    scale, bias = make(n, dtype=torch.float32), make(n)
    yield Call(
        "linear_fp8",
        {"m": m, "n": n, "k": k},
        lambda config: launch_linear_fp8(x, weight, scale, bias, end, config, modes=make.modes),
    )


def _quantize_fp8(m: int, c: int, make: _Make) -> Iterator[Call]:
    x = make(m, c)
    yield Call(
        "quantize_fp8",
        {"m": m * c},
        lambda config: launch_quantize_fp8(x, ANY_SCALE, False, config, modes=make.modes),
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
    image: tuple[int, int, int], c: int, kernel: int, make: _Make, *, stride: int = 1, gelu: bool = False,
    outputs: int = 1, out_scale: float | None = None,
) -> Iterator[Call]:  # fmt: skip
    batch, height, width = image
    x, out = make(batch, height, width, c), outputs * c
    weight, bias = make(kernel, kernel, out), make(out)
    sizes = {
        "batch": batch, "height": -(-height // stride), "width": -(-width // stride), "c": out, "kernel": kernel,
        "stride": stride, "multiplier": outputs,
    }  # fmt: skip
    taps = make(outputs, kernel, kernel, c, dtype=torch.float32)
    kinds: list[tuple[str, Callable[..., Tensor], Tensor]] = [("depthwise", launch_depthwise, weight)]
    if outputs == 1:
        kinds.append(("depthwise_rows", launch_depthwise_rows, taps))
        if kernel == MAX_KERNEL and stride == 1:
            kinds.append(("depthwise_strips", launch_depthwise_strips, taps))
    elif out_scale is None:
        kinds.append(("depthwise_pairs", launch_depthwise_pairs, taps))
    for name, launch, values in kinds:
        extra = {} if out_scale is None else {"out_scale": out_scale}
        run = functools.partial(launch, x, values, bias, stride, gelu, modes=make.modes, **extra)
        yield Call(name, sizes, run)
