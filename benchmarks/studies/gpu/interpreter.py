"""Triton's interpreter, made to compute as a GPU does: kernels can be checked on a CPU then.

NumPy has neither bfloat16 nor FP8, so the interpreter (Triton 3.6, 3.7) keeps their bits as integers: it cuts off
bfloat16 where a GPU rounds to nearest, multiplies its integers in `tl.dot`, and rounds FP8 half up, without a carry
into the exponent and with other subnormal numbers. It keeps scalars as arrays with one element, which Triton 3.6 leaves
to NumPy to turn into numbers, and NumPy 2.5 refuses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ....kernels import language


@contextlib.contextmanager
def corrected() -> Iterator[None]:
    """Within the block interpreted kernels round, multiply and loop as compiled ones; nothing if they are compiled."""
    if not language.INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    places = {
        (interpreter, "_convert_float"): _converting(interpreter._convert_float),
        (interpreter.InterpreterBuilder, "create_dot"): _multiplying(interpreter.InterpreterBuilder.create_dot),
        (interpreter, "_patch_lang_tensor"): _counting(interpreter._patch_lang_tensor),
    }
    own = {place: getattr(*place) for place in places}
    for place, function in places.items():
        setattr(*place, function)
    try:
        yield
    finally:
        for place, function in own.items():
            setattr(*place, function)


def _converting(own: Any) -> Any:
    import triton.language as tl

    wider = {tl.float16: (torch.float16, np.uint16), tl.float32: (torch.float32, np.uint32)}

    def convert(value: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if source == tl.float8e4nv:
            dtype, bits = wider[target]
            return _tensor(value).view(torch.float8_e4m3fn).to(dtype).numpy().view(bits)
        if (source, target) == (tl.float32, tl.float8e4nv):
            return _tensor(value).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return _widened(value).view(np.uint32)
        if (source, target) == (tl.float32, tl.bfloat16):
            return _tensor(value).bfloat16().view(torch.uint16).numpy()
        return own(value, source, target, rounding)

    return convert


def _multiplying(own: Any) -> Any:
    import triton.language as tl
    from triton.runtime import interpreter

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        wide = [
            interpreter.TensorHandle(_widened(t.data), tl.float32) if t.dtype.scalar == tl.bfloat16 else t
            for t in (a, b)
        ]
        return own(self, *wide, d, *rest)

    return dot


def _counting(own: Any) -> Any:
    def patch(tensor: Any, scope: Any) -> None:
        own(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch


def _tensor(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(value))


def _widened(bits: np.ndarray) -> np.ndarray:
    return _tensor(bits).view(torch.bfloat16).float().numpy()
