"""What several plots share: their size, axes of resolution and time, curves, and names written beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..sweep.result import Cell
from .formatting import milliseconds, three
from .series import Curve
from .svg import INK, inches, to_svg

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL, HALF, NARROW = 950, 465, 360
"""Widths in CSS pixels: across the page, half of it, and a phone's."""

NARROWEST_PANEL = 116
"""Width in CSS pixels of a panel and the names at its axis."""

CHARACTER = 6.3
"""Width of a character of the page's font in pixels, for deciding what fits."""


@dataclass(frozen=True)
class Plot:
    """A picture in two sizes.

    Attributes:
        name: unique in a run's section.
        title: above it.
        caption: below it: what is drawn, and how to read it.
        wide, narrow: SVG for a desktop and for a phone.
        full: whether the wide one takes the whole width.
    """

    name: str
    title: str
    caption: str
    wide: str
    narrow: str
    full: bool


@dataclass
class Canvas:
    """A figure of one size that is being drawn, with what its markers say."""

    figure: Figure
    wide: bool
    width: int
    tips: dict[str, list[str]] = field(default_factory=dict)


def make(
    name: str,
    title: str,
    caption: str,
    draw: Callable[[Canvas], None],
    *,
    prefix: str,
    full: bool,
    height: int,
    narrow_height: int,
) -> Plot:
    """Draws both sizes.

    Args:
        name, title, caption, full: as in `Plot`.
        draw: fills a canvas.
        prefix: of the ids of its SVG, unique in the page.
        height, narrow_height: in CSS pixels.
    """
    from matplotlib.figure import Figure

    sizes = (True, FULL if full else HALF, height), (False, NARROW, narrow_height)
    drawn: dict[bool, str] = {}
    for wide, width, tall in sizes:
        canvas = Canvas(Figure(figsize=inches(width, tall)), wide, width)
        draw(canvas)
        ids = f"{prefix}-{name}-{'w' if wide else 'n'}"
        drawn[wide] = to_svg(canvas.figure, ids, f"{title}. {caption}", canvas.tips)
    return Plot(name, title, caption, drawn[True], drawn[False], full)


def panels_across(count: int, width: int) -> int:
    """How many of `count` panels fit beside one another in `width` CSS pixels; one at least."""
    return max(1, min(count, width // NARROWEST_PANEL))


def panels(canvas: Canvas, titles: Sequence[str], *, right: int = 12, across: int | None = None) -> list[Axes]:
    """One set of axes for each title: beside one another where there is room, else below one another.

    Args:
        canvas: to divide.
        titles: of the panels; a single one stays without.
        right: pixels kept free to the right of each, for names beside curves.
        across: panels in a row.
    """
    count = len(titles)
    columns = min(count, across or panels_across(count, canvas.width if canvas.wide else 0))
    rows = -(-count // columns)
    width, height = canvas.width, canvas.figure.get_figheight() * 72
    left, top, bottom = 58, 26 if count > 1 else 10, 40
    found = []
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        box_w, box_h = width / columns, height / rows
        x, y = column * box_w + left, height - (row + 1) * box_h + bottom
        axes = canvas.figure.add_axes(
            (x / width, y / height, (box_w - left - right) / width, (box_h - top - bottom) / height)
        )
        if count > 1:
            axes.set_title(title, pad=8, fontweight="bold")
        found.append(axes)
    return found


def size_of(cell: Cell) -> float:
    """Where a cell stands on an axis of resolution: the side of a square of as many pixels."""
    return float(cell.pixels) ** 0.5


def resolution_axis(axes: Axes, sizes: Iterable[float], width: float) -> None:
    """A logarithmic axis with a tick at every measured size; names that would touch another's are left out.

    Args:
        axes: to set.
        sizes: measured, in pixels.
        width: of the axes in CSS pixels.
    """
    import math

    ticks = sorted(set(sizes))
    axes.set_xscale("log", base=2)
    low, high = ticks[0] / 1.12, ticks[-1] * 1.12
    if len(ticks) == 1:
        low, high = ticks[0] / 1.5, ticks[0] * 1.5
    axes.set_xlim(low, high)
    per_octave = width / math.log2(high / low)
    named: list[tuple[float, float]] = []
    shown = set()
    # Those who read it think in 256, 512, 1024: these first.
    for size in sorted(ticks, key=lambda size: (not math.log2(size).is_integer(), size)):
        place, reach = math.log2(size / low) * per_octave, CHARACTER * len(f"{size:.0f}") / 2 + 4
        if all(abs(place - other) >= reach + its for other, its in named):
            named.append((place, reach))
            shown.add(size)
    labels = [f"{size:.0f}" if size in shown else "" for size in ticks]
    axes.set_xticks(ticks, labels)
    axes.minorticks_off()
    axes.set_xlabel("resolution, pixels")


def time_tick(value: float) -> str:
    """Milliseconds at an axis: `300 ms`, `1 s`."""
    return milliseconds(value) if value < 1e3 else f"{three(value / 1e3)} s"


def log_axis(axis: Any, label: str, wording: Callable[[float], str]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5, or closer ones where it spans little."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    name = axis.axis_name
    scale, view = getattr(axis.axes, f"set_{name}scale"), getattr(axis.axes, f"get_{name}lim")
    scale("log")
    low, high = view()
    # Names beside one another need room, names above one another hardly any.
    axis.set_major_locator(FixedLocator(log_ticks(low, high, 4 if name == "x" else 9, 0.17 if name == "x" else 0.05)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(wording(value))))
    axis.axes.set(**{f"{name}label": label, f"{name}lim": (low, high)})


def log_ticks(low: float, high: float, most: int, apart: float) -> list[float]:
    """Round values between two positive ones: as many as are useful.

    Args:
        low, high: limits of the axis.
        most: at most so many.
        apart: smallest distance of two, as a share of the axis.
    """
    import math

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[list[float]] = []
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1, 5), (1,)):
        inside = [step * 10.0**decade for decade in decades for step in steps]
        choices.append([value for value in inside if low <= value * 1.0001 and value <= high * 1.0001])
    for choice in choices:
        gaps = [math.log(b / a) / math.log(high / low) for a, b in pairwise(choice)]
        if 2 <= len(choice) <= most and min(gaps) >= apart:
            return choice
    many = choices[0]
    return many[:: max(1, -(-len(many) // min(most, 3)))]


def tick(text: str) -> str:
    """Without zeros that say nothing: `50.0 ms` is `50 ms`."""
    number, gap, unit = text.partition(" ")
    if unit == "" and text.endswith("×"):
        number, unit = text[:-1], "×"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return number + gap + unit


def draw_curve(
    canvas: Canvas, axes: Axes, curve: Curve, points: Sequence[tuple[float, float, str]], *, width: float = 1.8
) -> None:
    """A line through points (x, y, what to show there) that the legend can hide."""
    style = curve.style
    colour = INK[f"c{style.colour}"]
    gid = f"curve-{curve.key}-{len(canvas.tips)}"
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        color=colour,
        linewidth=1.1 if curve.peer else width,
        dashes=style.dashes or (None, None),
        marker=style.marker,
        markersize=5.5,
        markerfacecolor=INK["page"] if style.hollow else colour,
        markeredgewidth=1.3,
        gid=gid,
        clip_on=False,
        zorder=3,
    )
    canvas.tips[gid] = [tip for _, _, tip in points]


def draw_bars(axes: Axes, curve: Curve, bars: Sequence[tuple[float, float, float]]) -> None:
    """Vertical bars (x, low, high) that belong to a curve."""
    found = axes.vlines(
        [x for x, _, _ in bars],
        [low for _, low, _ in bars],
        [high for _, _, high in bars],
        color=INK[f"c{curve.style.colour}"],
        linewidth=1.1,
        alpha=0.6,
        zorder=2,
    )
    found.set_gid(f"curve-{curve.key}-bars")


LINE = 13
"""Points from one name to the next that touches it no more."""


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Mapping[str, Any]]], *, most: int = 40) -> None:
    """Writes names beside the ends of curves, as far as they fit without touching; earlier ones first.

    Args:
        axes: with their limits set.
        ends: x, y, name, and matplotlib's settings of the text.
        most: characters of the longest name that fits.
    """
    taken: list[float] = []
    points = 72 / axes.figure.dpi  # of a pixel, which positions are in
    for x, y, name, settings in ends:
        place = points * axes.transData.transform((x, y))[1]
        if len(name) > most or any(abs(place - other) < LINE for other in taken):
            continue
        taken.append(place)
        axes.annotate(
            name, (x, y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=10.5, annotation_clip=False,
            bbox={"boxstyle": "square,pad=0.12", "facecolor": INK["page"], "edgecolor": "none"}, **settings,
        )  # fmt: skip
