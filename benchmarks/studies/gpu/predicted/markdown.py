"""The tables of docs/performance-model.md, generated: a test holds the page to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from .....core.errors import ConfigError
from .cost import Cost
from .device import Device
from .parts import Step
from .prediction import Prediction
from .scenario import AFTER, BEFORE, Image, Scenario

NONE = "–"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
T = TypeVar("T")


def tables(predictions: Sequence[Prediction], device: Device) -> str:
    """All tables for some sizes."""
    sections = (
        ("Kernels", _kernels(predictions, device)),
        ("Totals", _totals(predictions)),
        ("Changes", _changes(predictions)),
        ("Parts", _parts(predictions)),
    )
    return "\n\n".join(f"### {title}\n\n" + "\n".join(rows) for title, rows in sections)


def put(text: str, page: str) -> str:
    """A page with `text` between its marks; raises ConfigError where it has none."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"the page has no {BEGIN} and {END} to put the tables between")
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _size(prediction: Prediction) -> str:
    return f"{prediction.side}² b{prediction.batch}"


def _kernels(predictions: Sequence[Prediction], device: Device) -> Iterator[str]:
    """A row for each step: its kernels, and what the compilers say of them, at 1024 pixels or the largest size."""
    images = [Image(p.side, p.side, p.batch) for p in predictions]
    shown = max(range(len(images)), key=lambda index: (images[index].height, -images[index].batch))
    yield from _head(
        "part", "kernels", f"instructions per output, {_size(predictions[shown])}", "registers", "shared KiB", "spills",
        *(f"ms, {_size(p)}" for p in predictions),
    )  # fmt: skip
    for at, step in enumerate(images[shown].steps()):
        cells = [_label(step)]
        costs = [scenario.cost(step, images[shown], device) for scenario in (BEFORE, AFTER)]
        cells += [
            _arrow(costs, _names),
            _arrow(costs, functools.partial(_per_output, results=step.results)),
            _arrow(costs, functools.partial(_codes, name="registers")),
            _arrow(costs, functools.partial(_codes, name="shared", unit=1024)),
            _arrow(costs, _spills),
        ]
        cells += [_arrow([_ms(each, image, at, device) for each in (BEFORE, AFTER)], str) for image in images]
        yield _row(*cells)


def _label(step: Step) -> str:
    if step.part == "embeddings":
        return f"embedding to {step.sizes.get('c', step.sizes.get('n'))}, {step.row}"
    return f"{step.part}, {step.row}" if step.row in ("qkv", "proj", "attention") else step.part


def _spills(cost: Cost) -> str:
    found = [one.code.spills for one in cost.flat() if one.code is not None]
    return str(max(found)) if found else NONE


def _ms(scenario: Scenario, image: Image, at: int, device: Device) -> str:
    step = image.steps()[at]
    return f"{1e3 * step.count * scenario.cost(step, image, device).seconds:.3f}"


def _arrow(values: Sequence[T], text: Callable[[T], str]) -> str:
    before, after = (text(value) for value in values)
    return before if before == after else f"{before} → {after}"


def _names(cost: Cost) -> str:
    return " + ".join(dict.fromkeys(one.kernel.removesuffix("_kernel") for one in cost.flat()))


def _per_output(cost: Cost, results: int) -> str:
    issued = sum(one.issued for one in cost.flat())
    return f"{issued / results:.0f}" if issued else NONE


def _codes(cost: Cost, name: str, unit: int = 1) -> str:
    found = [getattr(one.code, name) / unit for one in cost.flat() if one.code is not None]
    return " + ".join(f"{value:.0f}" for value in found) or NONE


def _totals(predictions: Sequence[Prediction]) -> Iterator[str]:
    yield from _head("ms per call", *map(_size, predictions))
    yield _row("floor", *(f"{sum(p.floor.values()):.3f}" for p in predictions))
    for name in predictions[0].contenders:
        yield _row(f"**{name}**" if name == "after" else name, *(f"{p.total(name):.2f}" for p in predictions))
    for name in predictions[0].contenders:
        yield _row(f"kernels, {name}", *(str(p.launches[name]) for p in predictions))


def _changes(predictions: Sequence[Prediction]) -> Iterator[str]:
    yield from _head("ms per call: alone (added up)", *map(_size, predictions))
    yield _row("before", *(f"{p.total('before'):.2f}" for p in predictions))
    for name in predictions[0].alone:
        yield _row(name, *(f"{p.alone[name]:.2f} ({p.together[name]:.2f})" for p in predictions))


def _parts(predictions: Sequence[Prediction]) -> Iterator[str]:
    names = [name for name in predictions[0].contenders if name not in ("before", "after")]
    yield from _head(f"µs: before → after / {names[0]}", *map(_size, predictions))
    for part in predictions[0].parts:
        cells = []
        for prediction in predictions:
            row = {name: f"{1e3 * ms:.0f}" for name, ms in prediction.parts[part].items()}
            cells.append(f"{row['before']} → {row['after']} / {row[names[0]]}")
        yield _row(part, *cells)
