"""`fvexport onnx`: a checkpoint becomes an ONNX artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..export.precision import QUANTIZED
from .options import (
    Batch,
    bound_options,
    calibration_from,
    check_images,
    check_seed,
    checkpoint_options,
    export_options,
    json_option,
    max_pixels_option,
    precision_options,
    target_options,
    triton_server_option,
    verbose_option,
)


@click.command("onnx")
@checkpoint_options
@click.option(
    "--batch", type=Batch(), metavar="N|dynamic", default="1", show_default=True, help="Images per call, or any number."
)
@click.option("--dynamic-res", is_flag=True, help="Any multiples of 64 at run time; --res is where it is checked.")
@precision_options("fp32")
@target_options
@bound_options
@export_options
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.  [default: by content]")
@click.option("--force", is_flag=True, help="Replace an artifact that stands there.")
@triton_server_option
@max_pixels_option
@json_option
@verbose_option
def onnx(
    res: tuple[int, int], batch: int | None, dynamic_res: bool, precision: Any, projector: bool, input_kind: Any,
    io: Any, opset: int | None, attention_plugin: bool, simplify: bool, checkpoint: str | None, revision: str | None,
    variant: str | None, seed: int | None, parity: bool, images: str | None, out: Path | None, force: bool,
    as_json: bool, target: Any, reduce_range: bool | None, calib: str | None, ranges: str | None,
    samples: int | None, method: Any, min_sqnr: float | None, min_cosine: float | None, triton_server: Path | None,
) -> None:  # fmt: skip
    """Export FastViTHD to ONNX, and prove that it is the same model.

    Writes a folder: the graph, its weights, and a manifest with the verdict. A file that fails its verdict is not
    written.
    """
    context = click.get_current_context()
    check_seed(seed, checkpoint)
    given = {
        "calib": calib, "ranges": ranges, "samples": samples, "method": method, "min_sqnr": min_sqnr,
        "min_cosine": min_cosine,
    }  # fmt: skip
    calibration = calibration_from(precision, given)
    if target is not None and precision not in QUANTIZED:
        raise click.UsageError(f"--target has no effect with --{precision}", context)
    if reduce_range is not None and precision != "int8":
        flag = "--reduce-range" if reduce_range else "--no-reduce-range"
        raise click.UsageError(f"{flag} has no effect with --{precision}", context)
    check_images(images, parity, calibration)
    from ..export.export_options import ExportOptions
    from ..export.onnx_export import export_onnx
    from ..export.triton_server import check_repository, write_repository
    from . import printing, render_artifact
    from .progress_bar import progress_bar

    options = ExportOptions(
        *res,
        batch,
        dynamic_res,
        precision,
        projector,
        input_kind,
        io,
        opset,
        simplify,
        target,
        attention_plugin,
        reduce_range,
    )
    if triton_server is not None:
        check_repository(triton_server, out, precision=precision, force=force)
    with progress_bar() as progress:
        report = export_onnx(
            checkpoint, out, options=options, variant=variant, revision=revision, seed=seed or 0, force=force,
            parity=parity, images=images, calibration=calibration, progress=progress,
        )  # fmt: skip
    served = None
    if triton_server is not None:
        served = write_repository(report.artifact, triton_server, force=force)
    if as_json:
        printing.print_json(
            {
                "artifact": str(report.artifact.path),
                **({} if served is None else {"triton_server": str(served)}),
                "manifest": asdict(report.artifact.manifest),
                "verdict": report.verdict and report.verdict.to_dict(),
                "seconds": report.seconds,
                "notices": report.notices,
                "reused": report.reused,
            }
        )
    else:
        render_artifact.export_report(report, served=served)
