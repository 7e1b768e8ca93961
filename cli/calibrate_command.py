"""`fvexport calibrate`: photographs become ranges that exports reuse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..calibration.calibration_options import METHODS, CalibrationOptions
from .option_groups import group
from .options import json_option, max_pixels_option, verbose_option
from .request_options import CALIBRATION_OPTIONS, RES_OPTION, WEIGHT_OPTIONS, weight_options

if TYPE_CHECKING:
    from ..encoder.weight_options import WeightOptions


def _calibration(*, calib: str | None, samples: int | None, method: Any) -> CalibrationOptions:
    return CalibrationOptions(calib=calib, samples=samples, method=method or METHODS[0])


@click.command("calibrate")
@group("weights", weight_options, *WEIGHT_OPTIONS)
@RES_OPTION
@group("options", _calibration, *CALIBRATION_OPTIONS)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="ranges.json to write.")
@click.option("--force", is_flag=True, help="Replace a file that stands there.")
@max_pixels_option
@json_option
@verbose_option
def calibrate(
    weights: WeightOptions, res: tuple[int, int], options: CalibrationOptions, out: Path, force: bool, as_json: bool
) -> None:
    """Observe the encoder's activations on photographs.

    Writes ranges.json for `fvexport onnx --ranges`, and its statistics beside it. A run that was stopped goes on where
    it was.
    """
    from ..calibration.calibrate import calibrate as run
    from . import printing, render_quantized
    from .progress_bar import progress_bar

    height, width = res
    with progress_bar() as progress:
        checkpoint = weights.load()
        report = run(checkpoint, out, height=height, width=width, options=options, force=force, progress=progress)
    if as_json:
        printing.print_json(report.record.to_dict() | {"out": str(report.out), "seconds": report.seconds})
    else:
        render_quantized.calibration(report)
