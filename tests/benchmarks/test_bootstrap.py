"""Resamples of what was measured: drawn with replacement, alike in every run, whatever is held at once."""

from __future__ import annotations

import numpy as np
import pytest

from fvexport.benchmarks import bootstrap
from fvexport.benchmarks.bootstrap import resampled


def means(samples: np.ndarray) -> np.ndarray:
    return samples.mean(axis=1)


def test_the_standard_error_of_a_mean() -> None:
    """The means of resamples spread as theory says: by the standard deviation over the root of the count."""
    values = np.random.default_rng(0).normal(size=400)
    drawn = resampled(values, means, 4000, 1)
    assert drawn.shape == (4000,)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.05)


@pytest.mark.parametrize("at_once", [1, 100, 1000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    values = np.arange(7.0)
    whole = resampled(values, means, 50, [2, 7])
    monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
    np.testing.assert_array_equal(resampled(values, means, 50, [2, 7]), whole)
    assert not np.array_equal(resampled(values, means, 50, [3, 7]), whole)


def test_one_item_is_every_resample() -> None:
    assert resampled(np.array([[3.0, 4.0]]), lambda samples: samples[:, 0, 1], 5, 0).tolist() == [4] * 5
