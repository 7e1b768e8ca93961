"""Options that `ask` and `eval` share: which model, with which encoder, at which resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .option_groups import group
from .options import RESOLUTION, Parsed, threads_option
from .parsing import parse_grid

if TYPE_CHECKING:
    from ..benchmarks.tasks.model_options import ModelOptions


def _model(**given: Any) -> ModelOptions:
    from ..benchmarks.tasks.model_options import ModelOptions

    return ModelOptions(**given)


model_options = group(
    "model",
    _model,
    click.option("--checkpoint", metavar="SRC", required=True, help="File, folder or Hugging Face id."),
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hugging Face checkpoint."),
    click.option("--tokenizer", metavar="SRC", help="Folder or Hugging Face id of one, for weights without."),
    click.option("--device", metavar="NAME", help="Of the language model.  [default: cuda where there is a GPU]"),
    click.option(
        "--dtype",
        metavar="NAME",
        help="Of the language model: float32, bfloat16 or float16.  [default: float32 on a CPU, else its own]",
    ),
    click.option(
        "--res",
        "resolution",
        type=RESOLUTION,
        metavar="1024|HxW",
        help="Multiples of 64 pixels.  [default: the artifact's, else the checkpoint's]",
    ),
    click.option("--anyres", is_flag=True, help="Cut pictures into tiles beside an overview, each of --res."),
    click.option(
        "--grid",
        "grids",
        type=Parsed("grid", parse_grid),
        metavar="RxC",
        multiple=True,
        help="Tiles that --anyres may take.",
    ),
    threads_option,
    click.option("--force", is_flag=True, help="Take an artifact that was made from other weights."),
)
"""The options of `ModelOptions`, which a command receives as `model`."""
