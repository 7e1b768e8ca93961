"""depthwise against PyTorch's convolution in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fvexport.kernels.depthwise import Filters, depthwise, depthwise_reference, launch_depthwise, taps_first
from fvexport.kernels.depthwise_pairs import launch_depthwise_pairs
from fvexport.kernels.depthwise_rows import float_taps, launch_depthwise_rows
from fvexport.kernels.depthwise_strips import launch_depthwise_strips
from fvexport.kernels.dispatch import Modes
from fvexport.kernels.table import Config

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF, FULL = torch.float16, torch.float32


@pytest.mark.parametrize(
    ("b", "h", "w", "c", "kernel", "stride", "multiplier", "gelu", "dtype"),
    [
        (1, 1, 1, 8, 7, 1, 1, False, HALF), (3, 3, 5, 40, 3, 1, 1, False, FULL), (1, 3, 4, 96, 7, 1, 1, False, HALF),
        (1, 5, 9, 16, 7, 1, 1, False, torch.bfloat16), (2, 6, 10, 12, 3, 2, 1, True, HALF),
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
    args = (randn(1, 5, 5, 12), randn(kernel, kernel, 12, std=1 / kernel), randn(12), stride, False)
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


ROWS_CASES = [
    # Every edge, maps smaller than a block, heights that 8 does not divide, channels that no block divides, two images.
    (1, 1, 1, 8, 7, 1, HALF), (1, 3, 2, 33, 7, 1, FULL), (2, 9, 8, 24, 7, 1, torch.bfloat16),
    (1, 9, 5, 40, 3, 1, HALF), (1, 7, 9, 16, 3, 2, HALF), (1, 5, 6, 12, 7, 2, FULL),
]  # fmt: skip
cases = pytest.mark.parametrize(("b", "h", "w", "c", "kernel", "stride", "dtype"), [
    *ROWS_CASES,
    *(
        pytest.param(b, h, w, c, kernel, stride, dtype, marks=pytest.mark.long)
        for b, h, w in ((1, 8, 8), (3, 17, 31), (2, 5, 40))
        for c in (96, 100)
        for kernel, stride in ((7, 1), (3, 1), (3, 2), (7, 2))
        for dtype in (HALF, torch.bfloat16, FULL)
    ),
])  # fmt: skip


@cases
def test_rows(
    randn: Make, judge: Judge, b: int, h: int, w: int, c: int, kernel: int, stride: int, dtype: torch.dtype
) -> None:
    args = (
        randn(b, h, w, c, dtype=dtype),
        randn(kernel, kernel, c, dtype=dtype, std=1 / kernel),
        randn(c, dtype=dtype),
    )
    taps = float_taps(args[1], c) if kernel == 3 else None
    x, weight, bias = args
    found = depthwise(x, Filters(weight, taps), bias, stride, stride == 2, kernel="depthwise_rows")
    judge(found, depthwise_reference, *args, stride, stride == 2)


@cases
def test_pairs(
    randn: Make, judge: Judge, b: int, h: int, w: int, c: int, kernel: int, stride: int, dtype: torch.dtype
) -> None:
    weight, bias = randn(kernel, kernel, 2 * c, dtype=dtype, std=1 / kernel), randn(2 * c, dtype=dtype)
    args = (randn(b, h, w, c, dtype=dtype), weight, bias, stride, stride == 2)
    taps = float_taps(weight, c) if kernel == 3 else None
    found = depthwise(args[0], Filters(weight, taps), *args[2:], kernel="depthwise_pairs")
    judge(found, depthwise_reference, *args)


@pytest.mark.parametrize(
    ("b", "h", "w", "c", "kernel", "dtype"),
    [
        (1, 1, 1, 8, 7, HALF), (1, 3, 16, 20, 7, HALF), (2, 9, 8, 40, 7, torch.bfloat16), (1, 5, 9, 33, 7, FULL),
        (1, 9, 5, 16, 3, HALF),
        *(
            pytest.param(b, h, w, c, 7, dtype, marks=pytest.mark.long)
            for b, h, w in ((1, 8, 8), (3, 17, 31), (2, 5, 40))
            for c in (96, 100)
            for dtype in (HALF, torch.bfloat16, FULL)
        ),
    ],
)  # fmt: skip
def test_strips(
    randn: Make, judge: Judge, b: int, h: int, w: int, c: int, kernel: int, dtype: torch.dtype
) -> None:  # fmt: skip
    """Widths that strips divide, so that they are inside or outside as a whole, and others."""
    args = (
        randn(b, h, w, c, dtype=dtype),
        randn(kernel, kernel, c, dtype=dtype, std=1 / kernel),
        randn(c, dtype=dtype),
    )
    found = depthwise(*args, 1, kernel == 3, kernel="depthwise_strips", modes=Modes.FAST_GELU)
    judge(found, depthwise_reference, *args, 1, kernel == 3)


@pytest.mark.parametrize("blocks", [(1, 2, 4, 8), (8, 4, 1, 16), (2, 8, 2, 32)])
@pytest.mark.parametrize("width", [8, 13])
def test_any_blocks_of_strips(randn: Make, judge: Judge, blocks: tuple[int, ...], width: int) -> None:
    args = (randn(1, 3, width, 12, dtype=HALF), randn(7, 7, 12, dtype=HALF, std=1 / 7), randn(12, dtype=HALF))
    config = Config(dict(zip(("ROWS", "STRIP", "GROUPS", "BLOCK_C"), blocks, strict=True)))
    found = launch_depthwise_strips(args[0], float_taps(args[1], 12), args[2], 1, False, config)
    judge(found, depthwise_reference, *args)


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 2)])
def test_any_rows_of_rows_and_pairs(randn: Make, judge: Judge, rows: int, kernel: int, stride: int) -> None:
    """Blocks that divide the channels (EVEN_C), and blocks that divide nothing; one row more than a program has."""
    x, config = (
        randn(1, (rows + 1) * stride, 3, 8),
        Config({"ROWS": rows, "BLOCK_W": 4, "BLOCK_C": 8 if rows < 8 else 16}),
    )
    for launch, outputs in ((launch_depthwise_rows, 1), (launch_depthwise_pairs, 2)):
        weight, bias = randn(kernel, kernel, 8 * outputs, std=1 / kernel), randn(8 * outputs)
        found = launch(x, float_taps(weight, 8), bias, stride, False, config)
        judge(found, depthwise_reference, x, weight, bias, stride, False)


def test_one_value_spreads_the_taps(randn: Make) -> None:
    """At each corner and in the middle: the taps around it, in the right order and no further, and exactly."""
    x, taps, bias = torch.zeros(1, 9, 11, 5, dtype=HALF), randn(7, 7, 5, dtype=HALF), torch.zeros(5, dtype=HALF)
    for channel, (row, column) in enumerate(((0, 0), (0, 10), (8, 0), (8, 10), (4, 5))):
        x[0, row, column, channel] = 1
    wanted = depthwise_reference(x.float(), taps.float(), bias.float())
    for kernel in ("depthwise_rows", "depthwise_strips"):
        assert torch.equal(depthwise(x, taps, bias, kernel=kernel).float(), wanted)
    both, none = torch.stack((taps, -taps), -1).flatten(2), torch.zeros(10, dtype=HALF)
    found = depthwise(x, both, none, kernel="depthwise_pairs").float()
    assert torch.equal(found[..., ::2], wanted) and torch.equal(found[..., 1::2], -wanted)


def test_gelu_in_logistic_form(randn: Make, judge: Judge) -> None:
    for kernel, outputs in (("depthwise_rows", 1), ("depthwise_pairs", 2)):
        weight, bias = randn(3, 3, 24 * outputs, dtype=HALF, std=0.3), randn(24 * outputs, dtype=HALF)
        args = (randn(1, 4, 8, 24, dtype=HALF), weight, bias, 1, True)
        found = depthwise(*args, kernel=kernel, modes=Modes.FAST_GELU)
        judge(found, depthwise_reference, *args)
        assert not torch.equal(found, depthwise(*args, kernel=kernel))


@pytest.mark.parametrize("kernel", ["depthwise", "depthwise_rows", "depthwise_strips"])
def test_float8_results(randn: Make, kernel: str) -> None:
    """Rounded to nearest (half of 2^-3 relatively, 2^-10 among subnormals), limited to 448 where they are larger."""
    x, weight, bias = randn(1, 4, 8, 40, dtype=HALF), randn(3, 3, 40, dtype=HALF, std=0.4), randn(40, dtype=HALF)
    for factor in (0.01, 400.0):
        found = depthwise(x, weight, bias, kernel=kernel, out_scale=1 / factor)
        assert found.dtype == torch.float8_e4m3fn
        wanted = depthwise_reference(x.double(), weight.double(), bias.double()) * factor
        error = (found.double() - wanted.clamp(-448, 448)).abs()
        assert (error <= 1.001 * (wanted.abs() / 16).clamp(min=2**-10)).all()
    assert (found.double().abs() == 448).any()  # some were limited
    x[0, 0, 0] = float("nan")
    assert depthwise(x, weight, bias, kernel=kernel, out_scale=1.0)[0, 0, 0].isnan().all()
