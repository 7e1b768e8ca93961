"""Plots with a row for each cell: time to first token by part, and differences between runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..sweep.result import Result
from . import published
from .axes import CHARACTER, Canvas, Plot, draw_curve, log_axis, make, size_of
from .compare import Comparison, Difference
from .formatting import milliseconds, percent, percent_interval
from .notes import name as cell_name
from .series import Curve
from .svg import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 36
"""Height of a row in CSS pixels: its name, and what it shows below."""

WIDE_ROW = 24
"""The same where the name stands beside."""

MOST_ROWS = 24

PARTS = ("encoder", "connector", "prefill")


def ttft_plot(results: Sequence[Result], prefix: str) -> Plot | None:
    """Time to first token, stacked by part; a row for each cell, the paper's beside them."""
    timed = [result for result in results if result.ttft is not None]
    if not timed:
        return None
    timed.sort(key=lambda r: (size_of(r.cell), r.cell.tiles, r.cell.llm or "", r.ttft.total_ms if r.ttft else 0.0))
    hidden = max(0, len(timed) - MOST_ROWS)
    if hidden:
        # Of each resolution and language model the fastest ones.
        rank: dict[tuple[str, str | None], int] = {}
        places = {}
        for result in timed:
            group = (result.cell.resolution, result.cell.llm)
            places[id(result)] = rank[group] = rank.get(group, -1) + 1
        kept = sorted(timed, key=lambda r: places[id(r)])[:MOST_ROWS]
        timed = [result for result in timed if any(result is other for other in kept)]
    rows: list[tuple[str, tuple[float, ...], float]] = []
    marks = [
        mark
        for mark in published.TTFT
        if any(r.cell.resolution == str(mark.resolution) and r.cell.llm == mark.llm for r in timed)
        and all(r.cell.variant == published.VARIANT for r in timed)
    ]
    for index, result in enumerate(timed):
        ttft, cell = result.ttft, result.cell
        assert ttft is not None
        said = f"{cell.resolution}, {cell.series}, {cell.llm}, {ttft.visual_tokens} + {ttft.prompt_tokens} tokens"
        rows.append((said, (ttft.encoder_ms, ttft.connector_ms, ttft.prefill_ms), ttft.total_ms))
        following = timed[index + 1].cell.resolution if index + 1 < len(timed) else ""
        if cell.resolution != following:
            rows += [
                (f"{cell.resolution}, {published.MACHINE}, {mark.llm}", (), mark.ms)
                for mark in marks
                if str(mark.resolution) == cell.resolution
            ]

    def draw(canvas: Canvas) -> None:
        axes = _rows(canvas, [said for said, *_ in rows], top=30)
        largest = max(max(total, sum(parts)) for _, parts, total in rows)
        axes.set_xlim(0, largest * (1.14 if canvas.wide else 1.3))
        width = canvas.width - 16
        for index, (_, parts, total) in enumerate(rows):
            start = 0.0
            for number, part in enumerate(parts):
                gid = f"curve-part{number}-{len(canvas.tips)}"
                axes.barh(index, part, left=start, height=0.42, color=INK[f"part{number}"], gid=gid)
                text = milliseconds(part)
                if part / axes.get_xlim()[1] * width > CHARACTER * len(text) + 10:
                    axes.text(
                        start + part / 2, index, text, ha="center", va="center_baseline", fontsize=10.5,
                        color=INK["page"],
                    )  # fmt: skip
                start += part
            if not parts:
                axes.barh(index, total, height=0.42, color="none", edgecolor=INK["muted"], linewidth=1.2)
            axes.annotate(
                milliseconds(total), (max(start, total), index), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=10.5, fontweight="bold",
            )  # fmt: skip
        _part_legend(canvas)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)

    caption = (
        "Image to first token with the encoder, the connector and the language model's prefill timed apart; in bold, "
        "all timed as one. The language model has its real dimensions and seeded weights: time does not depend on them."
    )
    if hidden:
        caption += f" The fastest {len(timed)} rows are drawn; all {len(timed) + hidden} are in the table."
    if marks:
        caption += f" Hollow: {published.MACHINE}, another machine."
    return make(
        "ttft", "Time to first token", caption, draw, prefix=prefix, full=True,
        height=ROW * len(rows) + 40, narrow_height=ROW * len(rows) + 40,
    )  # fmt: skip


def ranking_plot(
    points: Sequence[tuple[Curve, Result, float, tuple[float, float] | None, str]], name: str, title: str, caption: str,
    axis: Callable[[float], str], *, prefix: str,
) -> Plot:  # fmt: skip
    """What would be curves over resolution where there is only one: a row for each cell, the best first.

    Args:
        points: curve, result, value, its bar, and what the pointer is told.
        name, title, caption, prefix: as `axes.make` takes them.
        axis: a value in words.
    """
    several = len({result.cell.batch for _, result, *_ in points}) > 1
    names = [curve.label + (f", batch {result.cell.batch}" if several else "") for curve, result, *_ in points]

    def draw(canvas: Canvas) -> None:
        if canvas.wide:
            axes = _rows(canvas, names, top=8, bottom=28, row=WIDE_ROW, left=250, right=90)
        else:
            axes = _rows(canvas, names, top=8, bottom=28, right=66)
        for index, (curve, _, value, bar, said) in enumerate(points):
            if bar:
                axes.hlines(index, *bar, color=INK[f"c{curve.style.colour}"], linewidth=1.6, alpha=0.6)
            draw_curve(canvas, axes, curve, [(value, index, said)])
            axes.annotate(
                axis(value), (1, index), xycoords=("axes fraction", "data"), xytext=(12, 0), va="center_baseline",
                textcoords="offset points", fontsize=10.5, annotation_clip=False,
            )  # fmt: skip
        log_axis(axes.xaxis, "", axis)
        axes.grid(True, axis="x")

    return make(
        name, title, caption, draw, prefix=prefix, full=True,
        height=WIDE_ROW * len(points) + 44, narrow_height=ROW * len(points) + 44,
    )  # fmt: skip


def difference_plots(comparison: Comparison) -> list[Plot]:
    """A plot for each run that is compared: the change of its cells, those that stand out most."""
    runs = dict.fromkeys(difference.run for difference in comparison.differences)
    found = [
        _difference_plot(comparison, [d for d in comparison.differences if d.run == run and d.change], f"d{index}", run)
        for index, run in enumerate(runs)
    ]
    return [plot for plot in found if plot is not None]


def _difference_plot(comparison: Comparison, timed: Sequence[Difference], prefix: str, run: str) -> Plot | None:
    if not timed:
        return None
    order = {"broken": 0, "slower": 0, "faster": 0, "unclear": 1, "same": 2}
    ranked = sorted(timed, key=lambda d: (order[d.finding], -abs(d.change.value - 1) if d.change else 0))
    shown = sorted(ranked[:MOST_ROWS], key=lambda d: -d.change.value if d.change else 0)
    reach = _reach(shown, comparison.threshold)
    low, high = max(-1.0, -reach), reach
    names = [cell_name(difference.new) for difference in shown]

    def draw(canvas: Canvas) -> None:
        words = [percent_interval(difference.change) if difference.change else "" for difference in shown]
        if canvas.wide:
            axes = _rows(canvas, names, top=8, bottom=40, row=WIDE_ROW, left=330, right=170)
            for index, text in enumerate(words):
                axes.annotate(
                    text, (1, index), xycoords=("axes fraction", "data"), xytext=(12, 0), textcoords="offset points",
                    va="center_baseline", fontsize=10.5, annotation_clip=False,
                )  # fmt: skip
        else:
            short = [f"{n}: {w.partition(' (')[0]}" for n, w in zip(names, words, strict=True)]
            axes = _rows(canvas, short, top=8, bottom=40)
        axes.set_xlim(low, high)
        axes.axvspan(-comparison.threshold, comparison.threshold, color=INK["grid"], alpha=0.6, zorder=0, linewidth=0)
        axes.axvline(0, color=INK["muted"], linewidth=1, zorder=1)
        for index, difference in enumerate(shown):
            _draw_change(axes, index, difference, low, high)
        axes.xaxis.set_major_locator(MaxNLocator(6 if canvas.wide else 4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value).replace(".0 ", " ")))
        axes.set_xlabel("change of time; less is faster")
        axes.grid(True, axis="x")

    from matplotlib.ticker import FuncFormatter, MaxNLocator

    more = len(timed) - len(shown)
    caption = (
        f"Change of {'time over the reference cell' if comparison.relative else 'time'} with 95 % intervals. The band "
        f"is the threshold of ±{100 * comparison.threshold:g} %: slower (right) or faster (left) is what lies outside "
        "of it with its whole interval; grey is not decided."
    ) + (f" The {len(shown)} cells that stand out most; {more} more in the table." if more else "")
    return make(
        "differences", run, caption, draw, prefix=prefix, full=True,
        height=WIDE_ROW * len(shown) + 56, narrow_height=ROW * len(shown) + 56,
    )  # fmt: skip


def _reach(shown: Sequence[Difference], threshold: float) -> float:
    """How far the axis goes: nearly all intervals fit; the few that are wider end at its edge."""
    changes = [difference.change for difference in shown if difference.change]
    values = max(abs(change.value - 1) for change in changes)
    ends = sorted(abs(end - 1) for change in changes for end in (change.low, change.high) if end is not None)
    most = ends[int(0.9 * (len(ends) - 1))] if ends else 0.0
    return max(2 * threshold, 1.1 * values, 1.1 * most)


def _draw_change(axes: Axes, row: int, difference: Difference, low: float, high: float) -> None:
    change = difference.change
    assert change is not None
    colour, marker = {
        "slower": ("slower", ">"), "broken": ("slower", "X"), "faster": ("faster", "<"),
    }.get(difference.finding, ("muted", "o"))  # fmt: skip
    if change.low is not None and change.high is not None:
        axes.hlines(row, max(low, change.low - 1), min(high, change.high - 1), color=INK[colour], linewidth=2)
    axes.plot(change.value - 1, row, marker=marker, color=INK[colour], markersize=7)


def _rows(
    canvas: Canvas, names: Sequence[str], *, top: int, bottom: int = 6, row: int = ROW, left: int = 8, right: int = 8
) -> Axes:
    """Axes with `row` pixels for each name; the first at the top. Names stand above their rows, or in a wide margin."""
    width, height = canvas.width, canvas.figure.get_figheight() * 72
    axes = canvas.figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    beside = left > 100
    axes.set_ylim((len(names) - 0.5, -0.5) if beside else (len(names) - 0.4, -0.85))
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    fits = int((left - 12 if beside else width - left - right) / CHARACTER)
    for index, full in enumerate(names):
        axes.annotate(
            full if len(full) <= fits else full[: fits - 1] + "…", (0, index), xycoords=("axes fraction", "data"),
            xytext=(-12, 0) if beside else (0, 10), textcoords="offset points", ha="right" if beside else "left",
            va="center_baseline" if beside else "bottom", fontsize=10.5, annotation_clip=False,
        )  # fmt: skip
    return axes


def _part_legend(canvas: Canvas) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=INK[f"part{number}"], label=part) for number, part in enumerate(PARTS)]
    canvas.figure.legend(
        handles=handles, loc="upper left", ncols=len(PARTS), frameon=False, fontsize=10.5, borderaxespad=0.1,
        handlelength=1.1, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip
