"""Error statistics against plain NumPy in float64."""

from __future__ import annotations

import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.core.verdict.figures import VARIATION, Comparison, Figures, compare, worst
from fvexport.core.verdict.judging import THRESHOLDS, judge


def figures(rel_l2: float = 0.0, cosine_min: float = 1.0, finite: bool = True) -> Figures:
    return Figures(rel_l2, rel_l2, 1.0, cosine_min, 0.0, finite)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.floats(1e-6, 10), st.integers(0, 2**31))
def test_equal_to_the_formulas(b: int, n: int, c: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((b, n, c)).astype(np.float32)
    d = (a + noise * rng.standard_normal(a.shape)).astype(np.float32)
    x, y = a.astype(float), d.astype(float)
    rel = max(math.sqrt(((u - v) ** 2).sum() / (u**2).sum()) for u, v in zip(x, y, strict=True))
    cosines = [
        [
            sum(p * q for p, q in zip(u, v, strict=True)) / math.sqrt(sum(p * p for p in u) * sum(q * q for q in v))
            for u, v in zip(one, other, strict=True)
        ]
        for one, other in zip(x, y, strict=True)
    ]
    found = compare(a, d)
    assert found.max_abs == pytest.approx(max(abs(x - y).flatten()), rel=1e-12)
    assert found.rel_l2 == pytest.approx(rel, rel=1e-9)
    assert found.cosine == pytest.approx(min(sum(row) / n for row in cosines), abs=1e-12)
    assert found.cosine_min == pytest.approx(min(min(row) for row in cosines), abs=1e-12)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(rel), abs=1e-6)
    assert found.finite


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 4), st.sampled_from([0.0, 1.0, 30.0]),
    st.floats(1e-6, 1), st.data(),
)  # fmt: skip
def test_centred_figures_equal_the_formula(
    sizes: list[int], c: int, constant: float, noise: float, data: st.DataObject
) -> None:
    """Pictures in any order and of any size, in two groups, some added twice, some tokens not judged."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    found = Comparison()
    kept: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {False: [], True: []}
    for picture, n in enumerate(sizes):
        a = constant + rng.standard_normal((n, c))
        d = a + noise * rng.standard_normal((n, c))
        group = data.draw(st.booleans())
        seen = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        if not seen.any():
            seen[0] = True
        for _ in range(data.draw(st.integers(1, 2))):
            found.add(a, d, picture=picture, group=group, seen=None if seen.all() else seen)
        kept[group].append((a[seen], d[seen]))
    wanted = []
    for pairs in kept.values():
        if not pairs:
            continue
        every = np.concatenate([a for a, _ in pairs])
        power = np.square(every - every.mean(0)).sum(1).mean()
        if power > VARIATION**2 * np.square(every).sum(1).mean():
            wanted.append(max(math.sqrt(np.square(d - a).sum(1).mean() / power) for a, d in pairs))
    if not wanted:
        assert found.figures.centred_rel_l2 is None and found.figures.centred_sqnr_db is None
        return
    assert found.figures.centred_rel_l2 == pytest.approx(max(wanted), rel=1e-6)
    assert found.figures.centred_sqnr_db == pytest.approx(-20 * math.log10(max(wanted)), abs=1e-5)


def test_a_constant_error_counts_in_full() -> None:
    """Features whose constant part is a hundred times what varies: 40 dB plain is nothing centred."""
    rng = np.random.default_rng(0)
    a = 100 + rng.standard_normal((2, 50, 8))
    found = compare(a, a + 1)
    assert found.sqnr_db == pytest.approx(40, abs=0.1)
    assert found.centred_sqnr_db == pytest.approx(0, abs=0.5)
    assert found.strict_sqnr_db == found.centred_sqnr_db


def test_channels_and_pictures_that_never_change() -> None:
    a = np.zeros((1, 4, 3), np.float32)
    a[..., 0] = 7  # constant
    a[0, :, 1] = [1, -1, 1, -1]
    found = compare(a, a + np.float32(0.5))
    assert found.centred_rel_l2 == pytest.approx(math.sqrt(3 * 0.25), rel=1e-6)  # the error of all three channels
    same = np.full((3, 4, 2), 5.0, np.float32)
    assert compare(same, same * 1.01).centred_rel_l2 is None
    noisy = same * (1 + 1e-7 * np.random.default_rng(0).standard_normal(same.shape)).astype(np.float32)
    assert compare(noisy, same).centred_rel_l2 is None  # what float32 rounds is not variation
    assert compare(np.ones((1, 1, 3)), np.ones((1, 1, 3))).centred_rel_l2 is None  # one token
    assert compare(a, a).centred_rel_l2 == 0 and compare(a, a).to_dict()["centred_sqnr_db"] is None


def test_one_bad_picture_is_not_averaged_away() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 16, 4))
    d = a.copy()
    d[3] += 0.1
    found = compare(a, d).centred_rel_l2
    assert found is not None and found > 0.09


def test_the_ratio_of_centred_to_plain() -> None:
    """With errors alike in all pictures, it takes a plain figure to the centred one."""
    rng = np.random.default_rng(0)
    a = 3 + rng.standard_normal((2, 400, 32))
    d = a + 0.1 * rng.standard_normal(a.shape)
    found = Comparison()
    for picture in range(2):
        found.add(a[picture], d[picture], picture=picture)
    assert found.ratio == pytest.approx(math.sqrt(10), rel=0.02)
    assert found.figures.centred_rel_l2 == pytest.approx(found.ratio * found.figures.rel_l2, rel=0.02)
    empty = Comparison()
    empty.add(a[0, :1], d[0, :1], picture=0)
    assert empty.ratio is None


def test_only_seen_tokens_are_judged_and_all_have_to_be_finite() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 4))
    seen = np.array([False, True, True, True, False, False])
    d = a.copy()
    d[~seen] += 100
    found = Comparison()
    found.add(a, d, picture=0, seen=seen)
    assert (found.figures.max_abs, found.figures.rel_l2, found.figures.centred_rel_l2) == (0, 0, 0)
    d[0, 0] = math.nan
    found.add(a, d, picture=1, seen=seen)
    assert not found.figures.finite


def test_zeros_and_equal_tokens() -> None:
    a = np.zeros((1, 2, 3), np.float32)
    assert compare(a, a) == Figures(0.0, 0.0, 1.0, 1.0, math.inf, True)
    b = a.copy()
    b[0, 1] = 1
    assert compare(b, b).to_dict()["sqnr_db"] is None
    assert compare(a, b) == Figures(1.0, math.inf, 0.5, 0.0, -math.inf, True)
    assert compare(b, a).cosine_min == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 3, 3\)"):
        compare(np.zeros((1, 2, 3)), np.zeros((1, 3, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(1, 3\)"):
        Comparison().add(np.zeros((2, 3)), np.zeros((1, 3)), picture=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite(bad: float) -> None:
    a = np.ones((1, 2, 3), np.float32)
    b = a.copy()
    b[0, 0, 0] = bad
    found = compare(a, b)
    assert not found.finite
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rel_l2"] is None
    for precision in THRESHOLDS.values():
        assert judge(found, figures(), precision)[0] == "non-finite"
        assert judge(compare(b, a), figures(), precision)[0] == "fail"  # nothing agrees with a broken reference
    assert "PyTorch overflows" in judge(found, found, THRESHOLDS["fp16"])[1]


def test_worst_of_several() -> None:
    a, b = Figures(1, 0.1, 0.9, 0.8, 20, True), Figures(2, 0.05, 0.95, 0.7, 26, True, 0.2, -20 * math.log10(0.2))
    assert astuple(worst([a, b])) == pytest.approx((2, 0.1, 0.9, 0.7, 20, True, 0.2, b.centred_sqnr_db))
    assert worst([a, a]) == a
    assert not worst([a, figures(math.nan, finite=False), b]).finite


def test_round_trip_and_records_of_earlier_versions() -> None:
    found = Figures(1, 0.1, 0.9, 0.8, 20, True, 0.2, 14)
    assert Figures.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    old = {k: v for k, v in found.to_dict().items() if not k.startswith("centred")}
    assert Figures.from_dict(old) == found.with_centred(None)
    assert Figures.from_dict(old).strict_sqnr_db == 20
