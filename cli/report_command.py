"""`fvexport report`: makes a page of sweep results, and compares several."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Parsed, json_option, verbose_option
from .parsing import parse_percent


@click.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for report.html, .md and .csv.  [default: beside one RESULTS, ./sweep-report for several]",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Results to compare the others with.  [default: the earliest of several runs]",
)
@click.option(
    "--fail-above",
    type=Parsed("percent", parse_percent),
    metavar="5%",
    help="Exit with 1 if a cell is slower by more than this, beyond its confidence interval, or broken.",
)
@click.option(
    "--relative", is_flag=True, help="Compare ratios to the reference cell, which do not depend on the machine's load."
)
@json_option
@verbose_option
def report(
    results: tuple[Path, ...], out: Path | None, baseline: Path | None, fail_above: float | None, relative: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a page of what sweeps measured, and show what changed between them.

    RESULTS are folders that `fvexport sweep` wrote, or the results.jsonl in them, of any number of machines and dates.
    """
    from ..benchmarks.report.compare import DEFAULT_THRESHOLD
    from ..benchmarks.report.write import write_report
    from . import printing, render_report
    from .progress_bar import progress_bar

    if relative and baseline is None and len(results) == 1:
        raise click.UsageError("--relative is for comparing; name several RESULTS or a --baseline")
    threshold = DEFAULT_THRESHOLD if fail_above is None else fail_above
    with progress_bar() as progress:
        made = write_report(
            results, out or _place(results), baseline=baseline, threshold=threshold, relative=relative,
            must_compare=fail_above is not None, progress=progress,
        )  # fmt: skip
    failed = fail_above is not None and made.comparison is not None and bool(made.comparison.regressions)
    if as_json:
        printing.print_json(render_report.to_dict(made) | {"passed": not failed})
    else:
        render_report.report(made)
    if failed:
        click.get_current_context().exit(1)


def _place(results: tuple[Path, ...]) -> Path:
    if len(results) > 1:
        return Path("sweep-report")
    return results[0].parent if results[0].is_file() else results[0]
