"""The table of verdicts, plain and centred."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fvexport.core.verdict.figures import Figures, compare
from fvexport.core.verdict.judging import THRESHOLDS, judge, unmeasured


def figures(rel_l2: float = 0.0, cosine_min: float = 1.0, finite: bool = True, centred: float | None = None) -> Figures:
    return Figures(rel_l2, rel_l2, 1.0, cosine_min, 0.0, finite).with_centred(centred)


FP32, FP16, INT8 = THRESHOLDS["fp32"], THRESHOLDS["fp16"], THRESHOLDS["int8"]


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
        (figures(1e-6, centred=1.9e-5), figures(centred=0.0), FP32, "pass"),
        (figures(1e-6, centred=2.1e-5), figures(centred=0.0), FP32, "fail"),
        (figures(1e-6, centred=2.1e-5), figures(centred=1.1e-5), FP32, "pass"),
        (figures(1e-6, centred=2.1e-3), figures(centred=1.0), FP32, "fail"),
        (figures(1e-6, centred=math.nan), figures(centred=0.0), FP32, "fail"),
        (figures(1e-2, centred=0.14), figures(1e-2, centred=0.1), INT8, "pass"),
        (figures(1e-2, centred=0.15), figures(1e-2, centred=0.1), INT8, "fail"),
        (figures(1e-2, centred=0.33), figures(1e-2, centred=0.3), INT8, "fail"),
        (figures(0.19, centred=0.31), unmeasured(INT8), INT8, "pass"),  # only the limits are known
        (figures(0.21, centred=0.31), unmeasured(INT8), INT8, "fail"),
        (figures(0.19, centred=0.33), unmeasured(INT8), INT8, "fail"),
    ],
)
def test_judge(found: Figures, torch_own: Figures, thresholds: Any, status: str) -> None:
    verdict, reason = judge(found, torch_own, thresholds)
    assert verdict == status
    assert reason


def test_features_whose_constant_part_hides_the_error() -> None:
    """An error of half of what varies: FP16's plain bound does not see it."""
    rng = np.random.default_rng(0)
    reference = 300 + rng.standard_normal((2, 16, 32))
    error = rng.standard_normal(reference.shape)
    found, torch_own = compare(reference, reference + 0.5 * error), compare(reference, reference + 0.01 * error)
    assert found.rel_l2 < FP16.bound(torch_own.rel_l2) and found.cosine_min > FP16.cosine_min
    status, reason = judge(found, torch_own, FP16)
    assert status == "fail" and "centred relative L2 error" in reason
    assert judge(found.with_centred(None), torch_own, FP16)[0] == "pass"


def test_a_bound_in_decibels_is_of_the_stricter_figure() -> None:
    found = Figures(0.1, 0.01, 1.0, 1.0, 40.0, True).with_centred(0.1)  # 40 and 20 dB
    torch_own = Figures(0.1, 0.1, 1.0, 1.0, 20.0, True).with_centred(0.1)
    for bound, figure, status in (
        (19.9, "stricter", "pass"), (20.1, "stricter", "fail"), (39.9, "plain", "pass"), (40.1, "plain", "fail"),
    ):  # fmt: skip
        assert judge(found, torch_own, INT8, bound_db=bound, bound_figure=figure)[0] == status  # type: ignore[arg-type]
    assert "SQNR 20.0 dB is under the 30.0 dB asked for" in judge(found, torch_own, INT8, bound_db=30)[1]


def test_bounds_grow_with_the_precision() -> None:
    for one, other in (("fp32", "fp16"), ("fp16", "bf16")):
        a, b = THRESHOLDS[one], THRESHOLDS[other]
        assert a.rel_l2_floor < b.rel_l2_floor and a.centred_floor < b.centred_floor
        assert a.rel_l2_limit < b.rel_l2_limit and a.centred_limit < b.centred_limit
        assert a.cosine_min > b.cosine_min
    for allowed in THRESHOLDS.values():
        assert allowed.rel_l2_floor < allowed.rel_l2_limit and allowed.centred_floor < allowed.centred_limit
        # What a plain figure allows, a centred one allows at most twice: where the constant part is large, it decides.
        assert allowed.rel_l2_floor < allowed.centred_floor <= 2 * allowed.rel_l2_floor
        assert allowed.rel_l2_limit < allowed.centred_limit <= 2 * allowed.rel_l2_limit
