"""`fvexport calibrate`: photographs become ranges that exports reuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import calibration_options, check_seed, checkpoint_options, json_option, max_pixels_option, verbose_option


@click.command("calibrate")
@checkpoint_options
@calibration_options
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="ranges.json to write.")
@click.option("--force", is_flag=True, help="Replace a file that stands there.")
@max_pixels_option
@json_option
@verbose_option
def calibrate(
    checkpoint: str | None, revision: str | None, variant: str | None, seed: int | None, res: tuple[int, int],
    calib: str | None, samples: int | None, method: Any, out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Observe the encoder's activations on photographs.

    Writes ranges.json for `fvexport onnx --ranges`, and its statistics beside it. A run that was stopped goes on where
    it was.
    """
    check_seed(seed, checkpoint)
    from ..calibration.calibrate import calibrate as run
    from ..calibration.calibration_options import METHODS, CalibrationOptions
    from ..encoder.checkpoint import load_checkpoint
    from . import printing, render_quantized
    from .progress_bar import progress_bar

    options = CalibrationOptions(calib, samples=samples, method=method or METHODS[0])
    with progress_bar() as progress:
        loaded = load_checkpoint(checkpoint, variant=variant, revision=revision, seed=seed or 0)
        report = run(loaded, out, height=res[0], width=res[1], options=options, force=force, progress=progress)
    if as_json:
        printing.print_json(report.to_dict() | {"out": str(report.out), "seconds": report.seconds})
    else:
        render_quantized.calibration(report)
