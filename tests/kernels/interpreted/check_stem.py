"""stem against PyTorch's convolution and GELU in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fvexport.kernels.dispatch import Modes
from fvexport.kernels.stem import flat_taps, launch_stem, stem, stem_reference
from fvexport.kernels.table import Config

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


def levels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Independent of the taps' order in `flat_taps`: the convolution with the weight as the model has it."""
    y = nn.functional.conv2d(x.to(weight.dtype), weight, bias, stride=2, padding=1)
    return nn.functional.gelu(y).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(
    ("b", "h", "w", "c", "dtype"),
    [
        (1, 1, 1, 8, HALF), (1, 2, 2, 16, FULL), (2, 5, 7, 8, BRAIN), (1, 32, 32, 96, HALF), (1, 6, 1, 100, HALF),
        (1, 1, 9, 33, FULL), (3, 4, 34, 24, HALF), (1, 31, 2, 8, HALF),
        *(
            pytest.param(b, h, w, c, dtype, marks=pytest.mark.long)
            for b, h, w in ((1, 33, 65), (2, 64, 192))
            for c in (8, 96, 130)
            for dtype in (HALF, BRAIN, FULL)
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("modes", [Modes.NONE, Modes.FAST_GELU])
def test_shapes(randn: Make, judge: Judge, b: int, h: int, w: int, c: int, dtype: torch.dtype, modes: Modes) -> None:
    x = randn(b, 3, h, w, dtype=dtype)
    weight, bias = randn(c, 3, 3, 3, dtype=dtype, std=0.2), randn(c, dtype=dtype)
    judge(stem(x, flat_taps(weight), bias, modes=modes), reference, x, weight, bias)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_levels(randn: Make, judge: Judge, dtype: torch.dtype) -> None:
    """Levels with 1/255 in the weight, as a uint8 model has it, rounded once."""
    x = levels(2, 3, 9, 14)
    weight, bias = (randn(24, 3, 3, 3, std=0.2) / 255).to(dtype), randn(24, dtype=dtype)
    judge(stem(x, flat_taps(weight), bias), reference, x, weight, bias)


def test_every_level_is_exact() -> None:
    """A tap of 1 alone passes each level on, in every half type."""
    x = torch.arange(256, dtype=torch.uint8).repeat(3, 2, 1)[None]  # (1, 3, 2, 256)
    for dtype in (HALF, BRAIN):
        weight = torch.zeros(8, 3, 3, 3, dtype=dtype)
        weight[0, 1, 1, 1], weight[1, 1, 1, 2] = 1, 1  # even columns, and odd ones
        y = stem(x, flat_taps(weight), torch.full((8,), 10.0, dtype=dtype))  # GELU is the identity there
        found = torch.stack((y[0, 0, :, 0], y[0, 0, :, 1]), -1).flatten().float() - 10
        exact = (torch.arange(256.0) + 10).to(dtype).float() - 10
        assert torch.equal(found, exact)


@pytest.mark.parametrize("blocks", [(16, 16, 1), (32, 64, 1), (64, 16, 2), (128, 32, 4)])
def test_any_blocks(randn: Make, judge: Judge, blocks: tuple[int, int, int]) -> None:
    """Also parts beyond the last channel, and channels that several programs share."""
    args = (randn(2, 3, 10, 13, dtype=HALF), randn(40, 3, 3, 3, dtype=HALF, std=0.2), randn(40, dtype=HALF))
    config = Config(dict(zip(("BLOCK_M", "BLOCK_N", "SPLIT_N"), blocks, strict=True)))
    judge(launch_stem(args[0], flat_taps(args[1]), args[2], config), reference, *args)


@pytest.mark.parametrize("layout", ["channels-last", "transposed", "every other pixel"])
def test_any_strides(randn: Make, judge: Judge, layout: str) -> None:
    x = {
        "channels-last": randn(2, 3, 8, 6, dtype=HALF).to(memory_format=torch.channels_last),
        "transposed": randn(2, 3, 6, 8, dtype=HALF).transpose(2, 3),
        "every other pixel": randn(2, 3, 16, 12, dtype=HALF)[:, :, ::2, ::2],
    }[layout]
    weight = randn(16, 3, 3, 3, dtype=HALF, std=0.2).to(memory_format=torch.channels_last)
    args = (x, weight, randn(32, dtype=HALF)[::2])
    judge(stem(x, flat_taps(weight), args[2]), reference, *args)


def test_the_padding_is_zero_beside_other_memory(randn: Make) -> None:
    """Neither rows above the image nor its neighbours in memory count: all around is NaN."""
    around = torch.full((2, 5, 12, 12), float("nan"), dtype=HALF)
    around[:, 1:4, 2:10, 2:10] = x = randn(2, 3, 8, 8, dtype=HALF)
    weight, bias = flat_taps(randn(16, 3, 3, 3, dtype=HALF)), randn(16, dtype=HALF)
    assert torch.equal(stem(around[:, 1:4, 2:10, 2:10], weight, bias), stem(x, weight, bias))


def test_its_own_reference(randn: Make) -> None:
    args = (randn(1, 3, 7, 6), randn(8, 3, 3, 3), randn(8))
    torch.testing.assert_close(stem_reference(args[0], flat_taps(args[1]), args[2]), reference(*args))
