"""The two forms of GELU against float64, by themselves and as the end of each operator that has one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvexport.kernels.depthwise import depthwise, depthwise_reference
from fvexport.kernels.dispatch import Modes
from fvexport.kernels.language import jit, tl
from fvexport.kernels.linear_gelu import linear_gelu, linear_gelu_reference
from fvexport.kernels.mlp import mlp, mlp_reference
from fvexport.kernels.tiles import fast_gelu, gelu_as

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@jit
def apply(x_ptr, y_ptr, N: tl.constexpr, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, N)
    tl.store(y_ptr + place, fast_gelu(tl.load(x_ptr + place), PAIRS))


@jit
def apply_as(x_ptr, y_ptr, N: tl.constexpr, GELU: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, N)
    tl.store(y_ptr + place, gelu_as(tl.load(x_ptr + place), GELU))


def fast(x: Tensor, pairs: bool = False) -> Tensor:
    y = torch.empty_like(x)
    apply[(1,)](x, y, len(x), pairs)
    return y


@pytest.mark.parametrize("pairs", [False, True])
def test_error_is_at_most_a_quarter_of_what_fp16_rounds(pairs: bool) -> None:
    normal = torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    for x in (normal, 3 * normal, torch.linspace(-20, 20, 2**16)):
        y, wanted = fast(x, pairs).double(), torch.nn.functional.gelu(x.double())
        assert (y - wanted).abs().max() <= 2.7e-5
        assert (y - wanted).norm() <= 0.25 * (wanted.half().double() - wanted).norm()


def test_far_from_zero() -> None:
    """Nothing on the left, the value itself on the right, where the polynomial alone would turn around."""
    x = torch.tensor([-1e30, -3e4, -60.0, -12.0, 12.0, 60.0, 3e4, 1e30])
    torch.testing.assert_close(fast(x), x.clamp(min=0), rtol=0, atol=1e-9)
    assert fast(torch.tensor([float("nan")])).isnan()


def test_far_from_zero_in_pairs() -> None:
    """The same, in the range of float16; a value that is no number changes no other."""
    x = torch.tensor([-3e4, -60.0, -12.0, 12.0, 60.0, 3e4, float("nan"), 1.0]).repeat(128)
    y = fast(x, pairs=True)
    numbers = ~x.isnan()
    torch.testing.assert_close(y[numbers], fast(x)[numbers], rtol=1e-6, atol=1e-9)
    assert y[~numbers].isnan().all()


@pytest.mark.parametrize(("form", "wanted"), [(0, lambda x: x), (1, torch.nn.functional.gelu), (2, fast)])
def test_form(form: int, wanted: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-4, 4, 64)
    y = torch.empty_like(x)
    apply_as[(1,)](x, y, 64, form)
    torch.testing.assert_close(y, wanted(x), rtol=0, atol=1e-6)


@HALVES
def test_operators_that_end_with_it(randn: Make, judge: Judge, dtype: torch.dtype) -> None:
    modes = Modes.FAST_GELU
    x, w, b = randn(40, 48, dtype=dtype), randn(96, 48, dtype=dtype, std=0.15), randn(96, dtype=dtype)
    judge(linear_gelu(x, w, b, modes=modes), linear_gelu_reference, x, w, b)
    w2, b2 = randn(48, 96, dtype=dtype, std=0.1), randn(48, dtype=dtype)
    judge(mlp(x, w, b, w2, b2, x, modes=modes), mlp_reference, x, w, b, w2, b2, x)
    image, taps, bias = randn(1, 6, 9, 20, dtype=dtype), randn(7, 7, 40, dtype=dtype, std=0.2), randn(40, dtype=dtype)
    judge(depthwise(image, taps, bias, 2, True, modes=modes), depthwise_reference, image, taps, bias, 2, True)
    assert not torch.equal(linear_gelu(x, w, b, modes=modes), linear_gelu(x, w, b))  # it is another form


def test_float32_is_computed_by_erf(randn: Make) -> None:
    args = (randn(20, 48), randn(96, 48, std=0.15), randn(96))
    assert torch.equal(linear_gelu(*args, modes=Modes.FAST_GELU), linear_gelu(*args))
