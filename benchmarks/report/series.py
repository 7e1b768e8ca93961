"""Results become curves, and every curve gets its looks: colour and marker by runner, dashes by precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...export.backend_table import BACKENDS
from ..sweep.result import Cell, Result

COLOURS = 10
"""How many `--cN` the style sheet has; told apart by the colour-blind, and on paper by their markers."""

MARKERS = "osD^vPX<>"
"""matplotlib's names; as many as share no divisor with `COLOURS`, so that 90 runners differ in one or the other."""

DASHES: dict[str, tuple[float, ...]] = {
    "fp32": (),
    "fp16": (6, 2),
    "bf16": (3, 1.5),
    "int8": (1, 1.5),
    "fp8": (6, 1.5, 1, 1.5),
}
HOLLOW = ("int8", "fp8")
"""Precisions whose markers are not filled."""

_FIXED = ("eager train", "eager fused", "eager channels-last", *(t.name for t in BACKENDS if t.name != "eager"))


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: number of its colour, marker, dashes (in line widths), hollow marker."""

    colour: int
    marker: str
    dashes: tuple[float, ...]
    hollow: bool


@dataclass(frozen=True)
class Curve:
    """Results that differ in size and batch alone.

    Attributes:
        key: the same for the same curve in every plot of a page; fit for a class name.
        label: backend, form, precision, and what else differs from another curve.
        runner: backend and form, under which the legend groups.
        precision: of its cells.
        peer: whether it is a plain way without fvexport.
        style: its looks.
        results: by size.
    """

    key: str
    label: str
    runner: str
    precision: str
    peer: bool
    style: Style
    results: tuple[Result, ...]


def curves(results: Iterable[Result]) -> list[Curve]:
    """Curves through every measured cell of the encoder, in the order of the legend."""
    cells = [result for result in results if result.measured and result.cell.kind != "ttft"]
    extras = _varying([result.cell for result in cells])
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for result in cells:
        cell = result.cell
        more = " ".join(extra(cell) for extra in extras).strip()
        groups.setdefault((cell.kind, cell.runner, cell.precision, more), []).append(result)
    numbers = _numbers({(kind, runner) for kind, runner, _, _ in groups})
    order = sorted(groups, key=lambda k: (numbers[k[0], k[1]], list(DASHES).index(k[2]), k[3]))
    # Of one runner and precision (other threads, other weights), each curve gets another marker.
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for index, key in enumerate(order):
        kind, runner, precision, more = key
        number = numbers[kind, runner]
        marker = MARKERS[(number + seen[kind, runner, precision]) % len(MARKERS)]
        seen[kind, runner, precision] += 1
        style = Style(number % COLOURS, marker, DASHES[precision], precision in HOLLOW)
        label = f"{runner} {precision}" + (f", {more}" if more else "")
        ordered = tuple(sorted(groups[key], key=lambda r: (r.cell.pixels, r.cell.resolution, r.cell.batch)))
        found.append(Curve(f"s{index}", label, runner, precision, kind == "peer", style, ordered))
    return found


def _varying(cells: Sequence[Cell]) -> list[Callable[[Cell], str]]:
    """What has to be said of a cell beside its runner and precision, since it is not the same everywhere."""
    said: list[Callable[[Cell], str]] = [
        lambda cell: f"{cell.threads} threads",
        lambda cell: cell.variant,
        lambda cell: cell.checkpoint,
        lambda cell: f"{cell.samples} samples" if cell.samples else "",
    ]
    varying = [say for say in said if len({say(cell) for cell in cells} - {""}) > 1]
    if said[2] not in varying and len({cell.weights for cell in cells}) > 1:
        varying.append(lambda cell: cell.weights)
    return varying


def _numbers(runners: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """A number for each runner: the same in every report for those of the table of backends, then the others'."""
    known = {("ours", name): index for index, name in enumerate(_FIXED)}
    rest = sorted(set(runners) - known.keys())
    return known | {runner: len(_FIXED) + index for index, runner in enumerate(rest)}
