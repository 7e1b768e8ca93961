"""`fvexport parity`: compares an artifact with the eager model again."""

from __future__ import annotations

from pathlib import Path

import click

from .options import backend_option, json_option, max_pixels_option, threads_option, verbose_option


@click.command("parity")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", metavar="SRC", help="Checkpoint with its weights.  [default: the one it was exported from]"
)
@click.option("--images", metavar="DIR", help="Photographs to compare on: a file or folder.  [default: two]")
@backend_option
@click.option("--layers", is_flag=True, help="Compare every block's output; names the first that exceeds its bound.")
@threads_option
@max_pixels_option
@json_option
@verbose_option
def parity(
    artifact: Path, checkpoint: str | None, images: str | None, backend: str, layers: bool, threads: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare an artifact with the eager model it was made from.

    Exits with 1 if it does not pass.
    """
    from ..export.artifact import Artifact
    from ..export.backend_table import get_backend
    from ..export.parity import check_parity
    from ..export.placement import choose_backend
    from . import printing, render_artifact, render_quantized
    from .progress_bar import progress_bar

    with progress_bar() as progress:
        opened = Artifact.open(artifact)
        chosen = choose_backend(opened, backend, judging=True, taps=layers)
        quantized = opened.manifest.quantization is not None and get_backend(chosen.name).taps
        verdict = check_parity(
            opened,
            checkpoint=checkpoint,
            images=images,
            backend=chosen.name,
            layers=layers or quantized,
            threads=threads,
            progress=progress,
        )  # fmt: skip
    if as_json:
        printing.print_json({"artifact": str(artifact), "passed": verdict.passed} | verdict.to_dict())
    else:
        render_artifact.verdict(verdict, blocks=layers)
        if quantized and not layers:
            render_quantized.curve(verdict)
    if not verdict.passed:
        click.get_current_context().exit(1)
