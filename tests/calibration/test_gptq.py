"""Integer weights beside plain rounding: never worse on what was seen, far better where inputs vary together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fvexport.calibration.gptq import CLIPS, RoundedWeight, round_weight, weight_scale
from fvexport.calibration.histograms import Moments
from fvexport.calibration.qdq import FP8, FP8_MAX
from fvexport.core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

FORMATS = [torch.int8, FP8]
HAIR = 1 + 1e-4


def moments_of(rows: Tensor) -> Moments:
    moments = Moments.empty(rows.shape[1])
    moments.add(rows)
    return moments


def correlated(generator: torch.Generator, count: int, width: int, rank: int, noise: float) -> Tensor:
    """(count, width) rows around a mean far from 0, most of whose variance lies in `rank` directions."""
    rows = torch.randn(count, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
    rows += noise * torch.randn(count, width, generator=generator)
    return rows + 3 * torch.randn(width, generator=generator)


def nearest(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, K) each weight at its nearest step."""
    steps = weight / scale[:, None]
    steps = steps.clamp(-FP8_MAX, FP8_MAX).to(FP8).float() if dtype == FP8 else steps.round().clamp(-127, 127)
    return steps * scale[:, None]


def lost(weight: Tensor, rounded: Tensor, rows: Tensor) -> Tensor:
    """(N,) variance over the rows of what rounding changed in each product, in float64: the mean is the bias's."""
    change = rows.double() @ (rounded.double() - weight.double()).T
    return change.var(0, correction=0)


def check_sound(found: RoundedWeight, weight: Tensor, dtype: torch.dtype) -> None:
    assert found.values.shape == weight.shape
    assert found.values.dtype == dtype
    values = found.values.float()
    assert values.abs().max() <= (FP8_MAX if dtype == FP8 else 127)
    assert torch.isfinite(values).all() and torch.isfinite(found.scale).all() and torch.isfinite(found.bias).all()
    assert (found.scale > 0).all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_correlated_inputs(dtype: torch.dtype) -> None:
    """Layers as wide as several blocks of columns, at the correlation that pointwise convolutions see."""
    generator = torch.Generator().manual_seed(0)
    rows = correlated(generator, 4000, 300, 24, 0.3)
    weight, bias = torch.randn(40, 300, generator=generator) / 17, torch.randn(40, generator=generator)
    before = weight.clone()
    found = round_weight(weight, bias, moments_of(rows), dtype)
    assert torch.equal(weight, before)
    check_sound(found, weight, dtype)
    plain = lost(weight, nearest(weight, found.scale, dtype), rows)
    ours = lost(weight, found.dequantized(), rows)
    assert (ours <= plain * HAIR).all()
    assert ours.sum() < 0.3 * plain.sum()
    other = correlated(torch.Generator().manual_seed(0), 4000, 300, 24, 0.3)[2000:]
    assert (
        lost(weight, found.dequantized(), other).sum()
        < 0.4 * lost(weight, nearest(weight, found.scale, dtype), other).sum()
    )


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("width", [1, 7, 129])
def test_inputs_that_vary_alone(dtype: torch.dtype, width: int) -> None:
    """Nothing can be paid back: the nearest step, whatever the order of columns."""
    generator = torch.Generator().manual_seed(width)
    count = 1000
    alone = Moments(count, torch.zeros(width), torch.zeros(width).double(), count * torch.eye(width))
    weight = torch.randn(5, width, generator=generator)
    found = round_weight(weight, torch.zeros(5), alone, dtype)
    assert torch.equal(found.dequantized(), nearest(weight, found.scale, dtype))
    assert torch.equal(found.bias, torch.zeros(5))


@st.composite
def layers(draw: Any) -> tuple[Tensor, Tensor]:
    """Rows of any number, rank and noise; weights whose columns differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    width, outputs, count = draw(st.integers(1, 50)), draw(st.integers(1, 8)), draw(st.integers(2, 200))
    rows = correlated(generator, count, width, draw(st.integers(1, width)), 10 ** draw(st.floats(-4, 0)))
    weight = torch.randn(outputs, width, generator=generator)
    weight *= torch.exp(draw(st.floats(0, 2)) * torch.randn(width, generator=generator))
    return rows, weight


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_never_worse(dtype: torch.dtype) -> None:
    @settings(max_examples=60, deadline=None)
    @given(layers())
    def check(layer: tuple[Tensor, Tensor]) -> None:
        rows, weight = layer
        found = round_weight(weight, torch.zeros(len(weight)), moments_of(rows), dtype)
        check_sound(found, weight, dtype)
        ours, plain = lost(weight, found.dequantized(), rows), lost(weight, nearest(weight, found.scale, dtype), rows)
        # What float32 makes of a covariance that is not quite of full rank.
        noise = 1e-6 * rows.var(0, correction=0).max() * found.scale.square() * weight.shape[1]
        assert (ours <= plain * 1.001 + noise).all()

    check()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("count", [1, 3, 400])
def test_the_mean_is_exact(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = correlated(generator, count, 30, 6, 0.3)
    weight, bias = torch.randn(9, 30, generator=generator), torch.randn(9, generator=generator)
    found = round_weight(weight, bias, moments_of(rows), dtype)
    wanted = (rows.double() @ weight.double().T + bias).mean(0)
    mean = (rows.double() @ found.dequantized().double().T + found.bias.double()).mean(0)
    torch.testing.assert_close(mean, wanted, rtol=0, atol=2e-6 * float(rows.abs().max()) * 30**0.5)
    uncorrected = (rows.double() @ found.dequantized().double().T + bias).mean(0)
    assert (uncorrected - wanted).abs().max() > 100 * (mean - wanted).abs().max()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_odd_layers(dtype: torch.dtype) -> None:
    """Rows and columns of zeros, inputs that never vary, one input, fewer samples than columns."""
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(4, 12, generator=generator), torch.randn(4, generator=generator)
    weight[1] = 0
    weight[:, 5] = 0
    weight[2] *= 1e-7
    few = correlated(generator, 3, 12, 3, 0.1)
    constant = few[:1].expand(50, 12)
    half_constant = torch.cat([constant[:, :6], torch.randn(50, 6, generator=generator)], 1)
    for rows in (few, constant, half_constant, torch.zeros(5, 12)):
        found = round_weight(weight, bias, moments_of(rows), dtype)
        check_sound(found, weight, dtype)
        assert (found.values[1].float() == 0).all() and found.bias[1] == bias[1]
        assert (found.values[:, 5].float() == 0).all()
        wanted = rows.double() @ weight.double().T + bias
        made = rows.double() @ found.dequantized().double().T + found.bias
        assert (made - wanted).abs().max() <= 0.1 * float(wanted.abs().max())
        if rows is not few and rows is not half_constant:
            assert (made - wanted).abs().max() <= 1e-5 * float(wanted.abs().max())
    one = round_weight(weight[:, :1], bias, moments_of(few[:, :1]), dtype)
    check_sound(one, weight[:, :1], dtype)
    assert (one.dequantized() - weight[:, :1]).abs().max() <= weight[:, :1].abs().max() / 100
    check_sound(
        round_weight(torch.zeros(2, 3), torch.zeros(2), moments_of(few[:, :3]), dtype), torch.zeros(2, 3), dtype
    )


def test_correlations_that_are_no_covariance() -> None:
    """As float16 leaves them: eigenvalues below zero must not stop the rounding."""
    generator = torch.Generator().manual_seed(5)
    rows = correlated(generator, 40, 30, 2, 1e-3)
    moments = moments_of(rows)
    noisy = moments.outer * (1 + 1e-2 * torch.randn(30, 30, generator=generator))
    moments.outer = (noisy + noisy.T) / 2
    assert torch.linalg.eigvalsh(moments.covariance.double()).min() < -0.01 * moments.covariance.diagonal().mean()
    weight = torch.randn(6, 30, generator=generator)
    found = round_weight(weight, torch.zeros(6), moments, torch.int8)
    check_sound(found, weight, torch.int8)
    assert (found.dequantized() - weight).abs().max() < 0.2


@pytest.mark.timeout(20)
def test_a_covariance_at_the_end_of_float32_is_refused() -> None:
    moments = moments_of(torch.randn(40, 8, generator=torch.Generator().manual_seed(5)))
    moments.outer = moments.outer.sign() * 3e38
    with pytest.raises(ConfigError, match="vary too much for float32"):
        round_weight(torch.ones(4, 8), torch.zeros(4), moments, torch.int8)


# --- scales -----------------------------------------------------------------------------------


def test_scale_is_the_best_of_its_clips() -> None:
    generator = torch.Generator().manual_seed(6)
    with torch.random.fork_rng():
        torch.manual_seed(6)  # distributions take no generator
        weight = torch.distributions.StudentT(3.0).sample((20, 64))
    importance = torch.rand(64, generator=generator) ** 3
    scale = weight_scale(weight, importance, torch.int8)
    peak = weight.abs().amax(1) / 127
    assert (scale <= peak * (1 + 1e-6)).all() and (scale >= 0.59 * peak).all()
    assert (scale < 0.999 * peak).any()

    def error(scale: Tensor) -> Tensor:
        return (nearest(weight, scale, torch.int8) - weight).double().square() @ importance.double()

    others = [error(peak * share) for share in torch.linspace(1.0, 0.6, CLIPS).tolist()]
    torch.testing.assert_close(error(scale), torch.stack(others).amin(0), rtol=1e-4, atol=0)


def test_fp8_reaches_its_end() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(7))
    scale = weight_scale(weight, torch.ones(40), FP8)
    torch.testing.assert_close(scale * FP8_MAX, weight.abs().amax(1))


def test_a_reduced_range_is_kept_and_paid_for() -> None:
    """Half the levels: no value beyond them, and noise of about twice the amplitude in the products."""
    generator = torch.Generator().manual_seed(8)
    rows = correlated(generator, 400, 48, 6, 0.1)
    moments = moments_of(rows)
    weight = torch.randn(24, 48, generator=generator)

    def noise(limit: int) -> float:
        found = round_weight(weight, torch.zeros(24), moments, torch.int8, limit)
        assert found.values.abs().max() <= limit and (found.values.abs().amax(1) >= 0.78 * limit).all()
        change = found.dequantized().double() - weight.double()
        return float((change @ moments.covariance.double() * change).sum().sqrt())

    assert 1.6 < noise(64) / noise(127) < 2.6
