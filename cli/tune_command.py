"""`fvexport tune`: searches block sizes for the kernels on this GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..encoder.config import VARIANTS
from . import printing
from .options import RESOLUTION, Named, json_option, verbose_option

if TYPE_CHECKING:
    from ..kernels.table import Config
    from ..kernels.tune import TuneReport


@click.command("tune")
@click.option(
    "--res",
    "resolutions",
    type=RESOLUTION,
    metavar="1024|HxW",
    multiple=True,
    default=("1024",),
    show_default=True,
    help="Multiples of 64 pixels; may be given several times.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    metavar="N",
    multiple=True,
    default=(1,),
    show_default=True,
    help="Images per call; may be given several times.",
)
@click.option("--fp32", is_flag=True, help="Search for float32.  [default: float16, which also serves bfloat16]")
@click.option(
    "--variant", type=Named(VARIANTS), default="fastvithd", show_default=True, help="Architecture to search for."
)
@click.option(
    "--budget", type=click.FloatRange(min=0), metavar="S", help="Seconds after which to stop.  [default: never]"
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of compiling processes.  [default: one per processor]",
)
@click.option("--dry-run", is_flag=True, help="List the searches without running them; needs no GPU.")
@json_option
@verbose_option
def tune(
    resolutions: tuple[tuple[int, int], ...], batches: tuple[int, ...], fp32: bool, variant: str, budget: float | None,
    jobs: int | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Search block sizes for the Triton kernels on this GPU, and store them in your cache.

    Without it, kernels use the sizes that fvexport ships. Searches run in order of predicted time, and each result is
    stored at once, so that --budget leaves out the least important ones. Results are valid for this GPU, driver and
    these versions of torch, Triton and the kernels; anything else needs a new search.
    """
    import torch

    from ..kernels import tune as library
    from .progress_bar import progress_bar

    config, dtype = VARIANTS[variant], torch.float32 if fp32 else torch.float16
    for height, width in resolutions:
        config.check_resolution(height, width)
    if dry_run:
        report = library.plan(config, resolutions, batches, dtype)
    else:
        with progress_bar() as progress:
            limit = float("inf") if budget is None else budget
            report = library.tune(config, resolutions, batches, dtype, jobs=jobs, budget_s=limit, progress=progress)
    if as_json:
        printing.print_json(report.to_dict())
    else:
        tune_report(report)


def tune_report(report: TuneReport) -> None:
    """Prints what was searched and found, or would be searched."""

    def shown(config: Config) -> str:
        return " ".join(str(value) for value in config.arguments.values())

    found = [(s, s.config, s.start_ms, s.ms) for s in report.searches]
    ran = [
        (s.key, shown(s.start), shown(config), f"{1e3 * start:.1f}", f"{1e3 * ms:.1f}", s.tried + s.failed)
        for s, config, start, ms in found
        if config is not None and start is not None and ms is not None
    ]
    if ran:
        printing.table(
            ("kernel and sizes", "default", "found", "µs", "µs", "tried"), ran, title=f"searched on {report.arch}"
        )
    if report.file is not None:
        lines: list[tuple[str, object]] = [("kept in", report.file)]
        lines += [("failed", f"{s.key}: {s.error}") for s in report.searches if s.error]
        lines += [("not searched", f"{report.left} ({report.stopped})")] if report.left else []
        printing.facts(lines)
        return
    planned = [(s.key, shown(s.start), s.neighbours) for s in report.searches]
    header = ("kernel and sizes", "starts from", "first step")
    printing.table(header, planned, title=f"{len(planned)} searches on {report.arch}, not run")
