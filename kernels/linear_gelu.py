"""A product and the GELU after it, in one pass over the result.

    y = gelu(x @ weight^T + bias)        ConvFFN's fc1 where `mlp` does not win, and 1x1 convolutions with GELU

x is (..., K), weight (N, K) as in `nn.Linear`, bias (N,), y (..., N). Channels-last, a 1x1 convolution is such a
product. `products` lists the kernels that compute it; GELU is by erf or in logistic form (`tiles.gelu_as`).

FLOPs: 2 M N K, and about 10 M N for GELU.    Bytes: M K + N K + M N values; GELU by itself would take 2 M N more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dispatch import Modes, check_product, check_same_dtype, forward_only
from .products import compute, name_of


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in PyTorch: x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return F.gelu(F.linear(x, weight, bias))


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, *, kernel: str | bool | None = True, modes: int = Modes.NONE
) -> Tensor:
    """GELU of a product: x (..., K), weight (N, K), bias (N,), one dtype, any strides -> (..., N), contiguous.

    `kernel` is of `products.KERNELS`, or True for `linear`; False or None computes in plain PyTorch on any device.
    `modes` are of `dispatch.Modes`. Raises ConfigError for another kernel, for shapes or dtypes that do not fit each
    other, or if a gradient is asked for.
    """
    check_product("linear_gelu", x, weight, bias)
    check_same_dtype("linear_gelu", x, weight, bias)
    forward_only("linear_gelu", x, weight, bias)
    if not kernel:
        return linear_gelu_reference(x, weight, bias)
    return _linear_gelu(x, weight, bias, name_of(kernel), int(modes))


@torch.library.custom_op(
    "fvexport::linear_gelu", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, str kernel, int modes) -> Tensor",
)  # fmt: skip
def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, kernel: str, modes: int) -> Tensor:
    found = compute(kernel, x, weight, bias, gelu=True, modes=modes)
    return linear_gelu_reference(x, weight, bias).contiguous() if found is None else found


@_linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, kernel: str, modes: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
