"""The encoder's operators at their real sizes: every kernel that may compute one, its PyTorch rivals, and float64.

Which kernels there are is read from `kernels/policy.py`: a kernel with a row for a part is a candidate wherever that
part occurs. Each candidate comes once for each of SETS sets of weights: in a model weights come from memory at every
call, while activations, which the kernel before has just written, may still be in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....encoder.config import FastViTHDConfig
from ....encoder.layers import Layer, encoder_layers
from ....kernels.attention import attention, attention_reference
from ....kernels.depthwise import Filters, depthwise, depthwise_reference
from ....kernels.depthwise_rows import float_taps
from ....kernels.dispatch import DEFAULTS, MODES, OPS, Modes, modes_of
from ....kernels.linear_gelu import linear_gelu, linear_gelu_reference
from ....kernels.linear_residual import linear_residual, linear_residual_reference
from ....kernels.mlp import MAX_CHANNELS, mlp, mlp_reference
from ....kernels.norm_linear import norm_linear, norm_linear_reference, weight_sums
from ....kernels.policy import ROWS, depthwise_part, kernel_for
from ....kernels.stem import COLORS, KERNEL, STRIDE, flat_taps, stem, stem_reference
from ....kernels.table import arch_of

if TYPE_CHECKING:
    Run = Callable[[], Tensor]
    Runs = Sequence[Run]

SETS = 8
"""Sets of weights that a graph takes in turn: those of a wide product (19 MB) exceed any L2 cache together."""
TWO = "two products"
"""A ConvFFN as fc1 and fc2, by the kernels that the policy takes for these."""
ROWS_COMPARED = 2048
"""Rows at either end of a product that are compared with float64; of feature maps the first and the last image."""


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        op: the function that computes it.
        part: of the model, as `policy.ROWS` names it.
        sizes: of its input, as `launches.encoder_calls` has them.
        count: how many of them one call of the encoder makes.
        chosen: the kernel that the policy takes there, None for PyTorch.
        flops: multiplications and additions.
        bytes: that must be read or written at least.
        kernels: name -> runs, one for each set of weights.
        rivals: the same in PyTorch; the first is the plain form.
        reference: the first set's result in float64, at the rows that `ends` takes.
    """

    op: str
    part: str
    sizes: dict[str, int]
    count: int
    chosen: str | None
    flops: float
    bytes: float
    kernels: Mapping[str, Runs]
    rivals: Mapping[str, Runs]
    reference: Run


@dataclass(frozen=True)
class Maker:
    """Makes random tensors, and knows what may compute a part.

    Attributes:
        dtype, device: of all tensors.
        variants: also run the chosen kernel with each mode left out.
    """

    dtype: torch.dtype
    device: str
    variants: bool = False

    def __call__(self, *shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=self.device) * std).to(self.dtype)

    @property
    def arch(self) -> str:
        return arch_of(torch.device(self.device))

    def chosen(self, part: str, channels: int, rows: int) -> str | None:
        """The policy's kernel."""
        on_gpu = self.device == "cuda"
        processors = torch.cuda.get_device_properties(0).multi_processor_count if on_gpu else 0
        return kernel_for(part, self.dtype, channels, rows, processors, arch=self.arch)

    def kernels(
        self, part: str, chosen: str | None, run: Callable[[str, int, int], Tensor], *, gelu: bool = False
    ) -> dict[str, Runs]:
        """Runs of every kernel that has a row for `part`; `run` takes its name, the modes and the set of weights."""
        names = dict.fromkeys(
            row.kernel for row in ROWS
            if row.part == part and self.dtype in row.dtypes and (not row.arch or self.arch in row.arch)
        )  # fmt: skip
        modes = modes_of(DEFAULTS)
        found = {name: _runs(run, name, modes) for name in names if name in OPS}
        if self.variants and chosen is not None:
            for mode in MODES if gelu else ("pdl",):
                found[f"{chosen} -{mode}"] = _runs(run, chosen, modes & ~modes_of([mode]))
        return found


def _runs(run: Callable[[str, int, int], Tensor], name: str, modes: Modes) -> Runs:
    return [lambda index=index: run(name, int(modes), index) for index in range(SETS)]  # type: ignore[misc]


def rotated(run: Callable[[int], Tensor]) -> Runs:
    """One run for each set of weights."""
    return [lambda index=index: run(index) for index in range(SETS)]  # type: ignore[misc]


def ends(x: Tensor) -> Tensor:
    """The first and last rows of a matrix, or the first and last image of a batch."""
    count = ROWS_COMPARED if x.ndim == 2 else 1
    return x if len(x) <= 2 * count else torch.cat([x[:count], x[-count:]])


def cases(config: FastViTHDConfig, side: int, batch: int, make: Maker) -> Iterator[Case]:
    """The operators of the encoder for `batch` images of `side` x `side` pixels, each size once."""
    seen: set[tuple[str, str, str]] = set()
    for case in _all(config, side, batch, make):
        if (key := (case.op, case.part, repr(case.sizes))) not in seen:
            seen.add(key)
            yield case


def _all(config: FastViTHDConfig, side: int, batch: int, make: Maker) -> Iterator[Case]:
    for layer, count in encoder_layers(config, side, side).items():
        m, c = batch * layer.positions, layer.channels
        if layer.kind == "stem":
            yield _stem(make, batch, side, layer.out_channels)
        elif layer.kind == "depthwise":
            yield _depthwise(make, layer, batch, count)
        elif layer.kind == "pointwise":
            yield _gelu(make, "pointwise", m, layer.out_channels, c, count)
        elif layer.kind == "attention":
            yield from _attention(make, batch, layer.positions, c, layer.heads, count)
        elif layer.kind == "ffn":
            yield from _ffn(make, m, c, layer.hidden, count)


def _size(*shapes: Sequence[int]) -> int:
    total = 0
    for shape in shapes:
        count = 1
        for side in shape:
            count *= side
        total += count
    return total


# --- products -------------------------------------------------------------------------------------------


def _attention(make: Maker, b: int, n: int, c: int, heads: int, count: int) -> Iterator[Case]:
    m, item = b * n, make.dtype.itemsize
    x = make(b, n, c)
    weights, biases = [make(3 * c, c, std=c**-0.5) for _ in range(SETS)], [make(3 * c) for _ in range(SETS)]
    sums = [weight_sums(weight) for weight in weights]
    chosen = make.chosen("qkv", c, m)
    yield Case(
        "norm_linear", "qkv", {"m": m, "n": 3 * c, "k": c}, count, chosen, 2.0 * m * c * 3 * c,
        item * _size((m, c), (3 * c, c), (m, 3 * c)),
        make.kernels("qkv", chosen, lambda name, modes, i: norm_linear(
            x, weights[i], biases[i], sums=sums[i], kernel=name, modes=modes)),
        {"layer_norm + linear": rotated(lambda i: norm_linear_reference(x, weights[i], biases[i]))},
        lambda: norm_linear_reference(ends(x).double(), weights[0].double(), biases[0].double()),
    )  # fmt: skip
    qkv = make(b, n, 3 * c)
    chosen = make.chosen("attention", c, m)
    yield Case(
        "attention", "attention", {"tokens": n, "batch": b, "heads": heads}, count, chosen, 4.0 * b * n * n * c,
        item * _size((m, 3 * c), (m, c)),
        make.kernels("attention", chosen, lambda name, modes, _i: attention(qkv, heads, kernel=name, modes=modes)),
        {name: rotated(_with_backend(name, qkv, heads)) for name in _backends(make.device)},
        lambda: attention_reference(ends(qkv).double(), heads),
    )  # fmt: skip
    yield _residual(make, "proj", m, c, c, count)


def _ffn(make: Maker, m: int, c: int, hidden: int, count: int) -> Iterator[Case]:
    item, chosen = make.dtype.itemsize, make.chosen("ConvFFN", c, m)
    x, residual = make(m, c), make(m, c)
    w1, b1 = [make(hidden, c, std=c**-0.5) for _ in range(SETS)], [make(hidden) for _ in range(SETS)]
    w2, b2 = [make(c, hidden, std=hidden**-0.5) for _ in range(SETS)], [make(c) for _ in range(SETS)]

    def two(_name: str, modes: int, i: int) -> Tensor:
        hidden = linear_gelu(x, w1[i], b1[i], kernel=make.chosen("fc1", c, m), modes=modes)
        return linear_residual(
            hidden, w2[i], b2[i], residual, kernel=make.chosen("fc2", w1[i].shape[0], m), modes=modes
        )

    def fused(name: str, modes: int, i: int) -> Tensor:
        return mlp(x, w1[i], b1[i], w2[i], b2[i], residual, kernel=name, modes=modes)

    if c <= MAX_CHANNELS:
        yield Case(
            "mlp", "ConvFFN", {"m": m, "c": c, "hidden": hidden}, count, chosen or TWO, 4.0 * m * c * hidden,
            item * _size((m, c), (m, c), (m, c), (hidden, c), (c, hidden)),
            {**make.kernels("ConvFFN", chosen, fused, gelu=True), TWO: _runs(two, TWO, modes_of(DEFAULTS))},
            {"linear + gelu + linear + add": rotated(
                lambda i: mlp_reference(x, w1[i], b1[i], w2[i], b2[i], residual))},
            lambda: mlp_reference(
                ends(x).double(), w1[0].double(), b1[0].double(), w2[0].double(), b2[0].double(),
                ends(residual).double()),
        )  # fmt: skip
    yield _gelu(make, "fc1", m, hidden, c, count)
    yield _residual(make, "fc2", m, c, hidden, count)


def _gelu(make: Maker, part: str, m: int, n: int, k: int, count: int) -> Case:
    x, chosen = make(m, k), make.chosen(part, k, m)
    weights, biases = [make(n, k, std=k**-0.5) for _ in range(SETS)], [make(n) for _ in range(SETS)]
    kernels = make.kernels(
        part, chosen, lambda name, modes, i: linear_gelu(x, weights[i], biases[i], kernel=name, modes=modes), gelu=True
    )
    return Case(
        "linear_gelu", part, {"m": m, "n": n, "k": k}, count, chosen, 2.0 * m * n * k,
        make.dtype.itemsize * _size((m, k), (n, k), (m, n)),
        kernels,
        {"linear + gelu": rotated(lambda i: F.gelu(F.linear(x, weights[i], biases[i])))},
        lambda: linear_gelu_reference(ends(x).double(), weights[0].double(), biases[0].double()),
    )  # fmt: skip


def _residual(make: Maker, part: str, m: int, n: int, k: int, count: int) -> Case:
    x, residual, chosen = make(m, k), make(m, n), make.chosen(part, k, m)
    weights, biases = [make(n, k, std=k**-0.5) for _ in range(SETS)], [make(n) for _ in range(SETS)]

    def run(name: str, modes: int, i: int) -> Tensor:
        return linear_residual(x, weights[i], biases[i], residual, kernel=name, modes=modes)

    return Case(
        "linear_residual", part, {"m": m, "n": n, "k": k}, count, chosen, 2.0 * m * n * k,
        make.dtype.itemsize * _size((m, k), (n, k), (m, n), (m, n)),
        make.kernels(part, chosen, run),
        {"linear + add": rotated(lambda i: residual + F.linear(x, weights[i], biases[i]))},
        lambda: linear_residual_reference(
            ends(x).double(), weights[0].double(), biases[0].double(), ends(residual).double()),
    )  # fmt: skip


def _backends(device: str) -> tuple[str, ...]:
    return ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION") if device == "cuda" else ("MATH",)


def _with_backend(name: str, qkv: Tensor, heads: int) -> Callable[[int], Tensor]:
    def call(_set: int) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return attention_reference(qkv, heads)

    return call


# --- convolutions ---------------------------------------------------------------------------------------


def _stem(make: Maker, b: int, side: int, c: int) -> Case:
    x, m = make(b, COLORS, side, side), b * (side // STRIDE) ** 2
    filters, biases = [make(c, COLORS, KERNEL, KERNEL, std=0.2) for _ in range(SETS)], [make(c) for _ in range(SETS)]
    taps, chosen = [flat_taps(weight) for weight in filters], make.chosen("stem", COLORS, m)

    def convolution(form: torch.memory_format) -> Callable[[int], Tensor]:
        image, laid_out = (
            x.contiguous(memory_format=form),
            [weight.contiguous(memory_format=form) for weight in filters],
        )

        def call(i: int) -> Tensor:
            return F.gelu(F.conv2d(image, laid_out[i], biases[i], STRIDE, KERNEL // 2)).permute(0, 2, 3, 1)

        return call

    return Case(
        "stem", "stem", {"m": m, "c": c, "levels": 0}, 1, chosen, 2.0 * m * c * COLORS * KERNEL**2,
        make.dtype.itemsize * (x.numel() + _size((m, c), tuple(taps[0].shape))),
        make.kernels("stem", chosen, lambda name, modes, i: stem(
            x, taps[i], biases[i], kernel=name, modes=modes), gelu=True),
        {
            "cuDNN + gelu, channels-last": rotated(convolution(torch.channels_last)),
            "cuDNN + gelu, NCHW": rotated(convolution(torch.contiguous_format)),
        },
        lambda: stem_reference(ends(x).double(), taps[0].double(), biases[0].double()),
    )  # fmt: skip


def _depthwise(make: Maker, layer: Layer, b: int, count: int) -> Case:
    c, out, kernel, stride, gelu = layer.channels, layer.out_channels, layer.kernel, layer.stride, layer.gelu
    high, wide, outputs = layer.height, layer.width, layer.outputs
    h, w = stride * high, stride * wide
    x = make(b, h, w, c)
    weights, biases = [make(kernel, kernel, out, std=1 / kernel) for _ in range(SETS)], [make(out) for _ in range(SETS)]
    filters = [Filters(weight, float_taps(weight, c)) for weight in weights]
    part = depthwise_part(kernel, stride, outputs)
    chosen = make.chosen(part, c, b * h * w)

    def convolution(form: torch.memory_format) -> Callable[[int], Tensor]:
        """As a model calls it: the input in that layout already, and the weight in PyTorch's order."""
        mapped = x.permute(0, 3, 1, 2).contiguous(memory_format=form)
        kernels = [weight.permute(2, 0, 1)[:, None].contiguous(memory_format=form) for weight in weights]

        def call(i: int) -> Tensor:
            y = F.conv2d(mapped, kernels[i], biases[i], stride, kernel // 2, groups=c)
            return (F.gelu(y) if gelu else y).permute(0, 2, 3, 1)

        return call

    plain = convolution(torch.contiguous_format)

    def native(i: int) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return plain(i)

    sizes = {
        "batch": b, "height": high, "width": wide, "c": out, "kernel": kernel, "stride": stride, "multiplier": outputs,
    }  # fmt: skip
    return Case(
        "depthwise", part, sizes, count, chosen, 2.0 * b * high * wide * out * kernel**2,
        make.dtype.itemsize * _size((b, h, w, c), (b, high, wide, out), (kernel, kernel, out)),
        make.kernels(part, chosen, lambda name, modes, i: depthwise(
            x, filters[i], biases[i], stride, gelu, kernel=name, modes=modes), gelu=gelu),
        {"cuDNN, channels-last": rotated(convolution(torch.channels_last)), "native, NCHW": rotated(native)},
        lambda: depthwise_reference(ends(x).double(), weights[0].double(), biases[0].double(), stride, gelu),
    )  # fmt: skip
