"""When a kernel runs, when PyTorch does, and how kernels compute.

A kernel runs on an NVIDIA GPU from Ampere on (or on the CPU in Triton's interpreter), in float16, bfloat16 or float32.
PyTorch computes everything else, with the same result. `FVEXPORT_KERNELS` selects kernels and modes by name:

    (empty), 1   the defaults           attention,mlp    only these
    0            none                   +stem,-pdl       the defaults, with `stem` and without `pdl`
    all          all

Operators read it at each call, so a captured CUDA graph keeps what it was captured with. Modes are fixed when
`accelerate` builds a model.
"""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.phrases import did_you_mean
from . import language

BASELINE = ("attention", "norm_linear", "linear", "mlp", "depthwise")
"""The kernels that run on every architecture in every dtype, with the exact GELU and ordinary launches."""

PRODUCTS = ("linear_tma", "split_k", "cublas")
"""Other ways than `linear` to compute a product."""

FP8_OPS = ("linear_fp8", "norm_fp8", "quantize_fp8", "scaled_mm")
"""What `accelerate(precision="fp8")` uses beside the others."""

LIBRARY_OPS = ("scaled_mm",)
"""Names that stand for a library's kernel: these have no block sizes."""

OPS = (*BASELINE, *PRODUCTS, "depthwise_rows", "depthwise_pairs", "depthwise_strips", "stem", *FP8_OPS)
"""All kernels by name, as the switch and the tables know them."""

MODES = ("fast_gelu", "pdl")
"""How kernels compute and are launched, selected by name like kernels."""

DEFAULTS = frozenset((*OPS, *MODES)) - {"scaled_mm"}
"""What is used unless something else is asked for."""

SWITCH = "FVEXPORT_KERNELS"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FP8 = torch.float8_e4m3fn
MIN_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
"""First compute capability whose tensor cores multiply E4M3."""
PDL_CAPABILITY = (9, 0)
NEWEST = (99, 0)
"""A compute capability that every kernel runs on."""
CAPABILITIES = {"linear_tma": (9, 0)}
"""The compute capability that a kernel needs, if not MIN_CAPABILITY."""
HALF_ONLY = frozenset(("linear_tma", "split_k", "stem"))
"""Kernels that have no float32."""


class Modes(enum.IntFlag):
    """How an operator's kernel computes and is launched; operators take it as an integer.

    FAST_GELU: GELU in its logistic form (`tiles.fast_gelu`), for half types.
    PDL: programmatic dependent launch: a kernel starts while the one before it ends (compute capability 9.0 and later).
    """

    NONE = 0
    FAST_GELU = 1
    PDL = 2


def modes_of(names: Collection[str]) -> Modes:
    """The modes among the names of kernels and modes."""
    return (Modes.FAST_GELU if "fast_gelu" in names else Modes.NONE) | (Modes.PDL if "pdl" in names else Modes.NONE)


def modes_for(arch: str, names: Collection[str] = DEFAULTS) -> Modes:
    """The modes among `names` that an architecture (`sm_90`) has."""
    found = modes_of(names)
    return found if capability_of(arch) >= PDL_CAPABILITY else found & ~Modes.PDL


def capability_of(arch: str) -> tuple[int, int]:
    """The compute capability of an architecture: (9, 0) for `sm_90`."""
    number = int(arch.removeprefix("sm_"))
    return number // 10, number % 10


def has_fp8(arch: str) -> bool:
    """Whether an architecture (`sm_90`) multiplies FP8 numbers."""
    return capability_of(arch) >= FP8_CAPABILITY


def exists(op: str, capability: tuple[int, int], dtype: torch.dtype, *, fp8: bool = False) -> bool:
    """Whether the kernel `op` exists for GPUs of a compute capability and tensors of a dtype; `fp8` as in `runs`."""
    fp8 = fp8 or op in FP8_OPS
    fits = (dtype in DTYPES or (fp8 and dtype == FP8)) and not (op in HALF_ONLY and dtype == torch.float32)
    return fits and capability >= max(CAPABILITIES.get(op, MIN_CAPABILITY), FP8_CAPABILITY if fp8 else MIN_CAPABILITY)


def gelu_form(gelu: bool, dtype: torch.dtype, modes: int) -> int:
    """What `tiles.gelu_as` takes: 0 no GELU, 1 by erf, 2 in logistic form. float32 is always computed by erf."""
    if not gelu:
        return 0
    return 2 if modes & Modes.FAST_GELU and dtype in (torch.float16, torch.bfloat16) else 1


def pdl_launch(modes: int, x: Tensor) -> dict[str, bool]:
    """The launch arguments of PDL: on if `modes` asks for it and the tensor's GPU has it.

    Tensors on the meta device are launched for an architecture that is not here: `modes_for` decides there.
    """
    on = bool(modes & Modes.PDL)
    if x.device.type != "meta":
        on = on and x.device.type == "cuda" and _capability(x.device) >= PDL_CAPABILITY
    return {"PDL": on, "launch_pdl": on} if on else {"PDL": False}


def runs(op: str, *tensors: Tensor, fp8: bool = False) -> bool:
    """Whether the kernel `op` computes these tensors; PyTorch does otherwise.

    Kernels that are off by default run when they are asked for by name, unless `FVEXPORT_KERNELS` leaves them out.

    Args:
        op: of `OPS`.
        tensors: all on one device; the dtype of the first counts.
        fp8: the kernel reads or writes FP8 numbers; `FP8_OPS` always do.

    Raises:
        ConfigError: `FVEXPORT_KERNELS` names no kernel.
    """
    if op not in _selection(os.environ.get(SWITCH, ""))[1] or not language.INSTALLED:
        return False
    x = tensors[0]
    if any(t.device != x.device for t in tensors) or not x.numel():
        return False
    if language.INTERPRETED:
        return x.device.type == "cpu" and exists(op, NEWEST, x.dtype, fp8=fp8)
    if x.device.type != "cuda" or torch.version.hip is not None:
        return False
    return exists(op, _capability(x.device), x.dtype, fp8=fp8)


def switched_on(value: str) -> frozenset[str]:
    """The kernels and modes that a value of `FVEXPORT_KERNELS` selects (see the module's docstring)."""
    return _selection(value)[0]


@functools.lru_cache
def _selection(value: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a value of `FVEXPORT_KERNELS` selects, and what it permits to those who ask for a kernel by name."""
    every = frozenset((*OPS, *MODES))
    value = value.strip()
    if value in ("", "1"):
        return DEFAULTS, every
    if value in ("0", "all"):
        found = every if value == "all" else frozenset()
        return found, found
    names = [name.strip() for name in value.split(",")]
    signs = [name[:1] if name[:1] in ("+", "-") else "" for name in names]
    if "" in signs and len(set(signs)) > 1:
        raise ConfigError(f"{SWITCH} has names with and without a sign ({value}); give all of them a sign, or none")
    plain = [name[len(sign) :].strip() for name, sign in zip(names, signs, strict=True)]
    check_names(plain, SWITCH)
    if "" in signs:
        return frozenset(plain), frozenset(plain)
    added = {name for name, sign in zip(plain, signs, strict=True) if sign == "+"}
    removed = {name for name, sign in zip(plain, signs, strict=True) if sign == "-"}
    return (DEFAULTS | added) - removed, every - removed


def check_names(names: Collection[str], source: str) -> None:
    """Raises ConfigError if one of the names is neither a kernel nor a mode; `source` says who gave them."""
    known = (*OPS, *MODES)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, ("0", "1", "all", *known))
            raise ConfigError(f"{source} names no kernel or mode {name!r}; {hint}")


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
def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; elsewhere a number with which a persistent kernel can be interpreted and compiled."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@functools.lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
