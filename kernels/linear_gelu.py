"""A product and the GELU after it, in one pass over the result.

    y = gelu(x @ weight^T + bias)        ConvFFN's fc1 where `mlp` does not win, and 1x1 convolutions with GELU

x is (..., K), weight (N, K) as in `nn.Linear`, bias (N,), y (..., N). Channels-last, a 1x1 convolution is such a
product. The kernel is `linear_residual`'s with another end; GELU is computed on the float32 sums,
by erf or in logistic form (`tiles.gelu_as`).

FLOPs: 2 M N K, and about 10 M N for GELU.    Bytes: M K + N K + M N values; GELU by itself would take 2 M N more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dispatch import Modes, check_product, check_same_dtype, forward_only, on_device_of, runs
from .linear_residual import launch_linear
from .table import config_for


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in PyTorch: x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return F.gelu(F.linear(x, weight, bias))


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, *, kernel: str | bool | None = True, modes: int = Modes.NONE
) -> Tensor:
    """GELU of a product: x (..., K), weight (N, K), bias (N,), one dtype, any strides -> (..., N), contiguous.

    `kernel=False` or `None` computes in plain PyTorch, whatever the device; `modes` are of `dispatch.Modes`. Raises
    ConfigError for shapes or dtypes that do not fit each other, or if a gradient is asked for.
    """
    check_product("linear_gelu", x, weight, bias)
    check_same_dtype("linear_gelu", x, weight, bias)
    forward_only("linear_gelu", x, weight, bias)
    return _linear_gelu(x, weight, bias, int(modes)) if kernel else linear_gelu_reference(x, weight, bias)


@torch.library.custom_op(
    "fvexport::linear_gelu", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias, int modes) -> Tensor"
)
def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, modes: int) -> Tensor:
    if not runs("linear", x, weight, bias):
        return linear_gelu_reference(x, weight, bias).contiguous()
    n, k = weight.shape
    config = config_for("linear", x, {"m": x.numel() // k, "n": n, "k": k})
    x, weight, bias = (t.contiguous() for t in (x, weight, bias))
    with on_device_of(x):
        return launch_linear(x, weight, bias, None, None, config, gelu=True, modes=modes)


@_linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, modes: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
