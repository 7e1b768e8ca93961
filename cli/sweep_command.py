"""`fvexport sweep`: resolutions x backends x precisions, measured and put on one page."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..benchmarks.sweep.sweep_options import (
    DEFAULT_PROMPT_TOKENS,
    DEFAULT_RESOLUTIONS,
    DEFAULT_SAMPLES,
    LLMS,
    Measuring,
    SweepOptions,
)
from ..core.shell import command_line
from ..core.threads import MAX_THREADS
from ..export.precision import PRECISIONS
from .option_groups import add, group, names_of, passed_as
from .options import RESOLUTION, BackendName, Named, Parsed, json_option, verbose_option
from .parsing import parse_seconds
from .request_options import WEIGHT_OPTIONS, weight_options


class Several(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.2
    """Values of another type, separated by commas -> a tuple; the word `nothing` stands for -> None."""

    def __init__(self, one: click.ParamType, nothing: str | None = None) -> None:  # type: ignore[type-arg]
        self.one, self.nothing, self.name = one, nothing, one.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...] | None:
        if not isinstance(value, str):
            return value
        if value == self.nothing:
            return None
        return tuple(dict.fromkeys(self.one.convert(part.strip(), param, ctx) for part in value.split(",")))


SWEEP_OPTIONS = (
    click.option(
        "--res",
        "resolutions",
        type=Several(RESOLUTION),
        metavar="LIST",
        default=",".join(map(str, DEFAULT_RESOLUTIONS)),
        show_default=True,
        help="Resolutions: 512 or 512x384, height first.",
    ),
    click.option(
        "--backend",
        "backends",
        type=Several(BackendName(), "all"),
        metavar="LIST|all",
        default="all",
        show_default=True,
        help="Backends; with `all` those that can run here.",
    ),
    click.option(
        "--precision",
        "precisions",
        type=Several(Named(PRECISIONS), "all"),
        metavar="LIST|all",
        default="all",
        show_default=True,
        help="Precisions; with `all` those that each backend runs natively.",
    ),
    click.option(
        "--batch",
        "batches",
        type=Several(click.IntRange(min=1)),
        metavar="LIST",
        default="1",
        show_default=True,
        help="Images per call.",
    ),
    click.option("--checkpoint", metavar="SRC", help="File, folder or Hugging Face id; without it seeded weights."),
    *WEIGHT_OPTIONS[1:],
    click.option(
        "--llm",
        "llms",
        type=Several(Named(LLMS), "none"),
        metavar="LIST|none",
        default="none",
        show_default=True,
        help=f"Also the time to first token, with {', '.join(LLMS)} behind the encoder.",
    ),
    click.option(
        "--prompt-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        default=DEFAULT_PROMPT_TOKENS,
        show_default=True,
        help="Of the text beside the image, with --llm.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        default=DEFAULT_SAMPLES,
        show_default=True,
        help="Pictures that INT8 and FP8 files are calibrated on.",
    ),
    click.option("--peers/--no-peers", default=True, help="Measure the plain ways beside ours.  [default: peers]"),
    click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        help="Threads on the CPU.  [default: physical cores, within the container's CPU quota]",
    ),
)
ROUNDS_OPTION = click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    default=Measuring.min_rounds,
    show_default=True,
    help="Rounds that every cell gets; more where it is not stable yet.",
)
LIMIT_OPTIONS = (
    click.option(
        "--budget",
        "budget_s",
        type=Parsed("time", parse_seconds),
        metavar="TIME",
        help="End after 90s, 30m or 1.5h.  [default: when done]",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=Parsed("time", parse_seconds),
        metavar="TIME",
        default="10m",
        show_default=True,
        help="For one step of one cell.",
    ),
    click.option(
        "--memory",
        "memory_gb",
        type=float,
        metavar="GB",
        help="Of one cell's process.  [default: 0.9 of what is available]",
    ),
    click.option(
        "--retry", is_flag=True, help="Measure cells again that failed, timed out, crashed or ran out of memory."
    ),
)


def _options(
    *, checkpoint: str | None, revision: str | None, variant: str | None, seed: int | None, llms: Any, **given: Any
) -> SweepOptions:
    weights = weight_options(checkpoint=checkpoint, revision=revision, variant=variant, seed=seed)
    return SweepOptions(weights=weights, llms=llms or (), **given)


def _measuring(*, rounds: int) -> Measuring:
    return Measuring(min_rounds=rounds, max_rounds=max(rounds, Measuring.max_rounds))


@click.command("sweep")
@add(*SWEEP_OPTIONS)
@group("measuring", _measuring, ROUNDS_OPTION)
@add(*LIMIT_OPTIONS)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default="sweep",
    show_default=True,
    help="Folder for results and report; the same again goes on where it stopped.",
)
@json_option
@verbose_option
@passed_as("options", _options, names_of(*SWEEP_OPTIONS, *LIMIT_OPTIONS))
def sweep(options: SweepOptions, measuring: Measuring, out: Path, as_json: bool) -> None:
    """Measure what each resolution costs here, in which precision and on which backend.

    Each cell runs in a process of its own, and is compared with the eager model. Ends with a report. Exits with 1
    where no cell could be measured.
    """
    from ..benchmarks.report.write import check_packages, write_report
    from ..benchmarks.sweep.run import run_sweep
    from . import printing, render_sweep
    from .progress_bar import progress_bar

    check_packages()  # before hours of measuring
    with progress_bar() as progress:
        found = run_sweep(options, out, measuring=measuring, command=_command(), progress=progress)
        report = write_report([found.out], found.out, progress=progress)
    if as_json:
        printing.print_json(
            {
                "out": str(found.out),
                "measured": found.measured,
                "seconds": found.seconds,
                "results": [asdict(result) for result in found.results],
                "absent": [asdict(entry) for entry in found.absent],
                "report": [str(report.html), str(report.markdown), str(report.csv)],
            }
        )
    else:
        render_sweep.sweep(found, report)
    if not any(result.measured for result in found.results):
        click.get_current_context().exit(1)


def _command() -> str:
    """What the user typed, for the report."""
    return command_line(["fvexport", *sys.argv[1:]])
