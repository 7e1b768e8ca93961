"""The encoder's device time on its kernels, with single kernels and modes switched, and in plain PyTorch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ....encoder.fastvithd import FastViTHD
from ....kernels.accelerate import accelerate
from ....kernels.dispatch import BASELINE, DEFAULTS, FP8_OPS, MODES, OPS, SWITCH, switched_on
from ....kernels.timing import Replay, Timing, paired
from .scope import Size

Run = Callable[[], object]


def in_use() -> frozenset[str]:
    """The kernels and modes that `FVEXPORT_KERNELS` selects: the defaults, but for what a run has left out."""
    return switched_on(os.environ.get(SWITCH, ""))


def variants() -> dict[str, frozenset[str]]:
    """The sets of kernels and modes that are timed beside those in use: `baseline`, and each name switched alone.

    FP8's kernels are not among them: the model in half precision has none.
    """
    used = in_use()
    names = [name for name in (*MODES, *OPS) if name not in FP8_OPS]
    found: dict[str, frozenset[str]] = {"baseline": frozenset(BASELINE) & used}
    found |= {f"-{name}": used - {name} for name in names if name in used}
    found |= {f"+{name}": used | {name} for name in names if name not in DEFAULTS}
    return found


def prepared(model: FastViTHD, dtype: torch.dtype, device: str) -> FastViTHD:
    """A copy of the fused model, channels-last, as the baseline of PyTorch runs it."""
    copied = copy.deepcopy(model).to(device, dtype)
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pixels(size: Size, dtype: torch.dtype, device: str) -> Tensor:
    """Random pixel values (B, 3, H, W) in [0, 1], channels-last."""
    x = torch.rand(size.batch, 3, size.height, size.width, device=device)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def ours(eager: FastViTHD, x: Tensor, kernels: Collection[str] | None = None) -> Replay:
    """A graph of one call on these kernels, by default those in use."""
    model = accelerate(eager, kernels=kernels)
    return Replay(lambda: model(x), copies=1)


def in_graph(model: Callable[[Tensor], Any], x: Tensor) -> Replay:
    """A graph of one call of any model."""
    return Replay(lambda: model(x), copies=1)


def measure(candidates: dict[str, Run], budget_s: float, rounds: int) -> list[Timing]:
    """Times calls side by side, in at most so many rounds; the first is the baseline of the ratios."""
    with torch.inference_mode():
        return paired(candidates, rounds=rounds, budget_s=budget_s)


def fact(timing: Timing, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    """A timing as plain data: milliseconds per call, images per second."""
    return {
        "name": timing.name, "size": size.name, "batch": size.batch, "dtype": str(dtype).removeprefix("torch."),
        "ms": timing.median_ms, "p10_ms": timing.p10_ms, "p90_ms": timing.p90_ms, "rounds": timing.rounds,
        "images_s": 1e3 * size.batch / timing.median_ms, "times_baseline": timing.speedup,
    }  # fmt: skip
