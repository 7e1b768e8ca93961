"""FP8: rounding against PyTorch's, products against float64 of the same quantized numbers, and what writes FP8."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvexport.kernels.attention import attention, attention_reference
from fvexport.kernels.fp8 import FP8, FP8_MAX, End
from fvexport.kernels.linear_fp8 import launch_linear_fp8, linear_fp8, linear_fp8_reference
from fvexport.kernels.norm_fp8 import norm_fp8, norm_fp8_reference
from fvexport.kernels.quantize_fp8 import quantize_fp8, quantize_fp8_reference
from fvexport.kernels.table import Config

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF, FULL = torch.float16, torch.float32


def every_fp8() -> Tensor:
    """All 253 finite numbers of E4M3, in order."""
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    return numbers[numbers.isfinite()].unique()


def steps_apart(found: Tensor, wanted: Tensor) -> Tensor:
    """How many numbers of E4M3 lie between each pair."""
    numbers = every_fp8()
    return (torch.searchsorted(numbers, found.float()) - torch.searchsorted(numbers, wanted.float())).abs()


def check_rounded(found: Tensor, wanted: Tensor) -> None:
    """The same FP8 numbers, but for a few values so near the middle of two that float32 sums decide."""
    assert found.dtype == wanted.dtype == FP8 and found.shape == wanted.shape and found.is_contiguous()
    apart = steps_apart(found, wanted)
    assert apart.max() <= 1 and (apart > 0).double().mean() <= 2e-3


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0123, 3.7])
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
def test_rounding(scale: float, dtype: torch.dtype) -> None:
    """Every number of E4M3, every middle of two (ties to even), zeros, saturation on both sides."""
    numbers = every_fp8()
    middles = (numbers[1:] + numbers[:-1]) / 2
    far = torch.tensor([0.0, -0.0, 448.1, 464, 479, 480, 1e4, -448.1, -464, -6e4, 2**-10, -(2**-10), 2**-11, 1e-7])
    x = (torch.cat([numbers, middles, far]) * scale).to(dtype)
    found, wanted = quantize_fp8(x, scale), quantize_fp8_reference(x, scale)
    exact = math.log2(scale).is_integer()  # then 1 / scale is a float
    if exact:
        torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=0)
        assert torch.equal(found.float().signbit(), wanted.float().signbit())
    else:
        assert steps_apart(found, wanted).max() <= 1
    assert found.float().abs().max() == FP8_MAX


def test_what_is_not_finite() -> None:
    found = quantize_fp8(torch.tensor([math.inf, -math.inf, math.nan]), 0.5).float()
    assert found[:2].tolist() == [FP8_MAX, -FP8_MAX] and found[2].isnan()


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 2500)])
@pytest.mark.parametrize("gelu", [False, True])
def test_quantize(randn: Make, shape: tuple[int, ...], gelu: bool) -> None:
    x = randn(*shape, dtype=HALF, std=3)
    check_rounded(quantize_fp8(x, 0.01, gelu=gelu), quantize_fp8_reference(x.double(), 0.01, gelu))


# Rows, channels in, channels out: one, fewer than a block, several, and none a multiple of one.
SHAPES = [(1, 16, 1), (1, 384, 96), (7, 100, 70), (65, 48, 33), (130, 256, 140), (513, 40, 20)]


def product(randn: Make, m: int, k: int, n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (
        randn(1, m, k, std=60).clamp(-FP8_MAX, FP8_MAX).to(FP8), randn(n, k, std=60).to(FP8),
        (randn(n).abs() + 0.1) * 1e-3 / 60 / k**0.5, randn(n, dtype=dtype),
    )  # fmt: skip


def exact(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, end: End) -> Tensor:
    residual = None if end.residual is None else end.residual.double()
    return linear_fp8_reference(x, weight, scale.double(), bias.double(), End(end.gelu, residual, end.out_scale))


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("end", ["nothing", "gelu", "residual"])
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
def test_product(randn: Make, m: int, k: int, n: int, end: str, dtype: torch.dtype) -> None:
    """In the model's dtype: as near to float64 as rounding to that dtype allows."""
    tensors = product(randn, m, k, n, dtype)
    chosen = End(end == "gelu", randn(1, m, n, dtype=dtype) if end == "residual" else None)
    found, wanted = linear_fp8(*tensors, chosen), exact(*tensors, chosen)
    assert found.dtype == dtype and found.shape == (1, m, n) and found.is_contiguous()
    floor = max(torch.finfo(dtype).eps, 1e-6)
    assert (found.double() - wanted).abs().max() <= floor * wanted.abs().max()
    assert (found.double() - wanted).norm() <= floor / 2 * wanted.norm()


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_product_in_fp8(randn: Make, m: int, k: int, n: int, gelu: bool) -> None:
    tensors = product(randn, m, k, n, HALF)
    end = End(gelu=gelu, out_scale=0.004)
    check_rounded(linear_fp8(*tensors, end), exact(*tensors, end))


def test_product_that_saturates(randn: Make) -> None:
    """Results beyond the largest number become it; half of them would overflow FP16 on the way."""
    x, weight, scale, bias = product(randn, 9, 64, 40, HALF)
    end = End(out_scale=1e-4)
    found = linear_fp8(x, weight, scale * 1e6, bias, end)
    check_rounded(found, exact(x, weight, scale * 1e6, bias, end))
    assert (found.float().abs() == FP8_MAX).double().mean() > 0.9


@pytest.mark.parametrize("promote", [0, 1])
@pytest.mark.parametrize("blocks", [(16, 16, 32), (64, 32, 64), (32, 64, 128)])
def test_any_blocks(randn: Make, promote: int, blocks: tuple[int, int, int]) -> None:
    tensors = product(randn, 70, 200, 50, HALF)
    sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks, strict=True))
    end = End(residual=randn(1, 70, 50, dtype=HALF))
    found = launch_linear_fp8(*tensors, end, Config({**sizes, "GROUP_M": 8, "PROMOTE": promote}))
    assert (found.double() - exact(*tensors, end)).norm() <= 5e-4 * exact(*tensors, end).norm()


def test_product_of_zeros(randn: Make) -> None:
    x, weight, scale, bias = product(randn, 5, 32, 16, HALF)
    torch.testing.assert_close(linear_fp8(x.float().mul(0).to(FP8), weight, scale, bias), bias.expand(1, 5, 16))


def test_subnormal_numbers_count(randn: Make) -> None:
    """E4M3 has eight numbers below 2^-6: products of them are as exact as the others."""
    x = (torch.arange(-7, 8) * 2.0**-9).to(FP8).repeat(2)[None, :16]
    weight, scale, bias = randn(8, 16).mul(2.0**-8).to(FP8), torch.ones(8), torch.zeros(8)
    assert ((x.float() != 0) & (x.float().abs() < 2**-6)).any()
    torch.testing.assert_close(
        linear_fp8(x, weight, scale, bias).double(), x.double() @ weight.double().T, rtol=1e-6, atol=0
    )


def test_what_is_not_contiguous(randn: Make) -> None:
    x, weight, scale, bias = product(randn, 12, 32, 48, HALF)
    strided = (x.transpose(1, 2).contiguous().transpose(1, 2), weight.T.contiguous().T, scale, bias)
    assert not strided[0].is_contiguous() and not strided[1].is_contiguous()
    residual = randn(1, 48, 12, dtype=HALF).transpose(1, 2)
    torch.testing.assert_close(
        linear_fp8(*strided, End(residual=residual)),
        linear_fp8(x, weight, scale, bias, End(residual=residual.contiguous())), rtol=0, atol=0,
    )  # fmt: skip


@pytest.mark.parametrize(("m", "k"), [(1, 16), (3, 100), (5, 384), (2, 1536)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
def test_norm(randn: Make, m: int, k: int, affine: bool, dtype: torch.dtype) -> None:
    x = (randn(1, m, k) * 3 + 5).to(dtype)
    weight, bias = (randn(k, dtype=dtype), randn(k, dtype=dtype)) if affine else (None, None)
    wide = [None if t is None else t.double() for t in (weight, bias)]
    check_rounded(norm_fp8(x, weight, bias, 0.01), norm_fp8_reference(x.double(), wide[0], wide[1], 0.01))


def test_norm_of_equal_channels_is_the_bias(randn: Make) -> None:
    x, bias = torch.full((3, 96), 1001.0, dtype=HALF), randn(96, dtype=HALF)
    found = norm_fp8(x, randn(96, dtype=HALF), bias, 0.02)
    torch.testing.assert_close(found.float(), quantize_fp8_reference(bias, 0.02).float().expand(3, 96), rtol=0, atol=0)


def test_norm_far_from_zero(randn: Make) -> None:
    x = randn(4, 64) + 1000
    check_rounded(norm_fp8(x, None, None, 0.01), norm_fp8_reference(x.double(), None, None, 0.01))


@pytest.mark.parametrize("n", [1, 15, 100])
def test_attention(randn: Make, n: int) -> None:
    qkv = randn(2, n, 96 * 2, dtype=HALF)
    found = attention(qkv, 2, out_scale=0.003)
    wanted = attention_reference(qkv.double(), 2, 0.003)
    assert found.dtype == FP8 and found.shape == wanted.shape
    # Softmax's weights are rounded to FP16 before they multiply v, as without a scale: a few values round otherwise.
    assert (steps_apart(found, wanted) > 0).double().mean() <= 2e-2
    assert (found.float() - wanted.float()).norm() <= 2e-2 * wanted.float().norm()
