"""Every kernel in Triton's interpreter, on the CPU. The variable has to be set before Triton is imported.

Not collected with the rest: `tests/kernels/test_interpreter.py` runs these files in a process of their own, since
kernels that are interpreted cannot be compiled in the same one. By hand: `pytest tests/kernels/interpreted/check_*.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from torch import Tensor

from fvexport.benchmarks.studies.gpu.interpreter import corrected
from fvexport.kernels import language

if language.INSTALLED and not language.INTERPRETED:
    pytest.exit("these files need a process of their own: nothing else may have imported Triton", returncode=3)

torch.set_num_threads(1)
Judge = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _as_on_a_gpu() -> Iterator[None]:
    """Rounding, products and loops of the interpreter as a GPU has them."""
    with corrected(), _patched_once():
        yield


@contextlib.contextmanager
def _patched_once() -> Iterator[None]:
    """Within the block `tl` has the interpreter's functions throughout.

    The interpreter puts them there at each launch and again at each call of a helper, a fifth of its time.
    """
    if not language.INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda _: SimpleNamespace(restore=lambda: None))
        yield
    scope.restore()


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
