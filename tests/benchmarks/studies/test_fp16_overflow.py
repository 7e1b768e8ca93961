"""The benchmark's claim at a small size: naive FP16 breaks, ours does not."""

from __future__ import annotations

from fvexport.benchmarks.studies.fp16_overflow import measure


def test_naive_fp16_overflows_and_ours_does_not() -> None:
    rows = {row["name"]: row for row in measure(128, "tiny", 17)}
    assert not rows["fp16, naive"]["figures"]["finite"]
    assert rows["fp16"]["figures"]["cosine_min"] >= 0.9999
    assert "stage 4 by 2^-" in rows["fp16"]["notice"]
    assert rows["bf16"]["figures"]["cosine_min"] >= 0.999
