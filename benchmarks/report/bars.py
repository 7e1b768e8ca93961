"""Plots with a row for each cell: time to first token by part, and differences between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..sweep.result import Result
from . import published
from .axes import CHARACTER, Canvas, Plot, make, size_of, time_axis
from .compare import Comparison, Difference
from .svg import INK
from .wording import counted, milliseconds, percent, percent_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 36
"""Height of a row in CSS pixels: its name, and what it shows below."""

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
    for result in timed:
        ttft, cell = result.ttft, result.cell
        assert ttft is not None
        name = f"{cell.resolution}, {cell.series}, {cell.llm}, {ttft.visual_tokens} + {ttft.prompt_tokens} tokens"
        rows.append((name, (ttft.encoder_ms, ttft.connector_ms, ttft.prefill_ms), ttft.total_ms))
    marks = [
        mark
        for mark in published.TTFT
        if any(r.cell.resolution == str(mark.resolution) and r.cell.llm == mark.llm for r in timed)
        and all(r.cell.variant == published.VARIANT for r in timed)
    ]
    rows += [(f"{mark.resolution}, {published.MACHINE}, {mark.llm}", (), mark.ms) for mark in marks]

    def draw(canvas: Canvas) -> None:
        axes = _rows(canvas, [name for name, *_ in rows], top=30)
        largest = max(max(total, sum(parts)) for _, parts, total in rows)
        axes.set_xlim(0, largest * (1.14 if canvas.wide else 1.3))
        width = canvas.width - 16
        for index, (name, parts, total) in enumerate(rows):
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
        "all timed as one. The language model has its real dimensions and seeded weights, of which time does not depend."
    ).replace("of which time does not depend", "on which time does not depend")
    if hidden:
        caption += f" The fastest {len(timed)} rows are drawn; all {len(timed) + hidden} are in the table."
    if marks:
        caption += f" Hollow: {published.MACHINE}, another machine."
    return make(
        "ttft", "Time to first token", caption, draw, prefix=prefix, full=True,
        height=ROW * len(rows) + 40, narrow_height=ROW * len(rows) + 40,
    )  # fmt: skip


def difference_plot(comparison: Comparison, several: bool) -> Plot | None:
    """Change of every cell with its interval: those that stand out before the rest."""
    timed = [difference for difference in comparison.differences if difference.change is not None]
    if not timed:
        return None
    order = {"broken": 0, "slower": 0, "faster": 1, "unclear": 2, "same": 3}

    def weight(difference: Difference) -> tuple[int, float]:
        assert difference.change is not None
        return order[difference.finding], -abs(difference.change.value - 1)

    shown = sorted(timed, key=weight)[:MOST_ROWS]
    shown.sort(key=lambda d: -d.change.value if d.change else 0)
    ends = [abs(end - 1) for d in shown if d.change for end in (d.change.value, d.change.low, d.change.high) if end]
    reach = max(comparison.threshold * 2, sorted(ends)[int(0.9 * (len(ends) - 1))] * 1.3)
    low, high = max(-1.0, -reach), reach

    def draw(canvas: Canvas) -> None:
        names = [f"{d.place} ({d.run})" if several else d.place for d in shown]
        axes = _rows(canvas, [f"{n}: {percent_interval(d.change)}" if d.change else n for n, d in zip(names, shown, strict=True)],
                     top=8, bottom=40)  # fmt: skip
        axes.set_xlim(low, high)
        axes.axvspan(-comparison.threshold, comparison.threshold, color=INK["grid"], alpha=0.5, zorder=0, linewidth=0)
        axes.axvline(0, color=INK["muted"], linewidth=1, zorder=1)
        for index, difference in enumerate(shown):
            change = difference.change
            assert change is not None
            colour = INK[{"slower": "slower", "broken": "slower", "faster": "faster"}.get(difference.finding, "muted")]
            marker = {"slower": ">", "broken": "X", "faster": "<"}.get(difference.finding, "o")
            if change.low is not None and change.high is not None:
                axes.hlines(index, max(low, change.low - 1), min(high, change.high - 1), color=colour, linewidth=2)
            axes.plot(min(max(change.value - 1, low), high), index, marker=marker, color=colour, markersize=7)
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(6 if canvas.wide else 4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value).replace(".0 ", " ")))
        axes.set_xlabel("change of time: less is faster")
        axes.grid(True, axis="x")

    more = len(timed) - len(shown)
    caption = (
        f"Change from {comparison.baseline}, with 95 % intervals. The band is the threshold of "
        f"±{100 * comparison.threshold:g} %: a cell is called slower or faster where its whole interval lies outside."
    ) + (f" The {len(shown)} that stand out most; {counted(more, 'more cell')} in the table." if more else "")
    return make(
        "differences", "Differences", caption, draw, prefix="d", full=True,
        height=ROW * len(shown) + 56, narrow_height=ROW * len(shown) + 56,
    )  # fmt: skip


def _rows(canvas: Canvas, names: Sequence[str], *, top: int, bottom: int = 6) -> Axes:
    """Axes with a row of `ROW` pixels for each name, which stands above its row; the first at the top."""
    width, height = canvas.width, canvas.figure.get_figheight() * 72
    margin = 8
    axes = canvas.figure.add_axes(
        (margin / width, bottom / height, (width - 2 * margin) / width, (height - top - bottom) / height)
    )
    axes.set_ylim(len(names) - 0.4, -0.85)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    fits = int((width - 2 * margin) / CHARACTER)
    for index, name in enumerate(names):
        text = name if len(name) <= fits else name[: fits - 1] + "…"
        axes.annotate(
            text, (0, index), xycoords=("axes fraction", "data"), xytext=(0, 10), textcoords="offset points",
            va="bottom", fontsize=10.5, annotation_clip=False,
        )  # fmt: skip
    return axes


def _part_legend(canvas: Canvas) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=INK[f"part{number}"], label=part) for number, part in enumerate(PARTS)]
    canvas.figure.legend(
        handles=handles, loc="upper left", ncols=len(PARTS), frameon=False, fontsize=10.5, borderaxespad=0.1,
        handlelength=1.1, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip


__all__ = ["difference_plot", "time_axis", "ttft_plot"]
