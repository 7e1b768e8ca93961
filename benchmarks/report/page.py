"""Everything on the page in words, and the page: one file of HTML that loads nothing."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...core.errors import UnavailableError, first_line
from ...core.phrases import counted, first_few
from ...core.shell import command_line
from ..sweep.result import Result
from .axes import Plot
from .bars import difference_plots
from .compare import QUIET, Comparison, Difference
from .formatting import decibels, milliseconds, percent, percent_interval, three, times
from .headline import Best, headline, median_ms, reference_name, speedup
from .intervals import LEVEL, MIN_WINDOWS, RESAMPLES
from .load import Loaded, Run, shown_path
from .notes import Note, name, notes
from .plots import legend_marks, run_plots
from .published import MACHINE
from .series import Curve, curves
from .tables import Table, table

RELEASED = "1024"
"""The resolution that FastVLM was released for."""

SETTINGS = {
    "window_s": "windows of {} s",
    "max_calls": "of at most {} calls",
    "min_rounds": "{} rounds or more",
    "max_rounds": "at most {}",
    "last": "stable as the last {} windows",
    "tolerance": "agree within {}",
    "beside": "the reference again after every {} cells",
}
"""How a sweep measured (`Measuring`), in words."""

METHOD = (
    "How intervals are made: of each cell every round keeps the median time of its window; rounds, not calls, are "
    f"resampled ({RESAMPLES // 1000}\u202f000 times, always the same draws), since calls in a row are not "
    f"independent. The interval is where {100 * LEVEL:.0f} % of the ratios of medians lie, widened for the few rounds "
    "there are as Student's t is."
)


@dataclass(frozen=True, kw_only=True)
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
    float_ties: str = ""
    float_time: str = ""
    float_speedup: str = ""


def build_page(loaded: Loaded, comparison: Comparison | None) -> str:
    """The page as HTML."""
    import jinja2

    matplotlib = _import_matplotlib()
    from .svg import RC

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"sortable": _sortable, "judged": _judged}
    with matplotlib.rc_context(RC):
        context = _context(loaded, comparison)
    return environment.get_template("page.html.j2").render(context)


def _import_matplotlib() -> Any:
    """matplotlib, which may warn of a home folder that cannot be written, and then uses a temporary one for its fonts.

    Raises UnavailableError if it finds no folder at all.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib

        matplotlib.get_cachedir()
    except OSError as error:
        raise UnavailableError(f"no report can be drawn ({first_line(error, 400)})") from None
    finally:
        log.setLevel(level)
    return matplotlib


def _context(loaded: Loaded, comparison: Comparison | None) -> dict[str, Any]:
    runs = loaded.runs
    parts = [_part(run, f"run{index}") for index, run in enumerate(runs)]
    several = len({difference.run for difference in comparison.differences}) > 1 if comparison else False
    files = sorted({file for run in runs for file in run.files})
    return {
        "version": __version__,
        "title": title(runs),
        "subtitle": subtitle(runs),
        "sections": _sections(parts, comparison),
        "notices": loaded.notices,
        "parts": parts,
        "comparison": comparison,
        "comparison_method": method(comparison) if comparison else "",
        "verdict_of_comparison": verdict(comparison) if comparison else "",
        "difference_plots": [_with_id(p, f"comparison{i}") for i, p in enumerate(difference_plots(comparison))]
        if comparison
        else [],
        "across": across(parts) if len(parts) > 1 else None,
        "difference_rows": [difference_row(d) for d in comparison.differences] if comparison else [],
        "several": several,
        "sources": ", ".join(map(shown_path, files)),
    }  # fmt: skip


def method(comparison: Comparison) -> str:
    """How the differences were found, and what they cannot tell."""
    if comparison.relative:
        return (
            f"{METHOD} Compared are times over the reference cell's in the same round, which a slow day leaves alone; "
            f"where {MIN_WINDOWS} rounds or more are left in both runs, of those rounds in which the reference took at "
            f"most {100 * (QUIET - 1):.0f} % longer than its shortest."
        )
    return (
        f"{METHOD} It covers what varies within a run. A machine that was slower all day shows as slower: "
        "with --relative, times over the reference cell's in the same round are compared instead."
    )


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
    return sections + [
        (f"{part['id']}-{key}", name) for key, name in (*inner, ("machine", "Machine"), ("again", "Again"))
    ]


# --- one run -----------------------------------------------------------------------------------


def _part(run: Run, prefix: str) -> dict[str, Any]:
    found = curves(run.results)  # with the keys that plots and legend share
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
        "best_rows": best,
        "several_batches": len({row.batch for row in rows}) > 1,
        "any_float": any(row.float_fastest is not row.fastest for row in best),
        "lead": lead(best, reference_name(run)) if best else "",
        "lead_method": lead_method(best, reference_name(run)),
        "no_lead": no_lead(run),
        "facts": facts(run),
        "files": command_line(run.files),
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
        groups.setdefault((curve.runner, curve.peer), []).append((curve, Markup(marks[curve.key]), name))
    legend = [{"name": runner, "peer": peer, "curves": curves} for (runner, peer), curves in groups.items()]
    if paper:
        other = {"key": "paper", "label": MACHINE}
        legend.append({"name": MACHINE, "peer": False, "curves": [(other, Markup(marks["paper"]), "another machine")]})
    return legend


def across(parts: Sequence[dict[str, Any]]) -> list[tuple[str, int, list[HeadlineRow | None]]]:
    """The tables at the top of several runs in one: resolution, batch, and what is fastest in each run."""
    rows: dict[tuple[int, float, str], list[HeadlineRow | None]] = {}
    for index, part in enumerate(parts):
        for best, row in zip(part["best_rows"], part["headline"], strict=True):
            key = (best.batch, best.fastest.cell.pixels, best.resolution)
            rows.setdefault(key, [None] * len(parts))[index] = row
    return [(resolution, batch, found) for (batch, _, resolution), found in sorted(rows.items())]


def headline_row(best: Best) -> HeadlineRow:
    """In words."""
    row = HeadlineRow(
        resolution=best.resolution,
        batch=best.batch,
        name=shown_name(best.fastest),
        ties=_ties_text(best.ties),
        time=milliseconds(median_ms(best.fastest)),
        speedup=_speedup(best.fastest),
        sqnr=_sqnr(best.fastest),
    )
    plain = best.float_fastest
    if plain is None:
        return replace(row, float_name="none")
    return replace(
        row, float_name=shown_name(plain), float_ties=_ties_text(best.float_ties),
        float_time=milliseconds(median_ms(plain)), float_speedup=_speedup(plain),
    )  # fmt: skip


def _ties_text(ties: Sequence[Result]) -> str:
    return f"or {first_few((result.cell.series for result in ties), 2)}: no difference shown" if ties else ""


def with_ties(name: str, ties: str) -> str:
    """A name, with those that are as fast in brackets, for text without lines of its own for them."""
    return f"{name} ({ties})" if ties else name


def shown_name(result: Result) -> str:
    """`openvino int8`, with what the reader has to know of it."""
    return result.cell.series + (" (unstable)" if result.status == "unstable" else "")


def lead(found: Sequence[Best], reference: str) -> str:
    """The sentence that answers the question, at the smallest batch and, if it is there, `RELEASED`."""
    smallest = min(best.batch for best in found)
    rows = [row for row in found if row.batch == smallest]
    best = next((row for row in rows if row.resolution == RELEASED), rows[-1])
    calls = "one image" if best.batch == 1 else f"{best.batch} images"
    took = milliseconds(median_ms(best.fastest))
    sentence = f"At {_pixels(best.resolution)}, {shown_name(best.fastest)} is fastest: {took} for {calls}"
    if (over := _speedup(best.fastest)) and best.fastest.cell.series != reference:
        sentence += f", {over} as fast as {reference}"
    if sqnr := _sqnr(best.fastest):
        sentence += f", with an SQNR of {sqnr}"
    if best.float_fastest not in (None, best.fastest):
        plain = best.float_fastest
        named = with_ties(shown_name(plain), _ties_text(best.float_ties))
        sentence += f". Without quantization it is {named}: {milliseconds(median_ms(plain))}"
        if over := _speedup(plain):
            sentence += f", {over}"
    return sentence + "."


def lead_method(found: Sequence[Best], reference: str) -> str:
    """How the table at the top came about."""
    failing = sum(best.failing for best in found)
    timed = counted(sum(best.candidates for best in found), "timed cell")
    text = (
        f"Smallest median of {timed} whose features pass parity with the eager float32 model; "
        f"speed-up over {reference}."
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
    return "" if parity is None else decibels(parity.strict_sqnr_db, exact=parity.rel_l2 == 0)


def _pixels(resolution: str) -> str:
    return f"{resolution} × {resolution}" if resolution.isdigit() else resolution


def facts(run: Run) -> list[tuple[str, str]]:
    """The environment in words."""
    env = run.environment
    cpu = env.cpu
    cores = f", {cpu['usable']} of {cpu['cores']} cores" if cpu.get("usable") and cpu.get("cores") else ""
    quota = f", a quota of {cpu['quota']:g}" if cpu.get("quota") else ""
    rows = [
        ("CPU", f"{cpu.get('model') or 'unknown'}{cores}{quota}"),
        ("its vectors", ", ".join(cpu.get("features") or ())),
        ("memory", f"{env.memory_gb:.0f} GB" if env.memory_gb else ""),
        ("GPU", "; ".join(env.gpus) or "none"),
        ("system", env.platform),
        ("Python", env.python),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(env.versions.items()))),
        ("measured", "; ".join(_setting(name, value) for name, value in env.settings.items())),
        ("timers", ", ".join(sorted({result.latency.timer for result in run.measured if result.latency}))),
        ("began", env.date.replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(name, value) for name, value in rows if value]


def _setting(name: str, value: Any) -> str:
    words = SETTINGS.get(name, name.replace("_", " ") + " {}")
    if name == "tolerance" and isinstance(value, int | float):
        value = f"{100 * value:g} %"
    # Not by `format`: a name may hold braces.
    return words.replace("{}", f"{value:g}" if isinstance(value, float) else str(value))


# --- differences -------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """What changed, in one sentence."""
    counts = Counter(difference.finding for difference in comparison.differences)
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


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """A row of the table of differences, in words."""

    name: str
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
        name=name(difference.new), run=difference.run, before=shown(difference.base), now=shown(difference.new),
        change=percent(change.value - 1) if change else "", change_key=change.value if change else "",
        interval=interval, finding=difference.finding, style=style, reason=difference.reason,
    )  # fmt: skip


def _sortable(key: float | str | None) -> str:
    if isinstance(key, float) and math.isinf(key):
        return "1e999"
    return "" if key is None else str(key)


def _judged(text: str) -> str:
    return "good" if text in ("ok", "pass") else "warn" if text in ("unstable", "skipped") else "bad"
