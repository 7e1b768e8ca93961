"""The report as Markdown: for an issue, a commit, a terminal."""

from __future__ import annotations

from ... import __version__
from .compare import Comparison
from .formatting import THIN
from .headline import headline, reference_name
from .load import Loaded, Run
from .notes import notes
from .page import (
    difference_row,
    facts,
    headline_row,
    lead,
    lead_method,
    method,
    no_lead,
    subtitle,
    title,
    verdict,
    with_ties,
)  # fmt: skip
from .tables import markdown_table, table


def build_markdown(loaded: Loaded, comparison: Comparison | None) -> str:
    """The page without its plots."""
    runs = loaded.runs
    parts = [f"<!-- Made by fvexport {__version__} -->\n\n# {title(runs)}\n\n{subtitle(runs)}\n"]
    parts += [f"> {notice}\n" for notice in loaded.notices]
    if comparison is not None:
        parts.append(_differences(comparison))
    for run in runs:
        if len(runs) > 1:
            parts.append(f"## {run.label}\n")
        parts.append(_run(run))
    return "\n".join(parts).replace(THIN, " ")


def _differences(comparison: Comparison) -> str:
    rows = [difference_row(d) for d in comparison.differences]
    several = len({row.run for row in rows}) > 1
    header = ["cell", *(["run"] if several else []), "before, ms", "now, ms", "change", "95 % interval", "finding"]
    cells = [
        [
            row.name, *([row.run] if several else []), row.before.text, row.now.text, row.change, row.interval,
            row.finding + (f": {row.reason}" if row.reason else ""),
        ]
        for row in rows
    ]  # fmt: skip
    numbers = [False, *([False] if several else []), True, True, True, True, False]
    return (
        f"## Differences from {comparison.baseline}\n\n{verdict(comparison)}\n\n"
        f"{markdown_table(header, cells, numbers)}\n{method(comparison)}\n"
    )


def _run(run: Run) -> str:
    best = headline(run)
    reference = reference_name(run)
    sections = [
        "### What is fastest, and still the same model\n",
        (lead(best, reference) if best else no_lead(run)) + "\n",
    ]
    if best:
        header = ("resolution", "batch", "fastest that passes", "one call", "speed-up", "SQNR",
                  "fastest without quantization", "one call", "speed-up")  # fmt: skip
        rows = [
            (r.resolution, str(r.batch), with_ties(r.name, r.ties), r.time, r.speedup, r.sqnr,
             with_ties(r.float_name, r.float_ties), r.float_time, r.float_speedup)
            for r in map(headline_row, best)
        ]  # fmt: skip
        sections.append(markdown_table(header, rows, [False, True, False, True, True, True, False, True, True]))
        sections.append(lead_method(best, reference) + "\n")
    shown = table(run)
    kept = [index for index, column in enumerate(shown.columns) if column.importance == "main"]
    sections.append("### All cells\n")
    sections.append(
        markdown_table(
            [shown.columns[index].title for index in kept],
            [[row[index].text for index in kept] for row in shown.rows],
            [shown.columns[index].number for index in kept],
        )
    )
    lines = [f"- {'; '.join(n.cells)} {n.meaning}" + (f": {n.reason}" if n.reason else "") + "." for n in notes(run)]
    for absent in run.absent:
        name = f"{absent.backend} {absent.precision or ''}".strip()
        lines.append(f"- {name} is absent: {absent.reason}" + (f"; `{absent.install}`" if absent.install else "") + ".")
    if lines:
        sections += ["### Notes\n", "\n".join(lines) + "\n"]
    sections.append("### Machine\n")
    sections.append("\n".join(f"- {key}: {value}" for key, value in facts(run)) + "\n")
    sections.append(f"### How to measure it again\n\n```console\n{run.environment.command}\n```\n")
    return "\n".join(sections)
