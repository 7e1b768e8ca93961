"""norm_linear, linear_residual, linear_gelu and mlp against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fvexport.kernels.linear_gelu import linear_gelu, linear_gelu_reference
from fvexport.kernels.linear_residual import linear_residual, linear_residual_reference
from fvexport.kernels.mlp import mlp, mlp_reference, parts_of
from fvexport.kernels.norm_linear import norm_linear, norm_linear_reference, rows_per_program

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF, FULL = torch.float16, torch.float32

# Rows, channels in, channels out: fewer than a block, several, and none a multiple of one.
SHAPES = [
    (1, 32, 96, HALF), (15, 100, 70, HALF), (49, 96, 288, torch.bfloat16), (64, 64, 64, FULL), (100, 40, 130, FULL),
    (255, 192, 100, HALF),
    *(
        pytest.param(m, k, n, dtype, marks=pytest.mark.long)
        for m in (1, 15, 49, 64, 100, 255, 1024)
        for k, n in ((20, 60), (384, 130), (768, 256))
        for dtype in (HALF, torch.bfloat16, FULL)
    ),
]  # fmt: skip
shapes = pytest.mark.parametrize(("m", "k", "n", "dtype"), SHAPES)


def tensors(randn: Make, m: int, k: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return randn(1, m, k, dtype=dtype), randn(n, k, dtype=dtype, std=k**-0.5), randn(n, dtype=dtype)


@shapes
def test_norm_linear(randn: Make, judge: Judge, m: int, k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(randn, m, k, n, dtype)
    x = x * 3 + 1
    judge(norm_linear(x, weight, bias), norm_linear_reference, x, weight, bias)


def test_statistics_of_several_rows(randn: Make, judge: Judge) -> None:
    """Rows that several do not divide; the rest of a program's block is outside."""
    assert [rows_per_program(m, k) for m, k in ((1, 16), (255, 256), (271, 64), (1024, 1024), (10**6, 2048))] == [
        1, 1, 2, 4, 2
    ]  # fmt: skip
    x, weight, bias = tensors(randn, 271, 40, 24, HALF)
    judge(norm_linear(x, weight, bias), norm_linear_reference, x, weight, bias)


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
@pytest.mark.parametrize("mean", [1.0, 30.0, 1000.0])
def test_rows_far_from_zero(randn: Make, judge: Judge, dtype: torch.dtype, mean: float) -> None:
    """Where the mean is many times the deviation the correction cancels nearly all of the product."""
    x, weight, bias = tensors(randn, 20, 64, 40, dtype)
    x = (x.float() + mean).to(dtype)
    judge(norm_linear(x, weight, bias), norm_linear_reference, x, weight, bias)


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
@pytest.mark.parametrize("value", [0.0, 3.0, 1001.0, -60000.0])
def test_equal_channels_leave_the_bias(randn: Make, dtype: torch.dtype, value: float) -> None:
    """LayerNorm of a constant row is 0, eps or not; its neighbours in the tile are as ever."""
    x, weight, bias = tensors(randn, 20, 96, 40, dtype)
    x[0, 7] = value
    found = norm_linear(x, weight, bias)
    torch.testing.assert_close(found[0, 7], bias, rtol=0, atol=0)
    others = norm_linear_reference(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(found[0, 8].double(), others[0, 8], rtol=2e-2, atol=2e-2)


def test_large_and_small_deviations(randn: Make, judge: Judge) -> None:
    x, weight, bias = tensors(randn, 6, 96, 40, HALF)
    x *= torch.tensor([1e-4, 1e-2, 1, 100, 3000, 1e4], dtype=HALF)[:, None]
    judge(norm_linear(x, weight, bias, 1e-7), norm_linear_reference, x, weight, bias, 1e-7)


@shapes
def test_linear_residual(randn: Make, judge: Judge, m: int, k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(randn, m, k, n, dtype)
    args = (x, weight, bias, randn(1, m, n, dtype=dtype))
    judge(linear_residual(*args), linear_residual_reference, *args)


def test_layer_scale(randn: Make, judge: Judge) -> None:
    args = (*tensors(randn, 20, 64, 40, HALF), randn(1, 20, 40, dtype=HALF), randn(40, dtype=HALF))
    judge(linear_residual(*args), linear_residual_reference, *args)


@shapes
def test_linear_gelu(randn: Make, judge: Judge, m: int, k: int, n: int, dtype: torch.dtype) -> None:
    args = tensors(randn, m, k, n, dtype)
    judge(linear_gelu(*args), linear_gelu_reference, *args)


def test_gelu_far_out(judge: Judge) -> None:
    """erf at both ends: 0 on the left, the value itself on the right."""
    x = torch.linspace(-30, 30, 64, dtype=HALF)[None]
    eye, none = torch.eye(64, dtype=HALF), torch.zeros(64, dtype=HALF)
    judge(linear_gelu(x, eye, none), linear_gelu_reference, x, eye, none)


@pytest.mark.parametrize(
    ("m", "c", "hidden", "dtype"),
    [
        (1, 8, 32, HALF), (15, 20, 80, FULL), (33, 96, 96, HALF), (40, 48, 192, torch.bfloat16), (70, 96, 384, HALF),
        (20, 384, 64, HALF), (20, 100, 100, torch.bfloat16), (17, 48, 100, FULL),
        *(
            pytest.param(m, c, 4 * c, dtype, marks=pytest.mark.long)
            for m in (1, 49, 100, 255)
            for c in (96, 100, 192, 384)
            for dtype in (HALF, torch.bfloat16, FULL)
        ),
    ],
)  # fmt: skip
def test_mlp(randn: Make, judge: Judge, m: int, c: int, hidden: int, dtype: torch.dtype) -> None:
    args = mlp_tensors(randn, m, c, hidden, dtype)
    judge(mlp(*args), mlp_reference, *args)


def mlp_tensors(randn: Make, m: int, c: int, hidden: int, dtype: torch.dtype) -> Any:
    return (
        randn(1, m, c, dtype=dtype), randn(hidden, c, dtype=dtype, std=c**-0.5), randn(hidden, dtype=dtype),
        randn(c, hidden, dtype=dtype, std=hidden**-0.5), randn(c, dtype=dtype), randn(1, m, c, dtype=dtype),
    )  # fmt: skip


@pytest.mark.parametrize(("c", "parts"), [(8, (16, 1)), (96, (32, 3)), (384, (128, 3)), (64, (64, 1)), (100, (128, 1))])
def test_parts(c: int, parts: tuple[int, int]) -> None:
    assert parts_of(c) == parts


def test_wider_than_registers_is_pytorch(randn: Make) -> None:
    args = mlp_tensors(randn, 3, 400, 20, FULL)
    torch.testing.assert_close(mlp(*args), mlp_reference(*args), rtol=0, atol=0)


def test_what_is_not_contiguous(randn: Make, judge: Judge) -> None:
    x, weight = randn(32, 2, 10, dtype=HALF).permute(1, 2, 0), randn(32, 48, dtype=HALF, std=0.2).T
    bias, residual = randn(96, dtype=HALF)[::2], randn(48, 2, 10, dtype=HALF).permute(1, 2, 0)
    judge(norm_linear(x, weight, bias), norm_linear_reference, x, weight, bias)
    judge(linear_gelu(x, weight, bias), linear_gelu_reference, x, weight, bias)
    judge(linear_residual(x, weight, bias, residual), linear_residual_reference, x, weight, bias, residual)
    args = [t.T if t.ndim == 2 else t for t in mlp_tensors(randn, 5, 32, 64, HALF)]
    args[1], args[3] = args[3], args[1]
    judge(mlp(*args), mlp_reference, *args)
