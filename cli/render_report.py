"""What `fvexport report` prints: the fastest at each resolution, and what changed."""

from __future__ import annotations

from typing import Any

from ..benchmarks.report.compare import Comparison
from ..benchmarks.report.formatting import THIN
from ..benchmarks.report.headline import Best, headline, median_ms, speedup
from ..benchmarks.report.page import difference_row, headline_row, no_lead, verdict
from ..benchmarks.report.write import Report
from ..benchmarks.sweep.result import Result
from . import printing

MOST_ROWS = 20


def report(made: Report) -> None:
    """The verdict of each run, the differences, and where the report lies."""
    for run in made.loaded.runs:
        rows = [headline_row(best) for best in headline(run)]
        if not rows:
            printing.notices([f"{run.label}: {no_lead(run)}"])
            continue
        for batch in sorted({row.batch for row in rows}):
            shown = [row for row in rows if row.batch == batch]
            quantized = any(row.float_name != row.name for row in shown)
            lines = [
                (r.resolution, r.name, r.time, r.speedup, r.sqnr, *([r.float_name] if quantized else [])) for r in shown
            ]
            header = ("pixels", "fastest", "a call", "faster", "SQNR", *(["without INT8"] if quantized else []))
            title = run.label + (f", batch {batch}" if batch > 1 else "")
            printing.table(header, [[_plain(text) for text in line] for line in lines], title=title)
    if made.comparison is not None:
        differences(made.comparison)
    printing.notices(made.notices)
    printing.facts([("report", made.html), ("as Markdown", made.markdown), ("as CSV", made.csv)])


def differences(comparison: Comparison) -> None:
    """Cells that are broken or slower first; the rest is counted."""
    shown = [row for row in map(difference_row, comparison.differences) if row.finding not in ("same", "unclear")]
    rows = [(r.name, r.now.text, r.change, r.interval, r.finding) for r in shown[:MOST_ROWS]]
    if rows:
        header = ("cell", "ms", "change", "95 % interval", "")
        printing.table(header, [[_plain(text) for text in row] for row in rows], title="what changed")
    printing.write_line(f"compared with {comparison.baseline}: {verdict(comparison)}")
    if len(shown) > MOST_ROWS:
        printing.notices([f"{len(shown) - MOST_ROWS} more such cells are in the report"])


def to_dict(made: Report) -> dict[str, Any]:
    """Plain data for JSON."""
    comparison = made.comparison
    return {
        "html": str(made.html),
        "markdown": str(made.markdown),
        "csv": str(made.csv),
        "runs": [
            {
                "label": run.label,
                "environment": run.environment.id,
                "date": run.environment.date,
                "files": [str(file) for file in run.files],
                "baseline": run.baseline,
                "cells": len(run.results),
                "measured": len(run.measured),
                "fastest": [_best(best) for best in headline(run)],
            }
            for run in made.loaded.runs
        ],
        "comparison": comparison
        and {
            "baseline": comparison.baseline,
            "threshold": comparison.threshold,
            "relative": comparison.relative,
            "alone": comparison.alone,
            "regressions": len(comparison.regressions),
            "differences": [difference.to_dict() for difference in comparison.differences],
        },
        "notices": list(made.notices),
    }


def _best(best: Best) -> dict[str, Any]:
    def told(result: Result | None) -> dict[str, Any] | None:
        if result is None:
            return None
        over = speedup(result)
        return {"cell": result.cell.series, "p50_ms": median_ms(result), "speedup": over and over.value}

    return {
        "resolution": best.resolution,
        "batch": best.batch,
        "fastest": told(best.fastest),
        "ties": [result.cell.series for result in best.ties],
        "float_fastest": told(best.float_fastest),
        "float_ties": [result.cell.series for result in best.float_ties],
    }


def _plain(text: object) -> str:
    return str(text).replace(THIN, "").replace(" ms", "\u00a0ms")
