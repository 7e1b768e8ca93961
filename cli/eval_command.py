"""`fvexport eval`: standard metrics on the user's own data, with several encoders side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..benchmarks.tasks.items import TASKS
from ..export.export_options import AUTO
from .option_groups import passed_as
from .options import BACKEND_NAMES, Named, json_option, max_pixels_option, verbose_option
from .vlm_options import model_options

if TYPE_CHECKING:
    from ..benchmarks.tasks.evaluate import EvalOptions
    from ..benchmarks.tasks.model_options import ModelOptions


def _options(*, backends: tuple[str, ...], **given: Any) -> EvalOptions:
    if backends and not given["artifacts"]:
        raise click.UsageError("--backend has no effect without --artifact", click.get_current_context())
    from ..benchmarks.tasks.evaluate import EvalOptions

    return EvalOptions(backends=backends or (AUTO,), **given)


@click.command("eval")
@click.option("--task", type=Named(TASKS), required=True, help="vqa, caption or retrieval.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", required=True, help="JSON lines, one an item.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="Results, as JSON lines; a second run goes on.",
)
@model_options
@click.option(
    "--artifact", "artifacts", type=click.Path(path_type=Path), metavar="DIR", multiple=True,
    help="Compared with PyTorch; may be given several times.",
)  # fmt: skip
@click.option(
    "--backend", "backends", type=Named(BACKEND_NAMES), multiple=True,
    help=f"What runs the artifacts; may be given several times.  [default: {AUTO}]",
)  # fmt: skip
@click.option("--prompt", metavar="TEXT", help="What is asked; {question} stands for the item's.  [default: LLaVA's]")
@click.option("--max-new-tokens", type=int, metavar="N", help="Of each answer.  [default: 32; 64 for captions]")
@max_pixels_option
@json_option
@verbose_option
@passed_as("options", _options, ("task", "artifacts", "backends", "prompt", "max_new_tokens"))
def evaluation(data: Path, out: Path, model: ModelOptions, options: EvalOptions, as_json: bool) -> None:
    """Run a task with PyTorch's encoder and with artifacts, and compare them item by item.

    Answers are greedy. Without labels in the data there is no metric, but still agreement with PyTorch. A bad image is
    reported and the others go on; the exit code is then 1.
    """
    from ..benchmarks.tasks.evaluate import evaluate
    from . import printing, render_answers
    from .progress_bar import progress_bar

    with progress_bar() as progress:
        report = evaluate(model, data, out, options, progress=progress)
    if as_json:
        printing.print_json(report.to_dict())
    else:
        render_answers.eval_report(report)
    failed: dict[int, str] = {}
    for line, _, reason in report.failed:
        failed.setdefault(line, reason)
    for line, reason in failed.items():
        printing.error(f"{data}, line {line}: {reason}")
    if failed:
        printing.error(f"{len(failed)} items failed; mend them and start again: {out} keeps the others")
        click.get_current_context().exit(1)
