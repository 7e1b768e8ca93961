"""Islands of float32 in a half-precision model, for the few parts whose values FP16 cannot hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_running = threading.local()


class InFloat32(nn.Module):
    """Runs a module in float32 inside a half-precision model: casts in, casts out.

    `.half()` and `.to(dtype)` change its surroundings and not its parameters; `.double()` does, so that a float64
    model stays one. State dict keys are `<name>.module.…`.

    Args:
        module: taken over, not copied; parameters in half precision become float32.
        hands_on: the output stays float32, because an `InFloat32` takes it next: a value too large for FP16 crosses
            from one to the other. That one returns to the dtype of the model around it.
    """

    around: Tensor

    def __init__(self, module: nn.Module, *, hands_on: bool = False) -> None:
        super().__init__()
        self.module = module
        self.hands_on = hands_on
        weight = next(module.parameters(), torch.empty(0))
        # Holds nothing: it follows the model's dtype, which an input that was handed on does not tell.
        self.register_buffer("around", weight.new_empty(0), persistent=False)
        self._apply(lambda t: t)
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape and floating dtype -> what the module makes of it, in the dtype around."""
        with _inside():
            y = self.module(x.to(_wide(x.dtype)))
        if self.hands_on:
            return y
        return y.to(self.around.dtype if x.dtype == _wide(x.dtype) else x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def widely(t: Tensor) -> Tensor:
            new = fn(t)
            # From `t` itself: what `fn` made has lost the bits already.
            return new if new.dtype == _wide(new.dtype) else t.to(new.device, _wide(new.dtype))

        if recurse:
            self.module._apply(widely)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]


def in_float32_now() -> bool:
    """Whether an `InFloat32` is running in this thread (its cast back is outside)."""
    return getattr(_running, "depth", 0) > 0


@contextmanager
def _inside() -> Iterator[None]:
    if torch.compiler.is_compiling():  # nobody asks then, and a compiler cannot follow a counter
        yield
        return
    _running.depth = getattr(_running, "depth", 0) + 1
    try:
        yield
    finally:
        _running.depth -= 1


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Float32 for a half type; any other as it is."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
