"""The plots of one run: each a function of its curves, None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.phrases import counted
from ..sweep.result import Result
from . import published
from .axes import (
    CHARACTER,
    FULL,
    HALF,
    Canvas,
    Plot,
    draw_bars,
    draw_curve,
    log_axis,
    make,
    name_ends,
    panels,
    panels_across,
    resolution_axis,
    size_of,
    time_tick,
)
from .bars import ranking_plot, ttft_plot
from .formatting import decibels, megabytes, milliseconds, times, times_interval
from .headline import median_ms, reference_name, speedup
from .load import Run
from .series import Curve
from .svg import INK, inches, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES_WIDTH = 190
"""Pixels to the right of a plot that is as wide as the page, for the names of its curves."""


def run_plots(run: Run, found: Sequence[Curve], prefix: str) -> list[Plot]:
    """Every plot that the run has data for."""
    every = (
        latency_plot(found, prefix),
        speedup_plot(found, prefix, reference_name(run)),
        accuracy_plot(found, prefix),
        ttft_plot(run.results, prefix),
        memory_plot(found, prefix, gpu=False),
        memory_plot(found, prefix, gpu=True),
        tokens_plot(run.results, prefix),
    )
    return [plot for plot in every if plot is not None]


def batches(found: Sequence[Curve]) -> list[int]:
    """Batch sizes, each of which gets a panel."""
    return sorted({result.cell.batch for curve in found for result in curve.results})


def tip(curve: Curve, result: Result, what: str) -> str:
    """What is shown where the pointer rests on a point."""
    batch = f", batch {result.cell.batch}" if result.cell.batch > 1 else ""
    unsteady = " (unstable)" if result.status == "unstable" else ""
    return f"{curve.label}, {result.cell.resolution}{batch}: {what}{unsteady}"


@dataclass(frozen=True, kw_only=True)
class _CurvePlot:
    """A value over resolution.

    Attributes:
        name, title, caption: of the plot.
        value: of a result; None leaves the result out.
        words: the value as the tip of a point says it.
        axis: the value as the axis says it.
        bar: the range drawn around a point, or None.
        finish: adds to a panel, whose batch size it is called with.
        full: as wide as the page.
        smallest_first: whether a small value is a good one.
    """

    name: str
    title: str
    caption: str
    value: Callable[[Result], float | None]
    words: Callable[[Result], str]
    axis: Callable[[float], str]
    bar: Callable[[Result], tuple[float, float] | None] = lambda _: None
    finish: Callable[[Canvas, Axes, int], None] = lambda _, __, ___: None
    full: bool
    smallest_first: bool = True

    def plot(self, found: Sequence[Curve], prefix: str) -> Plot | None:
        """A panel for each batch; a ranking if all results have one resolution; None without values."""
        kept = [curve for curve in found if any(self.value(result) is not None for result in curve.results)]
        if not kept:
            return None
        if len({size_of(result.cell) for curve in kept for result in curve.results}) == 1:
            title = self.title.replace("over resolution", f"at {kept[0].results[0].cell.resolution}")
            points = [
                (c, r, v, self.bar(r), tip(c, r, self.words(r)))
                for c in kept
                for r in c.results
                if (v := self.value(r)) is not None
            ]
            points.sort(key=lambda point: point[2], reverse=not self.smallest_first)
            return ranking_plot(points, self.name, title, self.caption, self.axis, prefix=prefix)
        groups = batches(kept)

        def draw(canvas: Canvas) -> None:
            named = canvas.wide and self.full and len(groups) == 1
            titles = [counted(batch, "image") + " per call" for batch in groups]
            for axes, batch in zip(panels(canvas, titles, right=NAMES_WIDTH if named else 14), groups, strict=True):
                self._draw_panel(canvas, axes, kept, batch, named=named)

        rows = -(-len(groups) // panels_across(len(groups), FULL if self.full else HALF))
        return make(
            self.name, self.title, self.caption, draw, prefix=prefix, full=self.full,
            height=(440 if self.full else 320) * rows, narrow_height=290 * len(groups),
        )  # fmt: skip

    def _draw_panel(self, canvas: Canvas, axes: Axes, kept: Sequence[Curve], batch: int, *, named: bool) -> None:
        """The curves of one batch size, with their names to the right if `named`."""
        value, ends = self.value, []
        results = [r for curve in kept for r in curve.results if r.cell.batch == batch and value(r) is not None]
        sizes = sorted({size_of(result.cell) for result in results})
        for curve in kept:
            here = [(r, v) for r in curve.results if r.cell.batch == batch and (v := value(r)) is not None]
            if not here:
                continue
            draw_bars(axes, curve, [(size_of(r.cell), *limits) for r, _ in here if (limits := self.bar(r)) is not None])
            draw_curve(canvas, axes, curve, [(size_of(r.cell), v, tip(curve, r, self.words(r))) for r, v in here])
            if size_of(here[-1][0].cell) == sizes[-1]:
                settings = {"color": INK[f"c{curve.style.colour}"], "gid": f"curve-{curve.key}-name"}
                ends.append((sizes[-1], here[-1][1], curve.label, settings))
        self.finish(canvas, axes, batch)
        log_axis(axes.yaxis, "", self.axis)
        resolution_axis(axes, sizes, axes.get_position().width * canvas.width)
        if named:
            ends.sort(key=lambda end: end[1], reverse=not self.smallest_first)
            name_ends(axes, ends, most=int(NAMES_WIDTH / CHARACTER))


def latency_plot(found: Sequence[Curve], prefix: str) -> Plot | None:
    """Time of one call over resolution, with the paper's own figures where they can be set beside."""
    known = {result.cell.variant for curve in found for result in curve.results}
    sizes = [size_of(result.cell) for curve in found for result in curve.results]
    landmarks = [p for p in published.LATENCY if sizes and min(sizes) <= p.resolution <= max(sizes)]
    paper = landmarks if known == {published.VARIANT} and len(set(sizes)) > 1 else []

    def bar(result: Result) -> tuple[float, float] | None:
        latency = result.latency
        if latency is None or len(latency.windows) < 2:
            return None
        medians = [window.median_ms for window in latency.windows]
        return min(medians), max(medians)

    def words(result: Result) -> str:
        assert result.latency is not None
        return f"{milliseconds(result.latency.p50_ms)}, 90 % within {milliseconds(result.latency.p90_ms)}"

    def finish(canvas: Canvas, axes: Axes, batch: int) -> None:
        if paper and batch == 1:
            said = [(p.resolution, p.ms, f"{published.MACHINE}, {p.resolution}: {milliseconds(p.ms)}") for p in paper]
            draw_paper(canvas, axes, said)

    caption = (
        "Median time of one call, on logarithmic axes. Bars reach from the fastest to the slowest round: what the "
        "machine did meanwhile."
    ) + (f" {published.NOTE}" if paper and 1 in batches(found) else "")
    plot = _CurvePlot(
        name="latency", title="Latency over resolution", caption=caption, value=median_ms, words=words, axis=time_tick,
        bar=bar, finish=finish, full=True,
    )  # fmt: skip
    return plot.plot(found, prefix)


def speedup_plot(found: Sequence[Curve], prefix: str, reference: str) -> Plot | None:
    """Speed over the reference cell's of the same resolution and batch."""
    intervals = {id(result): speedup(result) for curve in found for result in curve.results}

    def value(result: Result) -> float | None:
        interval = intervals[id(result)]
        return None if interval is None else interval.value

    def bar(result: Result) -> tuple[float, float] | None:
        interval = intervals[id(result)]
        if interval is None or interval.low is None or interval.high is None:
            return None
        return interval.low, interval.high

    def words(result: Result) -> str:
        interval = intervals[id(result)]
        return "" if interval is None else f"{times_interval(interval)} {reference}"

    def finish(_: Canvas, axes: Axes, __: int) -> None:
        axes.axhline(1, color=INK["muted"], linewidth=1, zorder=1)

    if not any(value(result) not in (None, 1.0) for curve in found for result in curve.results):
        return None
    caption = (
        f"How many times as fast as {reference} at the same resolution and batch: the median of the ratios within "
        "rounds, so that a slow minute hits both. Bars are 95 % intervals by bootstrap over the rounds."
    )
    plot = _CurvePlot(
        name="speedup", title=f"Speed-up over {reference}", caption=caption, value=value, words=words, axis=times,
        bar=bar, finish=finish, full=True, smallest_first=False,
    )  # fmt: skip
    return plot.plot(found, prefix)


def memory_plot(found: Sequence[Curve], prefix: str, *, gpu: bool) -> Plot | None:
    """Largest memory of the process, or of the GPU."""

    def value(result: Result) -> float | None:
        return (result.peak_gpu_mb if gpu else result.peak_host_mb) or None  # a logarithmic axis has no 0

    def words(result: Result) -> str:
        return megabytes(value(result) or 0)

    name, title = ("gpu-memory", "GPU memory") if gpu else ("memory", "Host memory")
    caption = (
        "Largest amount of GPU memory in use."
        if gpu
        else "Largest resident memory of the cell's process, with loading."
    )
    plot = _CurvePlot(name=name, title=title, caption=caption, value=value, words=words, axis=megabytes, full=False)
    return plot.plot(found, prefix)


def accuracy_plot(found: Sequence[Curve], prefix: str) -> Plot | None:
    """The stricter SQNR over latency, a panel for each resolution, at the smallest batch that was measured."""
    compared = [
        (curve, result)
        for curve in found
        for result in curve.results
        if result.parity is not None and (result.parity.sqnr_db is not None or result.parity.rel_l2 == 0)
    ]
    if not compared:
        return None
    batch = min(result.cell.batch for _, result in compared)
    compared = [(curve, result) for curve, result in compared if result.cell.batch == batch]
    shown = sorted({(size_of(r.cell), r.cell.resolution) for _, r in compared})
    levels = [level for _, r in compared if r.parity and (level := r.parity.strict_sqnr_db) is not None]
    exact = any(r.parity and r.parity.sqnr_db is None for _, r in compared)
    top = max(levels, default=100.0) + 15
    rows = -(-len(shown) // 3)

    def draw(canvas: Canvas) -> None:
        grid = panels(canvas, [f"{name} pixels" for _, name in shown], across=3 if canvas.wide else 1)
        for axes, (_, resolution) in zip(grid, shown, strict=True):
            for curve, result in compared:
                if result.cell.resolution != resolution or result.parity is None:
                    continue
                level = result.parity.strict_sqnr_db
                said = f"{decibels(level, exact=True)}, {milliseconds(median_ms(result))}"
                said += "" if result.parity.status == "pass" else ", fails its parity"
                height = top if level is None else level
                draw_curve(canvas, axes, curve, [(median_ms(result), height, tip(curve, result, said))])
            axes.set_xscale("log")
            axes.set_xlim(_padded([median_ms(r) for _, r in compared if r.cell.resolution == resolution]))
            log_axis(axes.xaxis, "time of one call", time_tick)
            bottom = min(0, *levels) if levels else 0
            axes.set_ylim(bottom - 4, top + 6)
            ticks = [value for value in range(0, 400, 20) if value < top - 6 or (not exact and value <= top)]
            axes.set_yticks([*ticks, top] if exact else ticks, [*(f"{v} dB" for v in ticks), *(["exact"] * exact)])

    caption = (
        "Signal over quantization noise against the eager float32 model, over time; up and to the left is better. "
        "The signal is what varies: without the constant part that all features share. "
        "Each 6 dB halve the error."
    ) + (f" {counted(batch, 'image')} per call." if batch > 1 else "")
    return make(
        "accuracy", "Accuracy over latency", caption, draw, prefix=prefix, full=len(shown) > 1,
        height=310 * rows, narrow_height=270 * len(shown),
    )  # fmt: skip


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis around values, at least a factor of two apart."""
    low, high = min(values) / 1.25, max(values) * 1.25
    if high / low < 2:
        middle = (low * high) ** 0.5
        low, high = middle / 2**0.5, middle * 2**0.5
    return low, high


def tokens_plot(results: Sequence[Result], prefix: str) -> Plot | None:
    """Visual tokens of one image: what the language model has to read."""
    counts: dict[tuple[float, str], int] = {}
    tiled: dict[tuple[float, str], int] = {}
    for result in results:
        if result.tokens is not None:
            (counts if result.cell.tiles == 1 else tiled)[size_of(result.cell), result.cell.resolution] = result.tokens
    if len(counts) + len(tiled) < 2:  # one number is no plot; it stands in the table
        return None
    sizes = [size for size, _ in (*counts, *tiled)]

    def draw(canvas: Canvas) -> None:
        (axes,) = panels(canvas, [""], right=46)
        for points, colour, marker, what in ((counts, "c3", "o", ""), (tiled, "c5", "D", "tiles")):
            line = [(size, name, count) for (size, name), count in sorted(points.items())]
            gid = f"curve-tokens{what}-{len(canvas.tips)}"
            axes.plot(
                [size for size, _, _ in line], [count for *_, count in line], color=INK[colour], marker=marker,
                linewidth=1.8 if not what else 0, markersize=6, gid=gid, clip_on=False, zorder=3,
            )  # fmt: skip
            canvas.tips[gid] = [f"{name}: {count} tokens" for _, name, count in line]
            for size, _, count in line:
                axes.annotate(
                    f"{count}", (size, count), xytext=(-9, 0) if what else (8, -4), textcoords="offset points",
                    ha="right" if what else "left", va="center" if what else "top", fontsize=10.5,
                )  # fmt: skip
        axes.margins(y=0.12)
        log_axis(axes.yaxis, "", lambda value: f"{value:.0f}")
        resolution_axis(axes, sizes, axes.get_position().width * canvas.width)

    tiles = " Diamonds: AnyRes, an image cut into tiles and an overview." if tiled else ""
    caption = f"Visual tokens of one image, which the language model reads: height / 64 x width / 64.{tiles}"
    return make("tokens", "Visual tokens", caption, draw, prefix=prefix, full=False, height=320, narrow_height=280)


def legend_marks(found: Sequence[Curve], prefix: str, *, paper: bool) -> dict[str, str]:
    """A short piece of each curve, as SVG, for the legend."""
    from matplotlib.figure import Figure

    marks = {}
    for key, curve in [*((curve.key, curve) for curve in found), *([("paper", None)] if paper else [])]:
        canvas = Canvas(Figure(figsize=inches(34, 14)), True, FULL)
        axes = canvas.figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, 34), ylim=(0, 14))
        if curve is None:
            draw_paper(canvas, axes, [(1, 7, ""), (17, 7, ""), (33, 7, "")])
        else:
            draw_curve(canvas, axes, curve, [(1, 7, ""), (17, 7, ""), (33, 7, "")])
        axes.lines[0].set_markevery([1])
        marks[key] = to_svg(canvas.figure, f"{prefix}-legend-{key}", "")
    return marks


def draw_paper(canvas: Canvas, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """The published curve: no colour of its own, since it is another machine's."""
    gid = f"curve-paper-{len(canvas.tips)}"
    axes.plot(
        [x for x, _, _ in points], [y for _, y, _ in points], color=INK["muted"], linestyle=(0, (1, 2)),
        linewidth=1.4, marker="*", markersize=8, gid=gid, zorder=1,
    )  # fmt: skip
    canvas.tips[gid] = [tip for *_, tip in points]
