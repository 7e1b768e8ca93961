"""Each step of the quantization has to be worth its code."""

from __future__ import annotations

from fvexport.benchmarks.studies.int8_steps import measure


def test_steps_pay() -> None:
    rows = {row["step"]: row["mean_db"] for row in measure(128, 24, "tiny", "onnxruntime-cpu", 1.0)}
    plain = rows["rounded to nearest, nearest"]
    equalized = rows["+ equalized stream, nearest"]
    best = rows["+ compensated rounding, ranges by weighted"]
    assert equalized > plain + 3  # of outlier channels
    # So small a model has few inputs per product for rounding to pay back with; it must not cost anything.
    assert best > max(plain + 3, equalized - 1)
