"""depthwise against PyTorch's convolution in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fvexport.kernels.depthwise import depthwise, depthwise_reference, launch_depthwise, taps_first
from fvexport.kernels.table import Config

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF, FULL = torch.float16, torch.float32


@pytest.mark.parametrize(
    ("b", "h", "w", "c", "kernel", "stride", "multiplier", "gelu", "dtype"),
    [
        (1, 1, 1, 8, 7, 1, 1, False, HALF), (3, 3, 5, 40, 3, 1, 1, False, FULL), (1, 7, 7, 96, 7, 1, 1, False, HALF),
        (1, 9, 20, 16, 7, 1, 1, False, torch.bfloat16), (2, 6, 10, 12, 3, 2, 1, True, HALF),
        (1, 7, 9, 10, 7, 2, 2, True, FULL), (1, 4, 4, 24, 3, 1, 2, True, HALF), (1, 5, 33, 33, 3, 1, 1, False, HALF),
        *(
            pytest.param(b, h, w, c, kernel, stride, multiplier, gelu, dtype, marks=pytest.mark.long)
            for b, h, w in ((1, 8, 8), (3, 13, 31))
            for c in (96, 100)
            for kernel, stride, multiplier, gelu in (
                (7, 1, 1, False), (3, 1, 1, False), (3, 2, 1, True), (7, 2, 2, True), (3, 1, 2, False)
            )
            for dtype in (HALF, torch.bfloat16, FULL)
        ),
    ],
)  # fmt: skip
def test_shapes(
    randn: Make, judge: Judge, b: int, h: int, w: int, c: int, kernel: int, stride: int, multiplier: int, gelu: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    x = randn(b, h, w, c, dtype=dtype)
    weight = randn(kernel, kernel, multiplier * c, dtype=dtype, std=1 / kernel)
    args = (x, weight, randn(multiplier * c, dtype=dtype), stride, gelu)
    judge(depthwise(*args), depthwise_reference, *args)


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 2)])
def test_any_rows(randn: Make, judge: Judge, rows: int, kernel: int, stride: int) -> None:
    args = (randn(1, 7, 6, 16), randn(kernel, kernel, 16, std=1 / kernel), randn(16), stride, False)
    config = Config({"ROWS": rows, "BLOCK_W": 4, "BLOCK_C": 8})
    judge(launch_depthwise(*args, config), depthwise_reference, *args)


def test_a_channels_last_map_is_not_copied(randn: Make, judge: Judge) -> None:
    feature_map = randn(1, 16, 5, 5).to(memory_format=torch.channels_last)
    x = feature_map.permute(0, 2, 3, 1)
    assert x.is_contiguous() and x.data_ptr() == feature_map.data_ptr()
    conv = nn.Conv2d(16, 32, 3, padding=1, groups=16)
    with torch.inference_mode():
        found = depthwise(x, taps_first(conv.weight), conv.bias)
        torch.testing.assert_close(found.permute(0, 3, 1, 2), conv(feature_map), rtol=1e-5, atol=1e-5)


def test_what_is_not_contiguous(randn: Make, judge: Judge) -> None:
    x, weight = randn(2, 16, 5, 6, dtype=HALF).permute(0, 2, 3, 1), randn(16, 3, 3, dtype=HALF).permute(1, 2, 0)
    args = (x, weight, randn(32, dtype=HALF)[::2])
    assert not x.is_contiguous() and not weight.is_contiguous()
    judge(depthwise(*args), depthwise_reference, *args)
