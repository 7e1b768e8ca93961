"""Which kernel computes a product: x @ weight^T + bias, and GELU or a residual after it.

`linear` computes every product that kernels run on. `split_k` and `cublas` do so too, in other ways; `linear_tma` has
requirements, and `linear` takes its place if they are not met.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core.errors import ConfigError
from .cublas import launch_cublas
from .dispatch import on_device_of, runs
from .linear import launch_linear
from .linear_tma import fits, launch_linear_tma
from .split_k import launch_split_k
from .table import config_for

KERNELS: dict[str, Callable[..., Tensor]] = {
    "linear": launch_linear,
    "linear_tma": launch_linear_tma,
    "split_k": launch_split_k,
    "cublas": launch_cublas,
}
"""The kernels of products by name. All launchers take the same arguments."""


def name_of(kernel: str | bool) -> str:
    """The name of a kernel of products, `linear` for True; raises ConfigError for another name."""
    name = "linear" if kernel is True else str(kernel)
    if name not in KERNELS:
        raise ConfigError(f"no kernel {name!r} computes products; known are {', '.join(KERNELS)}")
    return name


def compute(
    kernel: str, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, residual: Tensor | None = None,
    *, gelu: bool = False, modes: int = 0,
) -> Tensor | None:  # fmt: skip
    """The product by the kernel of that name, or by `linear`; None if neither runs: PyTorch computes it then.

    Shapes and dtypes are those of `linear_residual`; strides are any.
    """
    tensors = [t for t in (x, weight, bias, scale, residual) if t is not None]
    if not any(runs(name, *tensors) for name in (kernel, "linear")):
        return None
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    scale = None if scale is None else scale.contiguous()
    residual = None if residual is None else residual.contiguous()
    if not runs(kernel, *tensors) or (kernel == "linear_tma" and not fits(x, weight, residual)):
        kernel = "linear"
        if not runs(kernel, *tensors):
            return None
    n, k = weight.shape
    config = config_for(kernel, x, {"m": x.numel() // k, "n": n, "k": k})
    with on_device_of(x):
        return KERNELS[kernel](x, weight, bias, scale, residual, config, gelu=gelu, modes=modes)
