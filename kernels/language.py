"""Triton where it is installed; elsewhere the kernels are names that nobody calls.

`TRITON_INTERPRET=1`, set before this module is imported, makes every kernel run in Triton's interpreter on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language

    tl = triton.language
except ImportError:  # macOS, Windows, or not asked for
    triton = tl = None

INSTALLED = triton is not None
INTERPRETED = INSTALLED and bool(triton.knobs.runtime.interpret)
BY_HARDWARE = tl.constexpr(not INTERPRETED) if INSTALLED else True
"""For kernels: whether they may use machine instructions, which the interpreter does not have."""


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function as it is where there is no Triton."""
    return triton.jit(function) if INSTALLED else function
