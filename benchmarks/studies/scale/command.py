"""Time, cost, repeated work and shard size for many images on many GPUs, from measured rates.

    python -m fvexport.benchmarks.studies.scale --images 1e9 --gpus 1000 --engine ray
    python -m fvexport.benchmarks.studies.scale --images 1e5 --gpus 4 --simulate --rate loss_s=3600
    python -m fvexport.benchmarks.studies.scale --page docs/scale.md   # renews the tables of that page

Encoding on a GPU and decoding are measurements of benchmarks/results/ unless they are given. Everything else is an
assumption, prices included: give your own by --measured or --rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from ....core.errors import ConfigError, FvexportError
from ..gpu.predicted.markdown import put
from .closed import best_rows, estimate
from .events import simulate
from .page import scale_tables
from .rates import Engine, Job, Outcome, Rates, known, measured_decode, measured_encode, read_rates

MOST_SIMULATED = 1e7


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options."""

    images: float
    gpus: int
    engine: Engine
    res: int
    batch: int
    photo: str
    rows: int | None
    measured: Path | None
    changes: tuple[str, ...]
    by_events: bool
    page: Path | None


@click.command("python -m fvexport.benchmarks.studies.scale", help=(__doc__ or "").splitlines()[0])
@click.option("--images", default=1e9, show_default=True, type=click.FloatRange(1, 1e12), help="Number of images.")
@click.option("--gpus", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="Workers.")
@click.option(
    "--engine", default="ray", show_default=True, type=click.Choice(get_args(Engine)), help="Who hands out work."
)
@click.option("--res", default=1024, show_default=True, help="Resolution of the measured encoder.")
@click.option("--batch", default=8, show_default=True, help="Batch size of the measured encoder.")
@click.option("--photo", default="1024x768", show_default=True, help="WIDTHxHEIGHT of the measured decoding.")
@click.option("--rows", type=click.IntRange(min=1), help="Images in each file of features. [default: the best]")
@click.option("--measured", type=click.Path(path_type=Path), help="JSON file with rates of your own.")
@click.option("--rate", "changes", multiple=True, metavar="NAME=VALUE", help="One rate; can be repeated.")
@click.option("--simulate", "by_events", is_flag=True, help="Simulate every worker beside the closed form.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), help="Write the tables into this page.")
def main(**given: Any) -> None:
    """Prints what a job takes."""
    asked = Asked(**given)
    try:
        if asked.page:
            content = asked.page.read_text(encoding="utf-8")
            asked.page.write_text(put(scale_tables(), content), encoding="utf-8")
            return
        measured = read_rates(asked.measured) if asked.measured else default_rates(asked.res, asked.batch, asked.photo)
        rates = _changed(measured, asked.changes)
        job = Job(images=int(asked.images), gpus=asked.gpus, engine=asked.engine, rows=asked.rows or 1, rates=rates)
        job = job if asked.rows else msgspec.structs.replace(job, rows=best_rows(job))
        if asked.by_events and asked.images > MOST_SIMULATED:
            raise ConfigError(f"--simulate is for at most {MOST_SIMULATED:.0e} images; leave it out")
        click.echo("\n".join(_lines(job)))
        click.echo(_line("closed form", job, estimate(job)))
        if asked.by_events:
            click.echo(_line("simulation", job, simulate(job)))
    except FvexportError as error:
        raise click.ClickException(str(error)) from None


def default_rates(res: int, batch: int, photo: str) -> Rates:
    """Measured encoding and decoding, and the assumptions of `Rates`."""
    try:
        width, height = map(int, photo.split("x"))
    except ValueError:
        raise ConfigError(f"--photo {photo!r} is not WIDTHxHEIGHT; give for example 1024x768") from None
    decode_s, read_bytes = measured_decode(width, height)
    tokens = (res // 64) ** 2
    return Rates(
        encode_s=measured_encode(res, batch), decode_s=decode_s, read_bytes=read_bytes, write_bytes=2 * tokens * 3072
    )


def _changed(rates: Rates, changes: tuple[str, ...]) -> Rates:
    content = rates.to_dict()
    for change in changes:
        name, _, value = change.partition("=")
        try:
            content[name] = float(value)
        except ValueError:
            raise ConfigError(f"--rate {change!r} is no NAME=VALUE; give for example loss_s=3600") from None
    try:
        return known(content)
    except ValueError as error:
        raise ConfigError(f"--rate has a wrong rate ({error}); see `Rates`") from None


def _lines(job: Job) -> list[str]:
    rates = job.rates
    stages = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in rates.stages.items())
    return [
        f"{job.images:.3g} images on {job.gpus} GPUs, engine {job.engine}, {job.rows} images a file",
        f"ms per image: {stages}; the slowest is {rates.slowest}",
    ]


def _line(name: str, job: Job, outcome: Outcome) -> str:
    cost = outcome.cost(job.rates)
    return (
        f"{name}: {outcome.seconds / 3600:.4g} h, {outcome.worker_s / 3600:.4g} GPU hours, cost {cost:.4g} "
        f"({1e6 * cost / job.images:.3g} per million), {outcome.losses:.3g} losses, {outcome.again:.3g} images again"
    )
