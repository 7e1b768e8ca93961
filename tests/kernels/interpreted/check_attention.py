"""attention against SDPA in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvexport.kernels.attention import attention, attention_reference, launch_attention
from fvexport.kernels.table import Config

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF, FULL = torch.float16, torch.float32


@pytest.mark.parametrize(
    ("b", "n", "heads", "dtype"),
    [
        (1, 1, 3, HALF), (3, 15, 1, FULL), (1, 49, 24, HALF), (1, 64, 3, torch.bfloat16), (1, 64, 1, FULL),
        (3, 100, 1, HALF), (1, 255, 1, torch.bfloat16), (1, 255, 3, HALF), (1, 1024, 1, HALF), (1, 16, 48, HALF),
        *(
            pytest.param(b, n, heads, dtype, marks=pytest.mark.long)
            for b, heads in ((1, 24), (1, 48), (3, 3))
            for n in (1, 15, 49, 64, 100, 255, 1024)
            for dtype in (HALF, torch.bfloat16, FULL)
        ),
    ],
)  # fmt: skip
def test_shapes(randn: Make, judge: Judge, b: int, n: int, heads: int, dtype: torch.dtype) -> None:
    qkv = randn(b, n, 96 * heads, dtype=dtype)
    judge(attention(qkv, heads), attention_reference, qkv, heads)


@pytest.mark.parametrize("blocks", [(16, 16), (64, 32), (128, 64), (32, 128)])
def test_any_blocks(randn: Make, judge: Judge, blocks: tuple[int, int]) -> None:
    qkv = randn(1, 70, 96, dtype=HALF)
    config = Config({"BLOCK_M": blocks[0], "BLOCK_N": blocks[1]})
    judge(launch_attention(qkv, 1, config), attention_reference, qkv, 1)


@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_scores_of_300(judge: Judge, randn: Make, dtype: torch.dtype) -> None:
    """exp(300) is no float32: only differences from the row's maximum may be raised."""
    qkv = torch.zeros(1, 40, 3, 1, 32, dtype=dtype)
    qkv[..., 0, :, 0] = 30
    qkv[0, :, 1, 0, 0] = torch.linspace(-10, 10, 40).to(dtype)
    qkv[..., 2, :, :] = randn(1, 40, 1, 32, dtype=dtype)
    judge(attention(qkv.reshape(1, 40, 96), 1), attention_reference, qkv.reshape(1, 40, 96), 1)


def test_equal_keys_average_the_values(randn: Make, judge: Judge) -> None:
    qkv = randn(1, 33, 96, dtype=HALF)
    qkv[..., :64] = 2
    found = attention(qkv, 1)
    judge(found, attention_reference, qkv, 1)
    assert (found - qkv[..., 64:].double().mean(1, keepdim=True)).abs().amax() < 1e-3


def test_what_is_not_contiguous(randn: Make, judge: Judge) -> None:
    qkv = randn(2, 96 * 3, 20, dtype=HALF).transpose(1, 2)
    assert not qkv.is_contiguous()
    judge(attention(qkv, 3), attention_reference, qkv, 3)


def test_each_image_and_head_by_itself(randn: Make) -> None:
    """Nothing leaks from one image or head to another, at whatever position it stands."""
    qkv = randn(3, 17, 3, 4, 32, dtype=FULL)
    whole = attention(qkv.reshape(3, 17, -1), 4).reshape(3, 17, 4, 32)
    alone = attention(qkv[1:2, :, :, 2:3].reshape(1, 17, -1), 1)
    torch.testing.assert_close(whole[1, :, 2], alone[0], rtol=0, atol=0)
