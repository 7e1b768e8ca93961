"""The report as Markdown: for an issue, a commit, a terminal."""

from __future__ import annotations

from ... import __version__
from . import markdown_text as md
from .compare import Comparison
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
from .tables import table


def build_markdown(loaded: Loaded, comparison: Comparison | None) -> str:
    """The page without its plots."""
    runs = loaded.runs
    parts = [f"<!-- Made by fvexport {__version__} -->\n", md.heading(1, title(runs)), md.paragraph(subtitle(runs))]
    parts += map(md.quote, loaded.notices)
    if comparison is not None:
        parts += _differences(comparison)
    for run in runs:
        if len(runs) > 1:
            parts.append(md.heading(2, run.label))
        parts += _run(run)
    return "\n".join(parts)


def _differences(comparison: Comparison) -> list[str]:
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
    return [
        md.heading(2, f"Differences from {comparison.baseline}"), md.paragraph(verdict(comparison)),
        md.table(header, cells, numbers), md.paragraph(method(comparison)),
    ]  # fmt: skip


def _run(run: Run) -> list[str]:
    best = headline(run)
    reference = reference_name(run)
    sections = [
        md.heading(3, "What is fastest, and still the same model"),
        md.paragraph(lead(best, reference) if best else no_lead(run)),
    ]
    if best:
        header = ("resolution", "batch", "fastest that passes", "one call", "speed-up", "SQNR",
                  "fastest without quantization", "one call", "speed-up")  # fmt: skip
        rows = [
            (r.resolution, str(r.batch), with_ties(r.name, r.ties), r.time, r.speedup, r.sqnr,
             with_ties(r.float_name, r.float_ties), r.float_time, r.float_speedup)
            for r in map(headline_row, best)
        ]  # fmt: skip
        sections.append(md.table(header, rows, [False, True, False, True, True, True, False, True, True]))
        sections.append(md.paragraph(lead_method(best, reference)))
    shown = table(run)
    kept = [index for index, column in enumerate(shown.columns) if column.importance == "main"]
    sections.append(md.heading(3, "All cells"))
    sections.append(
        md.table(
            [shown.columns[index].title for index in kept],
            [[row[index].text for index in kept] for row in shown.rows],
            [shown.columns[index].number for index in kept],
        )
    )
    lines = [
        md.line(f"{'; '.join(n.cells)} {n.meaning}" + (f": {n.reason}" if n.reason else "") + ".") for n in notes(run)
    ]
    for absent in run.absent:
        name = f"{absent.backend} {absent.precision or ''}".strip()
        install = f"; {md.code(absent.install)}" if absent.install else ""
        lines.append(md.line(f"{name} is absent: {absent.reason}") + install + ".")
    if lines:
        sections += [md.heading(3, "Notes"), md.bullets(lines)]
    sections += [md.heading(3, "Machine"), md.bullets(md.line(f"{key}: {value}") for key, value in facts(run))]
    sections += [md.heading(3, "How to measure it again"), md.console(run.environment.command)]
    return sections
