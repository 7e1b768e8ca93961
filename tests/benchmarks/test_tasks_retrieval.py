"""Retrieval and resampling: brute force, and what holds for any vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.benchmarks.tasks.captions import bleu_4
from fvexport.benchmarks.tasks.resample import paired_difference
from fvexport.benchmarks.tasks.retrieval import nearest, overlap, pooled, recall_at


def vectors(count: int, seed: int, width: int = 5) -> np.ndarray:
    return pooled(np.random.default_rng(seed).normal(size=(count, 3, width)))


def test_pooled_is_the_unit_mean_token() -> None:
    features = np.array([[[3.0, 0.0], [3.0, 8.0]], [[1.0, 1.0], [-1.0, -1.0]]], np.float32)
    assert pooled(features) == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
    large = np.full((1, 2, 4), 60000, np.float16)
    assert pooled(large) == pytest.approx(np.full((1, 4), 0.5))


@given(st.integers(2, 12), st.integers(0, 99), st.integers(1, 4), st.integers(1, 15))
def test_nearest_is_brute_force_in_any_blocks(count: int, seed: int, block: int, k: int) -> None:
    unit = vectors(count, seed)
    found = nearest(unit, k, block=block)
    assert found.shape == (count, min(k, count - 1))
    for query, row in enumerate(found):
        others = [other for other in range(count) if other != query]
        cosines = sorted((float(unit[query].astype(np.float64) @ unit[other]) for other in others), reverse=True)
        assert query not in row and len(set(row)) == len(row)
        assert [float(unit[query].astype(np.float64) @ unit[o]) for o in row] == pytest.approx(
            cosines[: len(row)], abs=1e-6
        )


def test_equal_neighbours_stand_in_order() -> None:
    unit = pooled(np.ones((4, 1, 3)))
    assert nearest(unit, 3).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert nearest(unit[:1], 3).shape == (1, 0)


def test_recall_known() -> None:
    labels = ["cat", "cat", "dog", "dog", "bird"]
    neighbours = np.array([[2, 1, 3, 4], [0, 2, 3, 4], [0, 1, 4, 3], [4, 0, 1, 2], [0, 1, 2, 3]])
    assert recall_at(neighbours, labels, 1)[:4].tolist() == [0, 1, 0, 0]
    assert recall_at(neighbours, labels, 2)[:4].tolist() == [1, 1, 0, 0]
    assert recall_at(neighbours, labels, 4)[:4].tolist() == [1, 1, 1, 1]
    assert all(math.isnan(recall_at(neighbours, labels, k)[4]) for k in (1, 4))  # the only bird


@given(st.integers(3, 12), st.integers(0, 99))
def test_recall_grows_with_k_and_ends_at_1(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [str(label) for label in rng.integers(0, 3, count)]
    found = nearest(vectors(count, seed), count)
    before = np.zeros(count)
    for k in range(1, count):
        now = recall_at(found, labels, k)
        assert (np.isnan(now) | (now >= before)).all()
        before = np.nan_to_num(now)
    assert (np.isnan(now) | (now == 1)).all()


def test_overlap() -> None:
    a, b = np.array([[1, 2], [0, 2]]), np.array([[2, 1], [3, 4]])
    assert overlap(a, b).tolist() == [1, 0]
    assert overlap(a, a).tolist() == [1, 1]
    assert overlap(a[:, :0], b[:, :0]).tolist() == [1, 1]


def test_difference_of_means_matches_the_textbook() -> None:
    """The percentile interval of a mean nears the normal one: 1.96 standard errors to each side."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(2000, 1))
    ours = reference + rng.normal(0.1, 0.5, size=(2000, 1))
    found = paired_difference(ours, reference)
    change = (ours - reference).ravel()
    error = change.std(ddof=1) / len(change) ** 0.5
    assert found.value == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(change.mean() + 1.96 * error, abs=0.15 * error)
    assert paired_difference(ours, reference) == found  # the same draws each time


def test_difference_of_a_figure_that_is_no_mean() -> None:
    statistics = np.array([[4, 3, 2, 1, 4, 3, 2, 1, 4, 4], [2, 1, 1, 1, 5, 4, 3, 2, 5, 6]], np.float64)
    found = paired_difference(statistics, statistics[::-1], bleu_4, resamples=50)
    assert found.value == 0  # the same items in another order
    assert found.low <= found.value <= found.high


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=20))
def test_no_change_is_certain(scores: list[float]) -> None:
    column = np.array(scores)[:, None]
    assert paired_difference(column, column, resamples=20).to_dict() == {"value": 0, "low": 0, "high": 0}
