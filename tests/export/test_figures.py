"""Error statistics against plain NumPy, and the table of verdicts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.export.figures import Figures, compare, worst
from fvexport.export.parity import THRESHOLDS, judge


def figures(rel_l2: float = 0.0, cosine_min: float = 1.0, finite: bool = True) -> Figures:
    return Figures(rel_l2, rel_l2, 1.0, cosine_min, 0.0, finite)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.floats(1e-6, 10), st.integers(0, 2**31))
def test_equal_to_the_formulas(b: int, n: int, c: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((b, n, c)).astype(np.float32)
    d = (a + noise * rng.standard_normal(a.shape)).astype(np.float32)
    x, y = a.astype(float), d.astype(float)
    rel = math.sqrt(((x - y) ** 2).sum() / (x**2).sum())
    cosines = [
        sum(p * q for p, q in zip(u, v, strict=True)) / math.sqrt(sum(p * p for p in u) * sum(q * q for q in v))
        for u, v in zip(x.reshape(-1, c), y.reshape(-1, c), strict=True)
    ]
    found = compare(a, d)
    assert found.max_abs == pytest.approx(max(abs(x - y).flatten()), rel=1e-12)
    assert found.rel_l2 == pytest.approx(rel, rel=1e-9)
    assert found.cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
    assert found.cosine_min == pytest.approx(min(cosines), abs=1e-12)
    assert found.sqnr_db == pytest.approx(10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-6)
    assert found.finite


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
    a, b = Figures(1, 0.1, 0.9, 0.8, 20, True), Figures(2, 0.05, 0.95, 0.7, 26, True)
    assert worst([a, b]) == Figures(2, 0.1, 0.9, 0.7, 20, True)
    assert not worst([a, figures(math.nan, finite=False), b]).finite


FP32, FP16 = THRESHOLDS["fp32"], THRESHOLDS["fp16"]


@pytest.mark.parametrize(
    ("found", "torch_own", "thresholds", "status"),
    [
        (figures(0.9e-5), figures(0.0), FP32, "pass"),
        (figures(1.1e-5), figures(0.0), FP32, "fail"),
        (figures(1.1e-5), figures(0.6e-5), FP32, "pass"),  # within twice PyTorch's own
        (figures(1.3e-5), figures(0.6e-5), FP32, "fail"),
        (figures(1.1e-3), figures(1.0), FP32, "fail"),  # over the limit, whatever PyTorch loses
        (figures(0.0, 0.9999), figures(0.0), FP32, "fail"),  # one bad token
        (figures(1.9e-3), figures(0.0), FP16, "pass"),
        (figures(2.9e-2), figures(1.5e-2), FP16, "pass"),
        (figures(3.1e-2), figures(1.0), FP16, "fail"),
        (figures(1.9e-3), figures(math.nan, finite=False), FP16, "pass"),  # PyTorch overflows, the file does not
        (figures(2.1e-3), figures(math.nan, finite=False), FP16, "fail"),
        (figures(math.nan), figures(0.0), FP32, "fail"),  # no comparison with NaN may pass
        (figures(0.0, math.nan), figures(0.0), FP32, "fail"),
    ],
)
def test_judge(found: Figures, torch_own: Figures, thresholds: Any, status: str) -> None:
    verdict, reason = judge(found, torch_own, thresholds)
    assert verdict == status
    assert reason


def test_bounds_grow_with_the_precision() -> None:
    for one, other in (("fp32", "fp16"), ("fp16", "bf16")):
        a, b = THRESHOLDS[one], THRESHOLDS[other]
        assert a.rel_l2_floor < b.rel_l2_floor
        assert a.rel_l2_limit < b.rel_l2_limit
        assert a.cosine_min > b.cosine_min
        assert a.rel_l2_floor < a.rel_l2_limit
