"""When a kernel runs, and when PyTorch does.

A kernel runs on an NVIDIA GPU from Ampere on (or on the CPU in Triton's interpreter), in float16, bfloat16 or float32.
Everything else is PyTorch's, with the same result. `FVEXPORT_KERNELS` turns kernels off: `0` all of them, and
`attention,mlp` all but these. It is read at each call, so a captured CUDA graph keeps what it was captured with.
"""

from __future__ import annotations

import difflib
import functools
import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..errors import ConfigError
from . import language

OPS = ("attention", "norm_linear", "linear", "mlp", "depthwise")
"""The kernels by name, as the switch and the tables know them."""

SWITCH = "FVEXPORT_KERNELS"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_CAPABILITY = (8, 0)


def runs(op: str, *tensors: Tensor) -> bool:
    """Whether the kernel `op` computes these tensors; PyTorch does otherwise.

    Raises ConfigError where `FVEXPORT_KERNELS` names no kernel.
    """
    if op not in switched_on(os.environ.get(SWITCH, "")) or not language.INSTALLED:
        return False
    x = tensors[0]
    if any(t.device != x.device for t in tensors) or x.dtype not in DTYPES or not x.numel():
        return False
    if language.INTERPRETED:
        return x.device.type == "cpu"
    return x.device.type == "cuda" and torch.version.hip is None and _capability(x.device) >= MIN_CAPABILITY


@functools.lru_cache
def switched_on(value: str) -> frozenset[str]:
    """The kernels that a value of `FVEXPORT_KERNELS` leaves on: "" or `1` all, `0` none, `a,b` only those."""
    if value.strip() in ("", "1"):
        return frozenset(OPS)
    if value.strip() == "0":
        return frozenset()
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in OPS:
            near = difflib.get_close_matches(name, OPS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are 0, 1, {', '.join(OPS)}"
            raise ConfigError(f"{SWITCH} names no kernel {name!r}; {hint}")
    return frozenset(names)


def check_same_dtype(op: str, *tensors: Tensor | None) -> None:
    """Raises ConfigError unless all tensors are of one floating dtype."""
    dtypes = [t.dtype for t in tensors if t is not None]
    if len(set(dtypes)) > 1 or not dtypes[0].is_floating_point:
        found = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ConfigError(f"{op} takes tensors of one floating dtype; found {found}: convert them first")


def check_product(op: str, x: Tensor, weight: Tensor, bias: Tensor, like_rows: Tensor | None = None) -> None:
    """Raises ConfigError unless x is (..., K), weight (N, K), bias (N,), and a residual of the result's shape."""
    fits = x.ndim >= 1 and weight.ndim == 2 and x.shape[-1] == weight.shape[1] and bias.shape == weight.shape[:1]
    if not fits or (like_rows is not None and like_rows.shape != (*x.shape[:-1], weight.shape[0])):
        shapes = [tuple(t.shape) for t in (x, weight, bias, like_rows) if t is not None]
        raise ConfigError(f"{op} takes x (..., K), weight (N, K), bias (N,), residual (..., N); found {shapes}")


def forward_only(op: str, *tensors: Tensor | None) -> None:
    """Raises ConfigError where a gradient would have to flow."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ConfigError(f"{op} has no gradient; call it under torch.inference_mode(), or train the eager model")


def precision_of(dtype: torch.dtype) -> str:
    """How float32 is multiplied: exactly, as PyTorch does unless told otherwise. Half types take no such choice."""
    return "ieee" if dtype == torch.float32 else "tf32"


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes a tensor's GPU the current one, on which Triton launches; nothing for tensors elsewhere."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


@functools.lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
