"""A product and all that follows it, in one pass over the result.

    y = residual + scale * (x @ weight^T + bias)        attention's proj, ConvFFN's fc2

x is (..., K), weight (N, K) as in `nn.Linear`; bias and scale are (N,), residual and y (..., N). Scale is a layer scale
(fused form has it in weight and bias already: None). `products` lists the kernels that compute it.

FLOPs: 2 M N K.    Bytes: M K + N K + 2 M N values; the addition by itself would take 2 M N more, so would the scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .dispatch import Modes, check_product, check_same_dtype, forward_only
from .products import compute, name_of


def linear_residual_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    """The same in PyTorch: x (..., K), weight (N, K), bias and scale (N,), residual (..., N) -> (..., N)."""
    y = F.linear(x, weight, bias)
    return residual + (y if scale is None else y * scale)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None = None, *,
    kernel: str | bool | None = True, modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """A product added to a residual: x (..., K), weight (N, K), all of one dtype -> (..., N), contiguous.

    Args:
        x, weight: any strides.
        bias: (N,).
        residual: (..., N).
        scale: (N,), or None for 1.
        kernel: of `products.KERNELS`, or True for `linear`; False or None computes in plain PyTorch on any device.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes or dtypes that do not fit each other, or a gradient is asked for.
    """
    check_product("linear_residual", x, weight, bias, residual)
    if scale is not None and scale.shape != bias.shape:
        raise ConfigError(f"linear_residual takes a scale {tuple(bias.shape)}; found {tuple(scale.shape)}")
    check_same_dtype("linear_residual", x, weight, bias, residual, scale)
    forward_only("linear_residual", x, weight, bias, residual, scale)
    if not kernel:
        return linear_residual_reference(x, weight, bias, residual, scale)
    return _linear_residual(x, weight, bias, residual, scale, name_of(kernel), int(modes))


@torch.library.custom_op(
    "fvexport::linear_residual", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor residual, Tensor? scale, str kernel, int modes) -> Tensor",
)  # fmt: skip
def _linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None, kernel: str, modes: int
) -> Tensor:
    found = compute(kernel, x, weight, bias, scale, residual, modes=modes)
    return linear_residual_reference(x, weight, bias, residual, scale).contiguous() if found is None else found


@_linear_residual.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None, kernel: str, modes: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
