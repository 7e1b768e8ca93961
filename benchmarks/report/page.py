"""Everything on the page in words, and the page: one file of HTML that loads nothing."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ..sweep.result import Result
from .axes import Plot
from .bars import difference_plot
from .compare import Comparison, Difference
from .headline import Best, headline, median_ms, speedup
from .intervals import LEVEL, RESAMPLES
from .load import Loaded, Run
from .notes import Note, notes
from .plots import legend_marks, reference_name, run_curves, run_plots
from .published import MACHINE
from .series import Curve
from .tables import Table, table
from .wording import counted, decibels, milliseconds, percent, percent_interval, three, times

METHOD = (
    "How intervals are made: of each cell every round keeps the median time of its window; rounds, not calls, are "
    f"resampled ({RESAMPLES:,} times, always the same draws), since calls in a row are not independent. The interval is "
    f"where {100 * LEVEL:.0f} % of the ratios of medians lie, widened for the few rounds there are as Student's t is."
).replace(",000", "\u202f000")


@dataclass(frozen=True)
class HeadlineRow:
    """A row of the table at the top, in words."""

    resolution: str
    batch: int
    name: str
    ties: str
    time: str
    speedup: str
    sqnr: str
    float_name: str = ""
    float_time: str = ""
    float_speedup: str = ""


def build_page(loaded: Loaded, comparison: Comparison | None) -> str:
    """The page as HTML."""
    import jinja2
    import matplotlib

    from .svg import RC

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"sortable": _sortable, "judged": _judged}
    with matplotlib.rc_context(RC):
        context = _context(loaded, comparison)
    return environment.get_template("page.html.j2").render(context)


def _context(loaded: Loaded, comparison: Comparison | None) -> dict[str, Any]:
    runs = loaded.runs
    parts = [_part(run, f"run{index}") for index, run in enumerate(runs)]
    several = len({difference.run for difference in comparison.differences}) > 1 if comparison else False
    files = sorted({file for run in runs for file in run.files})
    drawn = difference_plot(comparison, several) if comparison else None
    return {
        "version": __version__,
        "title": title(runs),
        "subtitle": subtitle(runs),
        "sections": _sections(parts, comparison),
        "notices": loaded.notices,
        "parts": parts,
        "comparison": comparison,
        "comparison_method": METHOD + (" Times are over the reference cell's in the same round." if _relative(comparison) else ""),
        "verdict_of_comparison": verdict(comparison) if comparison else "",
        "difference_plot": drawn and _with_id(drawn, "comparison"),
        "difference_rows": [difference_row(d) for d in comparison.differences] if comparison else [],
        "several": several,
        "sources": ", ".join(str(file) for file in files),
    }  # fmt: skip


def _relative(comparison: Comparison | None) -> bool:
    return comparison is not None and comparison.relative


def title(runs: Sequence[Run]) -> str:
    """`FastViTHD by resolution`, or what else the cells are of."""
    variants = {result.cell.variant for run in runs for result in run.results}
    names = {"fastvithd": "FastViTHD", "tiny": "FastViTHD (tiny variant)"}
    return f"{', '.join(sorted(names.get(v, v) for v in variants))}: what each resolution costs"


def subtitle(runs: Sequence[Run]) -> str:
    """Machine, date, weights, and how much was measured."""
    cells = [result.cell for run in runs for result in run.results]
    weights = ", ".join(sorted({cell.checkpoint for cell in cells}))
    where = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    dates = sorted({run.environment.date[:10] for run in runs})
    count = counted(sum(len(run.measured) for run in runs), "cell") + " measured"
    return " · ".join((where, " to ".join(dict.fromkeys((dates[0], dates[-1]))), f"weights {weights}", count))


def _sections(parts: Sequence[dict[str, Any]], comparison: Comparison | None) -> list[tuple[str, str]]:
    sections = [("verdict", "Verdict")] + ([("comparison", "Differences")] if comparison else [])
    if len(parts) > 1:
        return sections + [(part["id"], part["run"].label) for part in parts]
    (part,) = parts
    inner = [("plots", "Plots")] if part["plots"] else []
    inner += [("cells", "All cells")] + ([("notes", "Notes")] if part["notes"] or part["run"].absent else [])
    return sections + [(f"{part['id']}-{key}", name) for key, name in (*inner, ("machine", "Machine"), ("again", "Again"))]


# --- one run -----------------------------------------------------------------------------------


def _part(run: Run, prefix: str) -> dict[str, Any]:
    found = run_curves(run)
    plots = [_with_id(plot, prefix) for plot in run_plots(run, found, prefix)]
    best = headline(run)
    fastest = {id(result) for row in best for result in (row.fastest, row.float_fastest) if result}
    rows = [headline_row(row) for row in best]
    shown: Table = table(run)
    found_notes: list[Note] = notes(run)
    paper = any("paper" in plot.caption for plot in plots if plot.name == "latency")
    return {
        "id": prefix,
        "run": run,
        "plots": plots,
        "legend": _legend(found, prefix, paper=paper),
        "best": " ".join(c.key for c in found if any(id(r) in fastest for r in c.results)),
        "ours": " ".join(c.key for c in found if not c.peer),
        "peers": any(c.peer for c in found),
        "table": shown,
        "notes": found_notes,
        "headline": rows,
        "several_batches": len({row.batch for row in rows}) > 1,
        "any_float": any(row.float_name for row in rows),
        "lead": lead(best, reference_name(run)) if best else "",
        "lead_method": lead_method(best, reference_name(run)),
        "no_lead": no_lead(run),
        "facts": facts(run),
        "files": " ".join(shlex.quote(os.fspath(file)) for file in run.files),
    }


@dataclass(frozen=True)
class DrawnPlot(Plot):
    """A plot with its place in the page."""

    id: str = ""


def _with_id(plot: Plot, prefix: str) -> DrawnPlot:
    return DrawnPlot(**vars(plot), id=f"{prefix}-{plot.name}")


def _legend(found: Sequence[Curve], prefix: str, *, paper: bool) -> list[dict[str, Any]]:
    """Curves by runner: `{name, peer, curves: [(curve, its mark, its name)]}`."""
    from markupsafe import Markup

    marks = legend_marks(found, prefix, paper=paper)
    groups: dict[tuple[str, bool], list[tuple[Any, Markup, str]]] = {}
    for curve in found:
        name = curve.label.removeprefix(f"{curve.runner} ")
        groups.setdefault((curve.runner, curve.peer), []).append((curve, Markup(marks[curve.key]), name))  # noqa: S704
    legend = [{"name": runner, "peer": peer, "curves": curves} for (runner, peer), curves in groups.items()]
    if paper:
        curve = {"key": "paper", "label": MACHINE}
        legend.append({"name": MACHINE, "peer": False, "curves": [(curve, Markup(marks["paper"]), "another machine")]})  # noqa: S704
    return legend


def headline_row(best: Best) -> HeadlineRow:
    """In words."""
    ties = ", ".join(result.cell.series for result in best.ties[:2])
    more = f" and {len(best.ties) - 2} more" if len(best.ties) > 2 else ""
    row = HeadlineRow(
        resolution=best.resolution,
        batch=best.batch,
        name=shown_name(best.fastest),
        ties=f"or {ties}{more}: no difference shown" if ties else "",
        time=milliseconds(median_ms(best.fastest)),
        speedup=_speedup(best.fastest),
        sqnr=_sqnr(best.fastest),
    )
    if best.float_fastest is None:
        return row
    plain = best.float_fastest
    return replace(
        row, float_name=shown_name(plain), float_time=milliseconds(median_ms(plain)), float_speedup=_speedup(plain)
    )


def shown_name(result: Result) -> str:
    """`openvino int8`, with what the reader has to know of it."""
    plain = " (plain way)" if result.cell.kind == "peer" else ""
    return result.cell.series + plain + (", unstable" if result.status == "unstable" else "")


def lead(found: Sequence[Best], reference: str) -> str:
    """The sentence that answers the question, at the largest resolution and the smallest batch."""
    smallest = min(best.batch for best in found)
    best = [row for row in found if row.batch == smallest][-1]
    calls = "one image" if best.batch == 1 else f"{best.batch} images"
    sentence = f"At {_pixels(best.resolution)}, {shown_name(best.fastest)} is fastest: {milliseconds(median_ms(best.fastest))} for {calls}"
    if over := _speedup(best.fastest):
        sentence += f", {over} as fast as {reference}"
    if sqnr := _sqnr(best.fastest):
        sentence += f", with an SQNR of {sqnr}"
    if best.float_fastest is not None:
        plain = best.float_fastest
        sentence += f". Without quantization it is {shown_name(plain)}: {milliseconds(median_ms(plain))}"
        if over := _speedup(plain):
            sentence += f", {over}"
    return sentence + "."


def lead_method(found: Sequence[Best], reference: str) -> str:
    """How the table at the top came about."""
    failing = sum(best.failing for best in found)
    text = (
        f"Smallest median of {counted(sum(best.candidates for best in found), 'timed cell')} whose features pass parity "
        f"with the eager float32 model; speed-up over {reference}."
    )
    return text + (f" {counted(failing, 'timed cell')} without a passing parity left out." if failing else "")


def no_lead(run: Run) -> str:
    """Why there is no answer."""
    if not run.measured:
        return "No cell was measured; the notes say why."
    return "No cell that was timed passes its parity, so none is called fastest."


def _speedup(result: Result) -> str:
    interval = speedup(result)
    return "" if interval is None else times(interval.value)


def _sqnr(result: Result) -> str:
    parity = result.parity
    return "" if parity is None else decibels(parity.sqnr_db, exact=parity.rel_l2 == 0)


def _pixels(resolution: str) -> str:
    return f"{resolution} × {resolution}" if resolution.isdigit() else resolution


def facts(run: Run) -> list[tuple[str, str]]:
    """The environment in words."""
    env = run.environment
    cpu = env.cpu
    cores = f", {cpu['usable']} of {cpu['cores']} cores" if cpu.get("usable") and cpu.get("cores") else ""
    rows = [
        ("CPU", f"{cpu.get('model') or 'unknown'}{cores}"),
        ("its vectors", ", ".join(map(str, cpu.get("features") or ()))),
        ("memory", f"{env.memory_gb:.0f} GB" if env.memory_gb else ""),
        ("GPU", "; ".join(env.gpus) or "none"),
        ("system", env.platform),
        ("Python", env.python),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(env.versions.items()))),
        ("measured", "; ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in env.settings.items())),
        ("timers", ", ".join(sorted({result.latency.timer for result in run.measured if result.latency}))),
        ("began", env.date.replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(name, value) for name, value in rows if value]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return three(value) if isinstance(value, float) else str(value)


# --- differences -------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """What changed, in one sentence."""
    counts = {finding: sum(d.finding == finding for d in comparison.differences) for finding in ("broken", "slower", "faster", "same", "unclear")}  # fmt: skip
    limit = f"{100 * comparison.threshold:g} %"
    said = [
        f"{counted(counts['broken'], 'cell')} broken" if counts["broken"] else "",
        f"{counts['slower']} slower by more than {limit}",
        f"{counts['faster']} faster",
        f"{counts['same']} within {limit}",
        f"{counts['unclear']} not decided" if counts["unclear"] else "",
        f"{comparison.alone} in one of the runs alone" if comparison.alone else "",
    ]
    return f"Of {counted(len(comparison.differences), 'cell')} in both: " + ", ".join(s for s in said if s) + "."


@dataclass(frozen=True)
class DifferenceRow:
    """A row of the table of differences, in words."""

    place: str
    run: str
    before: Any
    now: Any
    change: str
    change_key: float | str
    interval: str
    finding: str
    style: str
    reason: str


def difference_row(difference: Difference) -> DifferenceRow:
    """In words."""
    from .tables import Entry

    def shown(result: Result) -> Entry:
        return Entry(three(median_ms(result)), median_ms(result)) if result.measured else Entry(result.status, "")

    change = difference.change
    interval = percent_interval(change).partition("(")[2].rstrip(")") if change else ""
    style = {"slower": "bad", "broken": "bad", "faster": "good", "same": "", "unclear": "quiet"}[difference.finding]
    return DifferenceRow(
        difference.place, difference.run, shown(difference.base), shown(difference.new),
        percent(change.value - 1) if change else "", change.value if change else "", interval, difference.finding,
        style, difference.reason,
    )  # fmt: skip


def _sortable(key: float | str | None) -> str:
    if key is None:
        return ""
    if isinstance(key, float) and math.isinf(key):
        return "1e999"
    return str(key)


def _judged(text: str) -> str:
    if text in ("ok", "pass"):
        return "good"
    return "warn" if text in ("unstable", "skipped") else "bad"


def files_of(runs: Iterable[Run]) -> list[Path]:
    """All files that runs came from."""
    return sorted({file for run in runs for file in run.files})
