"""`fvexport inspect`: what an artifact holds and costs."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, verbose_option


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@json_option
@verbose_option
def inspect(artifact: Path, as_json: bool) -> None:
    """Show what an artifact holds and what each stage costs.

    Inputs and outputs, operators, parameters, multiply-adds and activations, read from its graph.
    """
    from ..export.inspect import inspect_artifact
    from . import render

    found = inspect_artifact(artifact)
    if as_json:
        render.print_json(found.to_dict())
    else:
        render.inspection(found)
