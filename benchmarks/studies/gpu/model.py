"""Predicted time of the encoder on a GPU, by part: before and after this version's kernels, and its rivals.

    python -m fvexport.benchmarks.studies.gpu.model                                    # an H100, four sizes
    python -m fvexport.benchmarks.studies.gpu.model --res 512 --batch 4 --gpu h200 --json
    python -m fvexport.benchmarks.studies.gpu.model --page docs/performance-model.md   # renews the tables of that page
    python -m fvexport.benchmarks.studies.gpu.model --choices                          # every kernel for every part

Nothing it prints is measured: times follow from instructions counted in SASS, FLOPs, bytes, and the GPU's ceilings.
Totals may be off by a third, single kernels by a factor of two; the order of alternatives is more reliable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from ....core.errors import FvexportError
from ....kernels.dispatch import BASELINE, MODES, OPS
from .predicted import scenario as scenarios
from .predicted.alternatives import alternatives
from .predicted.device import H100, Device, device_of
from .predicted.markdown import put, tables
from .predicted.prediction import PREDICTED, Prediction
from .predicted.scenario import Image, Scenario

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Change:
    """One change of this version.

    Attributes:
        name: for tables.
        names: kernels and modes that it adds to the release's, as `kernels.dispatch` knows them.
        precision: `fp8` where it changes that of products.
    """

    name: str
    names: tuple[str, ...]
    precision: Literal["fp8"] | None = None


CHANGES: tuple[Change, ...] = (
    Change("block sizes and policy rows", ()),
    Change("GELU in logistic form", ("fast_gelu",)),
    Change("products: TMA, split-K, cuBLAS", ("linear_tma", "split_k", "cublas")),
    Change("depthwise: rows, pairs, strips", ("depthwise_rows", "depthwise_pairs", "depthwise_strips")),
    Change("stem.0 as one product", ("stem",)),
    Change("programmatic dependent launch", ("pdl",)),
    Change("FP8", ("linear_fp8", "norm_fp8"), "fp8"),
)
"""In the order in which they are added up, on top of the release's kernels."""


def predict(side: int, batch: int, device: Device | None = None, *, changes: bool = True) -> Prediction:
    """Predicts one call of the released encoder with `batch` images of `side` x `side` pixels.

    Args:
        side: a multiple of 64.
        batch: images per call.
        device: an H100 by default.
        changes: also every change by itself and added up, which takes longer.

    Raises:
        ConfigError: a resolution that the encoder does not have.
        UnavailableError: no Triton to record launches with, or a launch whose code was never counted.
    """
    device = device or H100
    image = scenarios.Image(side, side, batch)
    ours = {BEFORE: scenarios.BEFORE, AFTER: scenarios.AFTER}
    parts: dict[str, dict[str, float]] = {}
    launches = dict.fromkeys((*ours, *scenarios.RIVALS), 0)
    floor: dict[str, float] = {}
    for step in image.steps():
        costs = {name: scenario.cost(step, image, device) for name, scenario in ours.items()}
        costs |= {name: scenarios.rival_cost(name, step, image, device) for name in scenarios.RIVALS}
        row = parts.setdefault(step.part, dict.fromkeys(costs, 0.0))
        for name, cost in costs.items():
            row[name] += 1e3 * step.count * cost.seconds
            launches[name] += step.count * cost.all_launches
        floor[step.part] = floor.get(step.part, 0.0) + 1e3 * step.count * step.floor(device)
    alone, together = _changes(image, device) if changes else ({}, {})
    return Prediction(device.name, side, batch, parts, launches, floor, alone, together)


def total_ms(image: Image, scenario: Scenario, device: Device) -> float:
    """Milliseconds of one call under one scenario."""
    return 1e3 * sum(step.count * scenario.cost(step, image, device).seconds for step in image.steps())


def _changes(image: Image, device: Device) -> tuple[dict[str, float], dict[str, float]]:
    alone, together, added = {}, {}, set(BASELINE)
    known = {*OPS, *MODES}
    precision: Literal["fp8"] | None = None
    for change in CHANGES:
        names = known & set(change.names)
        if change.names and not names:
            continue
        own = change.precision
        precision = own or precision
        added |= names
        alone[change.name] = total_ms(
            image, Scenario(change.name, frozenset({*BASELINE, *names}), precision=own), device
        )
        together[change.name] = total_ms(image, Scenario(change.name, frozenset(added), precision=precision), device)
    return alone, together


# --- as a command -------------------------------------------------------------------------------------


@click.command("python -m fvexport.benchmarks.studies.gpu.model", help=(__doc__ or "").splitlines()[0])
@click.option("--gpu", default="h100", show_default=True, help="A name of `fvexport inspect --roofline`.")
@click.option("--res", default="256,1024", show_default=True, help="Square resolutions, comma-separated.")
@click.option("--batch", default="1,8", show_default=True, help="Images per call, comma-separated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per size.")
@click.option("--markdown", is_flag=True, help="Print the tables of docs/performance-model.md.")
@click.option("--choices", is_flag=True, help="Print every kernel for every part, and where the policy loses.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), help="Write those tables into this page.")
def main(gpu: str, res: str, batch: str, as_json: bool, markdown: bool, choices: bool, page: Path | None) -> None:
    """Prints predicted milliseconds by part, of each change, and of the rivals."""
    try:
        device = device_of(gpu)
        sizes = [(side, images) for side in _numbers(res, "--res") for images in _numbers(batch, "--batch")]
        if choices:
            for side, images in sizes:
                click.echo("\n".join(choice_lines(side, images, device)))
            return
        found = [predict(side, images, device) for side, images in sizes]
        if markdown or page:
            text = tables(found, device)
            if page:
                page.write_text(put(text, page.read_text(encoding="utf-8")), encoding="utf-8")
            if markdown:
                click.echo(text)
            return
        for prediction in found:
            click.echo(json.dumps(prediction.to_dict()) if as_json else "\n".join(lines_of(prediction)))
    except FvexportError as error:
        raise click.ClickException(str(error)) from None


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers", param_hint=option) from None


def lines_of(prediction: Prediction) -> Iterator[str]:
    """The tables of one size for people."""
    names = prediction.contenders
    size = f"{prediction.side}x{prediction.side}, batch {prediction.batch}"
    yield f"{size}, {prediction.gpu}: milliseconds per call, {PREDICTED}"
    yield f"  {'part':28}{'floor':>9}" + "".join(f"{name:>23}" for name in names)
    for part, row in prediction.parts.items():
        yield f"  {part:28}{prediction.floor[part]:9.3f}" + "".join(f"{row[name]:23.3f}" for name in names)
    yield f"  {'total':28}{sum(prediction.floor.values()):9.3f}" + "".join(
        f"{prediction.total(name):23.3f}" for name in names
    )
    yield f"  {'kernels':28}{'':9}" + "".join(f"{prediction.launches[name]:23}" for name in names)
    yield f"  {'change':36}{'alone':>9}{'':>9}{'added up':>10}"
    base = next(iter(prediction.alone.values()), 0.0)
    for name, ms in prediction.alone.items():
        yield f"  {name:36}{ms:9.3f}{ms - base:+9.3f}{prediction.together[name]:10.3f}"
    yield ""


def choice_lines(side: int, batch: int, device: Device) -> Iterator[str]:
    """Every part of the model at one size: the policy's kernel, and all kernels with their predicted microseconds."""
    yield f"{side}x{side}, batch {batch}, {device.name}: microseconds of one launch or call, {PREDICTED}"
    for found in alternatives(Image(side, side, batch), device):
        sizes = " ".join(f"{name}={size}" for name, size in found.sizes.items())
        times = ", ".join(
            f"{kernel} {1e6 * cost.seconds:.1f}"
            for kernel, cost in sorted(found.costs.items(), key=lambda item: item[1].seconds)
        )
        slow = "" if found.best == found.chosen else f", {1e6 * found.loss:.1f} us of a call more than {found.best}"
        yield f"  {found.count:2} x {found.row} {sizes}: {found.chosen}{slow} ({times})"


if __name__ == "__main__":
    main()
