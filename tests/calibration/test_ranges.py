"""Ranges: each method against what it promises, measured on the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fvexport.calibration.calibration_options import METHODS
from fvexport.calibration.histograms import TENSOR_BINS, Histogram
from fvexport.calibration.qdq import FP8
from fvexport.calibration.ranges import PERCENTILE, Range, choose_range
from fvexport.core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

UINT8, INT8 = torch.uint8, torch.int8
COUNT = 50_000


def values(kind: str, seed: int = 0) -> Tensor:
    """(COUNT,) of a distribution."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(COUNT, generator=generator)
    if kind == "laplace":
        z *= -torch.rand(COUNT, generator=generator).log().abs().sqrt()
    elif kind == "heavy":  # Student's t with two degrees of freedom
        z /= torch.randn(2, COUNT, generator=generator).square().mean(0).sqrt()
    elif kind == "gelu":
        z = F.gelu(2 * z)
    elif kind == "positive":
        z = z.abs() + 3
    elif kind == "skewed":
        z = torch.where(z > 0, 5 * z * z, z)
    elif kind == "outlier":
        z[0] = 1000
    else:
        assert kind == "normal"
    return z


KINDS = ("normal", "laplace", "heavy", "gelu", "positive", "skewed", "outlier")


def histogram(x: Tensor) -> Histogram:
    """As calibration keeps a tensor: counted, then merged."""
    found = Histogram.empty(1, TENSOR_BINS)
    for part in x.flatten().split(30_000):
        found.widen(part.amin()[None], part.amax()[None])
        found.add(part[:, None])
    return found.merged()


def error(x: Tensor, chosen: Range, dtype: torch.dtype, *, gelu: bool = False) -> float:
    """Mean squared error that eight bits make of the values."""
    see = F.gelu if gelu else (lambda y: y)
    return float((see(chosen.quantizer(dtype)(x)) - see(x)).double().square().mean())


def best(x: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> float:
    """The least error of any range, tried one by one."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    shares = [0.85**power for power in range(24)]
    lows = [low * share for share in shares] if low and dtype == UINT8 else [low]
    tried = (Range(a, high * share) for a in lows for share in shares)
    if dtype == INT8:
        tried = (Range(-a, a) for a in max(-low, high) * np.geomspace(0.01, 1, 80))
    return min(error(x, each, dtype, gelu=gelu) for each in tried)


@pytest.mark.parametrize("dtype", [UINT8, INT8])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_near_the_best(kind: str, dtype: torch.dtype) -> None:
    x = values(kind)
    found = choose_range(histogram(x), "mse", symmetric=dtype == INT8)
    assert error(x, found, dtype) <= 1.03 * best(x, dtype)


@pytest.mark.parametrize(("kind", "gain"), [("laplace", 0.9), ("heavy", 0.9), ("gelu", 0.85)])
def test_mse_beats_minmax_on_heavy_tails(kind: str, gain: float) -> None:
    x = values(kind, seed=1)
    pair = {method: choose_range(histogram(x), method, symmetric=True) for method in ("mse", "minmax")}
    assert error(x, pair["mse"], INT8) < gain * error(x, pair["minmax"], INT8)


def test_weighted_clips_less_than_mse_and_little() -> None:
    """What is clipped by more than a step has to be rare; a lone extreme is still given up for all others."""
    x = values("heavy")
    kept = histogram(x)
    weighted, plain = (choose_range(kept, method, symmetric=True) for method in ("weighted", "mse"))
    outside = [float((x.abs() > max(-found.low, found.high)).float().mean()) for found in (weighted, plain)]
    assert outside[0] < 0.2 * outside[1]
    assert weighted.high < float(x.abs().max()) + 1e-6


def test_one_value_far_outside_is_given_up() -> None:
    """The best range may be a small part of all that was seen."""
    x = torch.cat([values("normal", seed) for seed in range(16)])
    x[17] = 60
    found = choose_range(histogram(x), "mse", symmetric=True)
    assert max(-found.low, found.high) < 0.3 * 60
    assert error(x, found, INT8) < 0.5 * error(x, Range(-60, 60), INT8)
    assert error(x, found, INT8) < 1.05 * best(x, INT8)


@pytest.mark.parametrize("dtype", [UINT8, INT8])
def test_before_gelu(dtype: torch.dtype) -> None:
    """The error after GELU is less than that of a range that knows nothing of it, and near the best there is."""
    x = 3 * values("normal") - 2
    kept = histogram(x)
    found, plain = (choose_range(kept, "mse", symmetric=dtype == INT8, before_gelu=b) for b in (True, False))
    assert error(x, found, dtype, gelu=True) <= (0.7 if dtype == UINT8 else 1.0) * error(x, plain, dtype, gelu=True)
    assert error(x, found, dtype, gelu=True) <= 1.03 * best(x, dtype, gelu=True)


def test_room_for_what_was_not_seen() -> None:
    kept = histogram(values("normal"))
    plain, few, many = (choose_range(kept, "mse", symmetric=True, samples=n) for n in (0, 256, 16384))
    assert few.high / plain.high == pytest.approx(1 + 3 / 16)
    assert many.low / plain.low == pytest.approx(1 + 3 / 128)
    for method in ("minmax", "percentile", "entropy"):
        assert choose_range(kept, method, symmetric=True, samples=256) == choose_range(kept, method, symmetric=True)


def test_minmax() -> None:
    x = values("skewed")
    assert choose_range(histogram(x), "minmax", symmetric=False) == Range(float(x.min()), float(x.max()))


@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed", "positive"])
def test_percentile(kind: str) -> None:
    """Half of the share is left out at each end, and no more bins are kept than that takes."""
    x = values(kind)
    found = choose_range(histogram(x), "percentile", symmetric=False)
    tail, width = (1 - PERCENTILE) / 2, 2 * float(x.abs().max()) / TENSOR_BINS
    for y, end in ((x, found.high), (-x, -found.low)):
        one = 1 / len(y)  # a value in the very bin
        assert (y > end).double().mean() <= tail + one
        assert (y > end - 3 * width).double().mean() >= tail - one or end == 0


def reference_entropy(both_signs: np.ndarray, limit: float) -> float:
    """The clip that TensorRT's calibrator is described to choose (S. Migacz, GTC 2017, slides 36 to 40), bin by bin."""
    half = len(both_signs) // 2
    counts = both_signs[half:] + both_signs[:half][::-1]
    scores = {}
    for stop in range(128, len(counts) + 1, 8):
        inside = counts[:stop].astype(np.float64)
        p = inside.copy()
        p[-1] += counts[stop:].sum()
        q = np.zeros(stop)
        for part in range(128):
            bins = [i for i in range(stop) if i * 128 // stop == part]
            filled = [i for i in bins if inside[i]]
            for i in filled:
                q[i] = inside[bins].sum() / len(filled)
        p, q = p / p.sum(), q / q.sum()
        both = (p > 0) & (q > 0)
        scores[stop] = float((p[both] * np.log(p[both] / q[both])).sum()) + 20 * float(p[(p > 0) & ~both].sum())
    return limit * min(scores, key=lambda stop: scores[stop]) / half


@pytest.mark.parametrize("kind", ["laplace", "heavy", "gelu"])
def test_entropy_against_a_plain_reading(kind: str) -> None:
    x = values(kind).double().numpy()
    limit = np.abs(x).max()
    counts, _ = np.histogram(x, bins=TENSOR_BINS, range=(-limit, limit))
    ends = (torch.tensor([end], dtype=torch.float64) for end in (-limit, limit, limit))
    found = choose_range(Histogram(*ends, torch.from_numpy(counts)[None].float()), "entropy", symmetric=True)
    assert found.high == pytest.approx(reference_entropy(counts, limit))


def test_entropy_clips_outliers() -> None:
    found = choose_range(histogram(values("heavy")), "entropy", symmetric=True)
    assert found.high < 0.5 * float(values("heavy").max())
    found = choose_range(histogram(values("outlier")), "entropy", symmetric=True)
    assert found.high == 125  # no fewer than 128 of 1024 bins


# Any values, any method


@pytest.mark.parametrize("method", METHODS)
def test_zeros(method: str) -> None:
    found = choose_range(histogram(torch.zeros(100)), method, symmetric=False, samples=100)
    assert found == Range(0, 0)
    for dtype in (UINT8, INT8, FP8):
        assert found.quantizer(dtype)(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [5.0, -5.0])
def test_one_value(method: str, value: float) -> None:
    """A constant tensor: 0 is in its range too, and the value survives."""
    found = choose_range(histogram(torch.full((100,), value)), method, symmetric=False)
    assert found.low <= 0 <= found.high
    assert found.quantizer(UINT8)(torch.tensor([value])).item() == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_one_sided(method: str) -> None:
    """All of eight bits for the side where there are values."""
    x = values("positive")
    found = choose_range(histogram(x), method, symmetric=False)
    assert found.low == 0 and found.high > 6
    assert found.quantizer(UINT8).zero_point == 0
    assert choose_range(histogram(-x), method, symmetric=False).quantizer(UINT8).zero_point == 255


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=30),
    st.sampled_from(METHODS), st.booleans(), st.booleans(), st.sampled_from([0, 256]),
)  # fmt: skip
def test_of_anything(xs: list[float], method: str, symmetric: bool, before_gelu: bool, samples: int) -> None:
    """0 is in every range and exact, scales are positive and finite, zero points are integers of the type."""
    found = choose_range(
        histogram(torch.tensor(xs)), method, symmetric=symmetric, before_gelu=before_gelu, samples=samples
    )
    assert found.low <= 0 <= found.high
    room = 1 + 3 / 16 if samples else 1.0
    assert found.low >= min(0.0, *xs) * room * 1.0001 and found.high <= max(0.0, *xs) * room * 1.0001
    for dtype in (INT8, FP8) if symmetric else (UINT8,):
        quantizer = found.quantizer(dtype)
        scale, zero = float(quantizer.scale), int(quantizer.zero_point.float())
        assert 0 < scale < math.inf
        assert quantizer(torch.zeros(1)).item() == 0
        assert 0 <= zero <= 255 if dtype == UINT8 else zero == 0
        ends = quantizer(torch.tensor([found.low, found.high]))
        torch.testing.assert_close(ends, torch.tensor([found.low, found.high]), rtol=1 / 16, atol=scale)


def test_quantizers() -> None:
    """Scale and zero point by hand."""
    for chosen, dtype, scale, zero in [
        (Range(-1, 3), UINT8, 4 / 255, 64),
        (Range(0, 2), UINT8, 2 / 255, 0),
        (Range(-2, 0), UINT8, 2 / 255, 255),
        (Range(-1, 3), INT8, 3 / 127, 0),
        (Range(-4, 3), INT8, 4 / 127, 0),
        (Range(-4, 3), FP8, 4 / 448, 0),
        (Range(0, 0), UINT8, 1, 0),
    ]:
        quantizer = chosen.quantizer(dtype)
        assert float(quantizer.scale) == pytest.approx(scale, rel=1e-6)
        assert int(quantizer.zero_point.float()) == zero and quantizer.zero_point.dtype == dtype


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="unknown calibration method 'max'; known are weighted, mse, minmax"):
        choose_range(histogram(torch.ones(3)), "max", symmetric=False)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("method", METHODS)
def test_not_finite(method: str, value: float) -> None:
    kept = histogram(torch.ones(3))
    kept.widen(torch.tensor([value]), torch.tensor([value]))
    with pytest.raises(ConfigError, match="infinite or undefined"):
        choose_range(kept, method, symmetric=False)
