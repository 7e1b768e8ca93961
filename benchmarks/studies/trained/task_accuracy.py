"""Does quantization cost answers? The trained tiny model, exported in each precision, on the same test images.

python -m fvexport.benchmarks.studies.trained.task_accuracy --out task_accuracy.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from ....calibration.calibration_options import CalibrationOptions
from ....export.export_options import ExportOptions
from ....export.onnx_export import export_onnx
from ....export.parity_backends import parity_backend
from ..results import out_option, write_rows
from .trained_tiny import RAMP, RESOLUTION, TRAINED, labels_and_pixels, right

CANDIDATES: dict[str, tuple[dict[str, Any], str]] = {
    "fp32 onnxruntime-cpu": ({"precision": "fp32"}, "onnxruntime-cpu"),
    "fp16 onnxruntime-cpu, stored in fp16": ({"precision": "fp16"}, "onnxruntime-cpu"),
    "int8 onnxruntime-cpu": ({"precision": "int8", "target": "onnxruntime-cpu"}, "onnxruntime-cpu"),
    "int8 openvino": ({"precision": "int8", "target": "openvino"}, "openvino"),
    "int8 tensorrt, on onnxruntime-cpu": ({"precision": "int8", "target": "tensorrt"}, "onnxruntime-cpu"),
}
"""Name -> export options and what runs the file. The first is what the others are compared with."""


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--count", default=4000, show_default=True, help="Test images.")
@click.option("--samples", default=64, show_default=True, help="Pictures to calibrate on.")
@out_option
def main(count: int, samples: int, out: Path | None) -> None:
    """Prints a table, and writes it to `--out`."""
    rows = []
    for row in measure(count, samples):
        click.echo(
            f"{row['name']:38s} {row['accuracy']:7.2%}  {row['points']:+.2f} points  "
            f"{row['changed']:.2%} of the answers turned right or wrong (standard error {row['error']:.2f} points)"
        )
        rows.append(row)
    write_rows(out, rows, images=count, samples=samples)


def measure(count: int, samples: int) -> Iterator[dict[str, Any]]:
    """One row per candidate: accuracy, its difference from the first in points, and how sure that is.

    The images are the same and the answers paired, so only those that turn count: `changed` is their share d, and the
    difference has a standard error of at most sqrt(d / images).
    """
    listing = labels_and_pixels("train", samples, start=RAMP)[1]  # the first ones are easier
    first: np.ndarray | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calib = _written(listing, folder / "calibration")
        shown = _written(labels_and_pixels("train", 8, start=RAMP + samples)[1], folder / "parity")
        for number, (title, (settings, backend)) in enumerate(CANDIDATES.items()):
            options = ExportOptions(height=RESOLUTION, width=RESOLUTION, batch=None, **settings)
            report = export_onnx(
                TRAINED, folder / str(number), options=options, images=shown,
                calibration=_calibration(options, calib, samples),
            )  # fmt: skip
            runner = parity_backend(report.artifact, backend)
            answers = right(_features(runner), count)
            first = answers if first is None else first
            changed = float((answers != first).mean())
            yield {
                "name": title, "accuracy": float(answers.mean()),
                "points": 100 * float(answers.mean() - first.mean()), "changed": changed,
                "error": 100 * (changed / count) ** 0.5,
            }  # fmt: skip


def _features(runner: Any) -> Any:
    """Pixels (B, 3, H, W) uint8 -> tokens, through a backend."""
    return lambda pixels: runner.run(pixels.astype("float32") / 255)


def _calibration(options: Any, calib: Path, samples: int) -> Any:
    return CalibrationOptions(calib=calib, samples=samples) if options.precision != "fp32" else None


def _written(pixels: Any, folder: Path) -> Path:
    """Training images as files: calibration takes what a user would give it."""
    folder.mkdir()
    for number, one in enumerate(pixels):
        Image.fromarray(one.transpose(1, 2, 0)).save(folder / f"{number:04d}.png")
    return folder


if __name__ == "__main__":
    main()
