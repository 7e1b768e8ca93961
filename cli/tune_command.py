"""`fvexport tune`: block sizes of the kernels, searched on the GPU at hand."""

from __future__ import annotations

import click

from ..encoder.config import VARIANTS
from .options import Named, Resolution, json_option, verbose_option


@click.command("tune")
@click.option(
    "--res",
    "resolutions",
    type=Resolution(),
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
@click.option("--fp32", is_flag=True, help="Search for float32; otherwise for float16, which holds for bfloat16.")
@click.option(
    "--variant", type=Named(VARIANTS), default="fastvithd", show_default=True, help="Architecture to search for."
)
@click.option(
    "--budget", type=click.FloatRange(min=0), metavar="S", help="Stop after so many seconds.  [default: never]"
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Processes that compile.  [default: one per processor]"
)
@click.option("--dry-run", is_flag=True, help="List what would be searched; needs no GPU.")
@json_option
@verbose_option
def tune(
    resolutions: tuple[tuple[int, int], ...], batches: tuple[int, ...], fp32: bool, variant: str, budget: float | None,
    jobs: int | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Search block sizes for the Triton kernels on this GPU, and keep them in your cache.

    Kernels run without it, on sizes that fvexport comes with. Searches run in the order of the time that their calls
    are predicted to take, and each result is kept at once: --budget leaves out the least important ones. Results hold
    for this GPU, driver and these versions of torch, Triton and the kernels; anything else is searched for again.
    """
    import torch

    from ..kernels import tune as library
    from . import render
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
        render.print_json(report.to_dict())
    else:
        render.tune_report(report)
