"""Triton 3.6's interpreter with NumPy 2.5, which no longer turns an array with one element into a number.

The interpreter keeps scalars as such arrays, and loops ask for numbers. Triton 3.7 turns them into numbers itself.
"""

from __future__ import annotations

from typing import Any

from ...kernels import language


def fix_scalars() -> None:
    """Makes loops over scalars of interpreted kernels work; does nothing if kernels are compiled."""
    if not language.INTERPRETED:
        return
    from triton.runtime import interpreter

    own = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        own(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
