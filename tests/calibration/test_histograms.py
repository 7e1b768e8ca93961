"""Histograms and moments against numpy and torch, whatever the batches and however extreme the values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fvexport.calibration.histograms import Histogram, Moments

pytestmark = pytest.mark.usefixtures("one_thread")


def histogram(*batches: Tensor, bins: int = 64) -> Histogram:
    """Of batches (n, C)."""
    found = Histogram.empty(batches[0].shape[1], bins)
    for rows in batches:
        found.widen(rows.amin(0), rows.amax(0))
        found.add(rows)
    return found


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wanted_limit(peak: float) -> float:
    """The least power of two that holds it."""
    limit = 2.0**-64
    while limit < peak:
        limit *= 2
    return limit


finite = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: x if abs(x) > 1e-18 else 0.0)
batches = st.lists(st.lists(finite, min_size=1, max_size=20), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(batches)
def test_growing_counts_what_numpy_counts(parts: list[list[float]]) -> None:
    """However the range grew, counts are those of the final range; nothing is lost, and extremes are exact."""
    found = histogram(*[torch.tensor(part)[:, None] for part in parts])
    values = np.concatenate([np.asarray(part, np.float32) for part in parts]).astype(np.float64)
    peak = np.abs(values).max()
    assert found.limit.item() == (wanted_limit(peak) if peak else 0)
    assert (found.low.item(), found.high.item()) == (values.min(), values.max())
    assert found.amax.item() == peak
    limit = found.limit.item() or 1.0
    counts, _ = np.histogram(values, np.linspace(-limit, limit, 65))
    np.testing.assert_array_equal(found.counts[0].numpy(), counts)


@settings(max_examples=50, deadline=None)
@given(batches, st.randoms())
def test_batches_do_not_matter(parts: list[list[float]], shuffle) -> None:
    whole = histogram(torch.tensor([value for part in parts for value in part])[:, None])
    shuffle.shuffle(parts)
    found = histogram(*[torch.tensor(part)[:, None] for part in parts])
    assert torch.equal(found.counts, whole.counts)
    assert torch.equal(found.limit, whole.limit)


def test_channels_stand_alone() -> None:
    """Channels of every size beside each other, one of them zero: each as if it were alone."""
    x = randn(300, 6) * torch.tensor([1e-12, 1e-3, 0.0, 1.0, 1e4, 1e19])
    together = histogram(*x.split(70))
    for channel in range(6):
        alone = histogram(x[:, channel : channel + 1])
        for part in ("low", "high", "limit", "counts"):
            assert torch.equal(getattr(together, part)[channel], getattr(alone, part)[0]), part
    assert together.counts.sum(1).tolist() == [300] * 6


@pytest.mark.parametrize("peak", [1.0, 1.0000001, 0.9999999, 3.3e38, 1e-38, 1e-45])
def test_values_at_the_end_of_a_range(peak: float) -> None:
    """A power of two is its own limit, and what is just over it is inside the next."""
    x = torch.tensor([[peak], [-peak], [0.0]])
    found = histogram(x)
    value = x[0].item()
    assert found.amax.item() == value
    assert torch.isfinite(found.limit).all()
    assert found.limit.item() == min(max(wanted_limit(value), 2.0**-64), 2.0**127)
    assert found.counts.sum() == 3
    assert found.merged(64).counts.sum() == 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_quantile(share: float) -> None:
    """Within a bin above what torch says, never under it."""
    x = randn(5000, 4) * torch.tensor([0.01, 1.0, 30.0, 0.0])
    found = histogram(*x.split(1000), bins=256)
    wanted = torch.quantile(x.abs(), share, dim=0, interpolation="lower")
    width = found.limit / 128
    assert (found.quantile(share) >= wanted).all()
    assert (found.quantile(share) <= wanted + width * 1.001).all()
    assert found.quantile(1.0).tolist() == x.abs().amax(0).tolist()


def test_a_single_value() -> None:
    found = histogram(torch.tensor([[3.0]]))
    assert (found.low.item(), found.high.item(), found.limit.item()) == (3, 3, 4)
    assert found.counts.sum() == 1 and found.quantile(0.5).item() == 3
    merged = found.merged(16)
    assert merged.limit.item() == 3 and merged.counts.sum() == 1


def test_nothing_but_zeros() -> None:
    found = histogram(torch.zeros(5, 2))
    assert found.limit.tolist() == [0, 0] and found.quantile(0.9).tolist() == [0, 0]
    merged = found.merged(16)
    assert merged.limit.item() == 0 and merged.counts.sum() == 0
    found.widen(torch.tensor([0.0, -2.0]), torch.tensor([0.0, 2.0]))
    found.add(torch.tensor([[0.0, -2.0]]))
    assert found.counts.sum(1).tolist() == [6, 6]
    assert found.counts[1, 0] == 1 and found.counts[1, 32] == 5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_scaled(factors: list[float]) -> None:
    """What was counted is counted within a bin of where the scaled data lie."""
    x, factor = randn(500, 3), torch.tensor(factors)
    found, wanted = histogram(x, bins=256).scaled(factor), histogram(x * factor, bins=256)
    torch.testing.assert_close(found.low, wanted.low)
    torch.testing.assert_close(found.high, wanted.high)
    torch.testing.assert_close(found.limit, histogram(x).limit * factor)
    for channel in range(3):
        width = float(max(found.limit[channel], wanted.limit[channel])) / 128
        values = np.sort((x * factor)[:, channel].double().numpy())
        middles = ((np.arange(256) + 0.5) / 128 - 1) * float(found.limit[channel])
        held = np.repeat(middles, found.counts[channel].int().numpy())
        assert np.abs(held - values).max() <= width * 0.51


def test_merged_conserves_mass_and_moments() -> None:
    """One histogram of channels of many sizes: as many values, of the same mean and spread, within a bin."""
    sizes = torch.tensor([1.0, 0.3, 5.0, 0.0, 0.01])
    x = (randn(4000, 5) + 0.5) * sizes
    merged = histogram(*x.split(900), bins=256).merged(2048)
    assert merged.counts.shape == (1, 2048)
    assert merged.counts.sum().item() == pytest.approx(x.numel(), rel=1e-6)
    assert (merged.low.item(), merged.high.item()) == (x.min().item(), x.max().item())
    assert merged.limit.item() == x.abs().max().item()
    middles, share = merged.points()
    assert share.sum().item() == pytest.approx(1, rel=1e-6)
    assert (share @ middles).item() == pytest.approx(x.mean().item(), abs=0.02)
    assert (share @ middles.square()).item() == pytest.approx(x.square().mean().item(), rel=0.01)


def test_merged_has_no_gaps() -> None:
    """Coarse bins fill the fine ones that they cover: a gap would look like a value that never occurs."""
    x = torch.linspace(-1, 1, 100_001)[:, None] * 1.01  # a range of [-2, 2], half of it unused
    counts = histogram(x, bins=256).merged(2048).counts[0]
    assert (counts[16:-16] > 0.9 * 100_001 / 2048).all() and (counts[16:-16] < 1.1 * 100_001 / 2048).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(finite, min_size=2, max_size=2), min_size=1, max_size=30))
def test_merged_of_anything(rows: list[list[float]]) -> None:
    x = torch.tensor(rows)
    merged = histogram(x).merged(32)
    alive = bool(x.abs().max() > 0)
    assert merged.counts.sum().item() == pytest.approx(x.numel() if alive else 0, rel=1e-5)
    assert (merged.counts >= 0).all()


# Moments


def moments(*parts: Tensor) -> Moments:
    found = Moments.empty(parts[0].shape[1])
    for rows in parts:
        found.add(rows)
    return found


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_moments_against_float64(offset: float) -> None:
    """Also where channels hardly vary around a large value, whose square would swallow the variance."""
    deviations = torch.tensor([0.02, 1.0, 0.5, 3.0])
    x = (randn(4096, 4) @ (torch.eye(4) + 0.5 * randn(4, 4, seed=1))) * deviations + offset
    x = x.float()
    found = moments(*x.split(512))
    exact = x.double().numpy()
    np.testing.assert_allclose(found.mean.double(), exact.mean(0), rtol=1e-6, atol=1e-6)
    wanted = np.cov(exact.T, bias=True)
    scale = np.sqrt(np.outer(wanted.diagonal(), wanted.diagonal()))
    assert (np.abs(found.covariance.double().numpy() - wanted) / scale).max() < 1e-5
    assert found.rows == 4096


def test_moments_of_pictures_that_differ() -> None:
    """The first batch's mean, which rows are taken off, is far from the others'."""
    parts = [randn(256, 3, seed=i) + 30 * i for i in range(8)]
    found, exact = moments(*parts), torch.cat(parts).double().numpy()
    np.testing.assert_allclose(found.mean.double(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance.double(), np.cov(exact.T, bias=True), rtol=1e-5)


def test_moments_do_not_change_what_they_are_read_from() -> None:
    found = moments(randn(64, 3) + 2, randn(64, 3, seed=1) - 2)
    first = found.covariance
    first.diagonal().add_(1)  # as damping does
    assert torch.equal(found.covariance, first - torch.eye(3))


def test_scaled_moments() -> None:
    x, factors = randn(500, 3) + torch.tensor([0.0, 5.0, -100.0]), torch.tensor([0.5, 3.0, 0.01], dtype=torch.float64)
    found = moments(*x.split(100)).scaled(factors)
    exact = (x.double() * factors).numpy()
    np.testing.assert_allclose(found.mean.double(), exact.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.covariance.double(), np.cov(exact.T, bias=True), rtol=1e-4, atol=1e-7)


def test_no_rows_at_all() -> None:
    found = Moments.empty(2)
    assert found.mean.tolist() == [0, 0] and found.covariance.tolist() == [[0, 0], [0, 0]]
