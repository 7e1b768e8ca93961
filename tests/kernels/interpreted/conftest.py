"""Every kernel in Triton's interpreter, on the CPU. The variable has to be set before Triton is imported.

Not collected with the rest: `tests/kernels/test_interpreter.py` runs these files in a process of their own, since
kernels that are interpreted cannot be compiled in the same one. By hand: `pytest tests/kernels/interpreted/check_*.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
from torch import Tensor

from fvexport.kernels import language

if language.INSTALLED and not language.INTERPRETED:
    pytest.exit("these files need a process of their own: nothing else may have imported Triton", returncode=3)

torch.set_num_threads(1)
Judge = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _small_types() -> Iterator[None]:
    """Bfloat16 and FP8 as a GPU has them. NumPy has neither, so Triton's interpreter (3.6, 3.7) keeps their bits as
    integers: it cuts off bfloat16 where a GPU rounds to nearest, multiplies its integers in `tl.dot`, and rounds FP8
    half up, without a carry into the exponent and with other subnormal numbers.
    """
    if not language.INSTALLED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def widened(bits: np.ndarray) -> np.ndarray:
        return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.bfloat16).float().numpy()

    def from_fp8(bits: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.float8_e4m3fn)

    def converting(value: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if source == tl.float8e4nv:
            kind = {tl.float16: np.uint16, tl.float32: np.uint32}[target]
            return from_fp8(value).to({tl.float16: torch.float16, tl.float32: torch.float32}[target]).numpy().view(kind)
        if (source, target) == (tl.float32, tl.float8e4nv):
            return torch.from_numpy(np.ascontiguousarray(value)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return widened(value).view(np.uint32)
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.ascontiguousarray(value)).bfloat16().view(torch.uint16).numpy()
        return convert(value, source, target, rounding)

    def multiplying(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        wide = [
            interpreter.TensorHandle(widened(t.data), tl.float32) if t.dtype.scalar == tl.bfloat16 else t
            for t in (a, b)
        ]
        return dot(self, *wide, d, *rest)

    patch_tensor = interpreter._patch_lang_tensor

    def patching(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        # Triton 3.6 converts an array of one element to an integer, which NumPy 2.5 refuses.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patching)
        patch.setattr(interpreter, "_convert_float", converting)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", multiplying)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not language.INSTALLED:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="Triton is not installed"))


@pytest.fixture
def judge() -> Judge:
    """Asserts that a result is at most twice as far from float64 as PyTorch's own in that dtype."""

    def check(found: Tensor, reference: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        wanted = reference(*(_wide(a) for a in args), **{k: _wide(v) for k, v in kwargs.items()})
        own = reference(*args, **kwargs)
        assert found.dtype == own.dtype and found.shape == own.shape and found.is_contiguous()
        assert torch.isfinite(found).all()
        floor = torch.finfo(found.dtype).eps / 8  # where PyTorch happens to be exact
        # The largest of a few errors depends on the order of summation; their norm hardly does.
        for norm, factor in ((torch.linalg.vector_norm, 2), (_largest, 4)):
            allowed = factor * norm(own.double() - wanted) + floor * norm(wanted)
            assert norm(found.double() - wanted) <= allowed, norm

    return check


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax()


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Normal numbers of a shape and dtype, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * std).to(dtype)

    return make
