"""Slow-downs that were put in are found, noise is not; a slow day counts for nothing where asked."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fvexport.benchmarks.report.compare import Comparison, compare_runs
from fvexport.benchmarks.report.headline import headline, paired, reference_name, speedup
from fvexport.benchmarks.report.load import load
from fvexport.benchmarks.report.notes import notes
from fvexport.benchmarks.report.page import headline_row, lead
from fvexport.benchmarks.report.speedup import over_eager
from fvexport.benchmarks.sweep.result import Latency, Parity, Record, Result, Window, percentile
from fvexport.benchmarks.sweep.store import append

Change = Callable[[Result], Result]


@pytest.fixture
def compare(synthetic, tmp_path: Path) -> Callable[..., Comparison]:
    """Compares a sweep with another one that `change` went over."""

    def compared(
        change: Change, noise: float = 0.005, threshold: float = 0.05, relative: bool = False,
        before: Change = lambda result: result,
    ) -> Comparison:  # fmt: skip
        sides = {"old": synthetic(0, noise=noise), "new": synthetic(1, noise=noise)}
        for name, turn in {"old": before, "new": change}.items():
            (tmp_path / name / "results.jsonl").unlink(missing_ok=True)
            sides[name] = [turn(r) if isinstance(r, Result) else r for r in sides[name]]
        for name, records in sides.items():
            append(tmp_path / name / "results.jsonl", *records)
        found = compare_runs(
            load([tmp_path / "new"], baseline=tmp_path / "old"), threshold=threshold, relative=relative
        )
        assert found is not None
        return found

    return compared


def slower(result: Result, factor: float, *, reference: float = 1.0) -> Result:
    """A result whose every call took so many times as long, and its reference's too."""
    latency = result.latency
    if latency is None:
        return result
    windows = tuple(
        replace(w, median_ms=factor * w.median_ms, reference_ms=w.reference_ms and reference * w.reference_ms)
        for w in latency.windows
    )
    return replace(result, latency=of_windows(latency, windows))


def of_windows(latency: Latency, windows: Sequence[Window]) -> Latency:
    """A latency with other windows, whose figures follow from them."""
    medians = [window.median_ms for window in windows]
    return replace(
        latency, windows=tuple(windows), count=sum(window.count for window in windows), min_ms=min(medians),
        p50_ms=statistics.median(medians), p90_ms=percentile(medians, 0.9), p99_ms=percentile(medians, 0.99),
        mean_ms=statistics.fmean(medians),
    )  # fmt: skip


def test_noise_is_no_regression(compare) -> None:
    found = compare(lambda result: result)
    assert found.regressions == [] and found.alone == 0
    findings = {d.finding for d in found.differences}
    assert "same" in findings and "faster" not in findings


def test_an_injected_slow_down(compare) -> None:
    """Of one series by a fifth, of another it is the other way round."""

    def change(result: Result) -> Result:
        factor = {"openvino int8": 1.2, "onnxruntime-cpu int8": 0.8}.get(result.cell.series, 1.0)
        return slower(result, factor)

    found = compare(change)
    assert {d.new.cell.series for d in found.regressions} == {"openvino int8"}
    assert len(found.regressions) == 3  # resolutions
    for difference in found.regressions:
        assert difference.change.low < 1.2 < difference.change.high
        assert difference.to_dict()["finding"] == "slower" and 0.1 < difference.to_dict()["change"] < 0.3
    assert {d.new.cell.series for d in found.differences if d.finding == "faster"} == {"onnxruntime-cpu int8"}
    assert found.differences[0].regression  # the worst first


@pytest.mark.parametrize(
    ("factor", "threshold", "flagged"), [(1.2, 0.05, True), (1.2, 0.3, False), (1.03, 0.05, False)]
)
def test_the_threshold(compare, factor: float, threshold: float, flagged: bool) -> None:
    found = compare(lambda result: slower(result, factor), threshold=threshold)
    assert bool(found.regressions) == flagged


def test_only_what_the_interval_excludes_is_flagged(compare) -> None:
    """The same slow-down under heavy noise is not decided."""
    found = compare(lambda result: slower(result, 1.1), noise=0.2)
    assert found.regressions == []
    assert any(d.finding == "unclear" and d.change.value > 1.05 for d in found.differences)


def test_a_slow_day(compare) -> None:
    """Everything takes half as long again: slower in time, the same over the reference."""
    found = compare(lambda result: slower(result, 1.5, reference=1.5))
    timed = [d for d in found.differences if d.change and d.new.cell.kind != "ttft"]  # those have four rounds
    assert {d.finding for d in timed} == {"slower"}


def test_a_slow_day_over_the_reference(compare) -> None:
    found = compare(lambda result: slower(result, 1.5, reference=1.5), relative=True)
    assert found.relative and found.regressions == []
    assert all(0.9 < d.change.value < 1.1 for d in found.differences if d.change)


def test_a_machine_of_two_speeds_over_the_reference(compare) -> None:
    """INT8 takes more of the slow speed than the reference does, and the second run met it in five rounds of eight."""

    def two_speeds(slow: int) -> Change:
        def change(result: Result) -> Result:
            latency = result.latency
            if latency is None:
                return result
            more = 1.4 if result.cell.precision == "int8" else 1.2
            windows = tuple(
                replace(w, round=number, median_ms=w.median_ms * more, reference_ms=(w.reference_ms or 0) * 1.2)
                if number < slow else replace(w, round=number)
                for number, w in enumerate((*latency.windows, *latency.windows))
            )  # fmt: skip
            return replace(result, latency=of_windows(latency, windows))

        return change

    found = compare(two_speeds(10), relative=True, before=two_speeds(2))
    int8 = [d for d in found.differences if "int8" in d.place]
    assert int8 and all(d.change and abs(d.change.value - 1) < 0.02 for d in int8)
    assert found.regressions == []
    # With too few undisturbed rounds all count, and the machine's share shows.
    found = compare(two_speeds(13), relative=True, before=two_speeds(2))
    assert all(d.change and d.change.value > 1.1 for d in found.differences if "int8" in d.place)


def test_cells_that_broke(compare) -> None:
    def change(result: Result) -> Result:
        if result.cell.series == "openvino fp32" and result.cell.kind == "ours":
            return replace(result, status="crashed", reason="the process died", latency=None, parity=None)
        if result.cell.series == "openvino bf16":
            return replace(result, parity=Parity("fail", 3.0, 0.5, 0.1, 0.7))
        if result.cell.series == "torch-compile fp32":
            return replace(result, status="skipped", reason="the budget ended", latency=None)
        return result

    found = compare(change)
    reasons = {d.new.cell.series: d.reason for d in found.regressions}
    assert reasons.keys() == {"openvino fp32", "openvino bf16"}
    assert "crashed: the process died" in reasons["openvino fp32"] and "parity" in reasons["openvino bf16"]
    skipped = [d for d in found.differences if d.new.status == "skipped"]
    assert {d.finding for d in skipped} == {"unclear"} and "skipped" in skipped[0].reason


def test_too_few_rounds(compare) -> None:
    def change(result: Result) -> Result:
        result = slower(result, 2.0)
        latency = result.latency
        return replace(result, latency=latency and of_windows(latency, latency.windows[:3]))

    found = compare(change)
    assert found.regressions == []
    assert all("3 rounds are too few" in d.reason for d in found.differences if d.change)


def test_other_cells_are_counted(compare) -> None:
    def change(result: Result) -> Result:
        cell = result.cell
        return replace(result, cell=replace(cell, variant="other")) if cell.height == 512 else result

    found = compare(change)
    assert found.alone == 2 * sum(result.new.cell.height == 256 for result in found.differences)


# The answer at the top


def best(records: Sequence[Record], tmp_path: Path):
    append(tmp_path / "results.jsonl", *records)
    (run,) = load([tmp_path]).runs
    return headline(run), run


def test_the_fastest_that_passes(synthetic, tmp_path: Path) -> None:
    """openvino int8 would be first, but is not the same model at 512."""

    def change(record: Record) -> Record:
        if isinstance(record, Result) and record.cell.series == "openvino int8" and record.cell.height == 512:
            return replace(record, parity=Parity("fail", 3.0, 0.5, 0.1, 0.7))
        return record

    rows, run = best([change(r) for r in synthetic(noise=0.002)], tmp_path)
    assert [(r.resolution, r.fastest.cell.series, r.failing) for r in rows] == [
        ("256", "openvino int8", 0), ("512", "openvino bf16", 1), ("1024", "openvino int8", 0),
    ]  # fmt: skip
    assert {r.float_fastest.cell.series for r in rows} == {"openvino bf16"}
    assert all(r.ties == () for r in rows)
    over = speedup(rows[0].fastest)
    assert over.low <= 5.2 <= over.high * 1.01
    assert reference_name(run) in ("eager train fp32", "the reference")


def test_ties_are_told(synthetic, tmp_path: Path) -> None:
    """Under heavy noise the second may be the first."""
    rows, _ = best(synthetic(3, noise=0.2), tmp_path)
    assert any(r.ties for r in rows)


def test_ties_without_quantization_are_told(synthetic, tmp_path: Path) -> None:
    """Where two are equal to the last digit, both are named, whichever comes first."""
    records = synthetic(noise=0.002)
    times = {r.cell.height: r.latency for r in records if isinstance(r, Result) and r.cell.series == "openvino bf16"}

    def change(record: Record) -> Record:
        if isinstance(record, Result) and record.cell.series == "openvino fp32" and not record.ttft:
            return replace(record, latency=times[record.cell.height])
        return record

    rows, run = best([change(r) for r in records], tmp_path)
    for row in rows:
        (tie,) = row.float_ties
        assert {tie.cell.series, row.float_fastest.cell.series} == {"openvino bf16", "openvino fp32"}
        told = headline_row(row)
        assert told.float_ties == f"or {tie.cell.series}: no difference shown"
        assert f"{told.float_name} ({told.float_ties})" in lead([row], reference_name(run))


def test_what_was_measured_in_other_rounds_is_compared_over_the_reference(synthetic, tmp_path: Path) -> None:
    """The runner-up, as fast as the first, was measured later, when the machine was slower by a third."""
    rows, _ = best(synthetic(noise=0.002), tmp_path)
    first = rows[0].fastest
    assert first.latency is not None and paired(first, first).value == 1
    windows = tuple(
        replace(w, round=w.round + 50, median_ms=4 / 3 * w.median_ms, reference_ms=4 / 3 * w.reference_ms)
        for w in first.latency.windows
    )
    later = replace(first, latency=replace(first.latency, windows=windows, p50_ms=4 / 3 * first.latency.p50_ms))
    assert paired(first, later).value == pytest.approx(1)
    alone = replace(later, latency=replace(later.latency, reference="another"))
    assert paired(first, alone).value == pytest.approx(4 / 3, rel=0.05)


def test_a_resolution_that_was_not_reached_is_one_note(synthetic, tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        if isinstance(record, Result) and record.cell.kind != "ttft" and record.cell.height == 512:
            return replace(record, status="skipped", reason="the budget ended", latency=None)
        return record

    _, run = best([change(r) for r in synthetic(noise=0.002)], tmp_path)
    count = sum(r.cell.height == 512 and not r.cell.llm for r in run.results)
    (skipped,) = (note for note in notes(run) if note.status == "skipped")
    assert skipped.cells == (f"each of the {count} cells at 512",)
    (crashed,) = (note for note in notes(run) if note.status == "crashed")
    assert crashed.cells == ("plain-torch-compile fp32 at 256",)


def test_speed_over_eager_from_another_reference(synthetic, tmp_path: Path) -> None:
    """Measured beside a quick reference, and eager left after five rounds: ratios to eager come out all the same."""

    def beside_another(record: Record) -> Record:
        if not isinstance(record, Result) or record.latency is None or record.ttft:
            return record
        windows = tuple(replace(w, reference_ms=(w.reference_ms or 0) / 4) for w in record.latency.windows)
        kept = windows[:5] if record.cell.series == "eager train fp32" else windows
        return replace(record, latency=replace(of_windows(record.latency, kept), reference="of another cell"))

    append(tmp_path / "results.jsonl", *map(beside_another, synthetic(noise=0.002)))
    (run,) = over_eager(load([tmp_path])).runs
    assert reference_name(run) == "eager train fp32"
    found = {r.cell.series: speedup(r).value for r in run.measured if r.cell.height == 512 and not r.ttft}
    assert found["eager train fp32"] == pytest.approx(1)
    assert found["openvino int8"] == pytest.approx(5.2, rel=0.02)
    assert found["eager fused fp32"] == pytest.approx(0.98, rel=0.02)
