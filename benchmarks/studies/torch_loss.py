"""What PyTorch itself loses in each precision, in plain and centred figures: the thresholds of parity come from these.

    python -m fvexport.benchmarks.studies.torch_loss --res 256 --samples 8
    python -m fvexport.benchmarks.studies.torch_loss --checkpoint tests/data/trained --res 128

The eager model in train form and float32 is compared with the fused one: its weights and every result rounded to a half
type, or with quantizers. INT8 and FP8 are those of the target `tensorrt`: products are exact, the rest is FP16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ...calibration.calibration_options import CalibrationOptions
from ...core.errors import FvexportError
from ...core.progress import silent
from ...core.verdict.reference import Reference
from ...encoder.checkpoint import Checkpoint, load_checkpoint
from ...encoder.image import HELD_OUT, sample_images
from ...encoder.preprocess import Preprocessor
from ...export.export_options import ExportOptions
from ...export.parity_backends import EagerReference
from ...export.parity_runs import tokens_of
from ...export.prepare import prepare, stored_type
from .results import out_option, write_rows

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
HEADER = f"{'':5s} {'plain':>8s} {'dB':>6s} {'centred':>8s} {'dB':>6s}  worst cosine"


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--checkpoint", metavar="SRC", help="Weights.  [default: seeded]")
@click.option("--variant", help="Architecture.  [default: detected from the checkpoint, else fastvithd]")
@click.option("--res", default=256, show_default=True, help="Square resolution.")
@click.option("--samples", default=64, show_default=True, help="Pictures to calibrate INT8 and FP8 on.")
@click.option("--precision", default=",".join(PRECISIONS), show_default=True, help="Comma-separated.")
@out_option
def main(checkpoint: str | None, variant: str | None, res: int, samples: int, precision: str, out: Path | None) -> None:
    """Prints a row per precision, and writes them to `--out`."""
    rows = []
    try:
        loaded = load_checkpoint(checkpoint, variant=variant)
        click.echo(HEADER)
        for row in measure(loaded, res, samples, precision.split(",")):
            cells = (row["rel_l2"], row["sqnr_db"], row["centred_rel_l2"], row["centred_sqnr_db"])
            numbers = (f"{value:{form}}" for value, form in zip(cells, ("8.1e", "6.1f") * 2, strict=True))
            click.echo(f"{row['precision']:5s} {' '.join(numbers)}  {row['cosine_min']:.6f}")
            rows.append(row)
    except FvexportError as error:
        raise click.ClickException(str(error)) from None
    write_rows(out, rows, resolution=res, samples=samples, checkpoint=loaded.info.source)


def measure(
    checkpoint: Checkpoint, resolution: int, samples: int, precisions: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The figures on the two photographs that parity looks at by default, one dictionary per precision."""
    encoder = checkpoint.encoder
    frame = Preprocessor(resolution, resolution, checkpoint.info.preprocessing)
    photographs = sample_images()
    images = [photographs[name] for name in HELD_OUT]
    seen = [tokens_of(frame, image, encoder.config.stride) for image in images]
    known = Reference.of(EagerReference(encoder).run, frame(images), seen)
    for precision in precisions:
        options: Any = {"height": resolution, "width": resolution, "precision": precision}
        if precision == "int8":
            options["target"] = "tensorrt"
        wanted = ExportOptions(**options)
        calibration = CalibrationOptions(samples=samples if wanted.quantized else None)
        prepared = prepare(checkpoint, wanted, calibration, {}, silent)
        own = EagerReference(prepared.encoder, emulate_half=stored_type(wanted))
        yield {"precision": precision} | known.figures(own.run).to_dict()


if __name__ == "__main__":
    main()
