"""`fvexport onnx`: a checkpoint becomes an ONNX artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .option_groups import group
from .options import ModelRepository, Parsed, json_option, max_pixels_option, model_repository_options, verbose_option
from .parsing import parse_batch
from .request_options import (
    BOUND_OPTIONS,
    CALIBRATION_OPTIONS,
    CHECK_OPTIONS,
    GRAPH_OPTIONS,
    OUT_OPTION,
    RES_OPTION,
    TARGET_OPTIONS,
    WEIGHT_OPTIONS,
    export_request,
    precision_options,
)

if TYPE_CHECKING:
    from ..export.requests import ExportRequest


def _request(*, res: tuple[int, int], batch: int | None, dynamic_res: bool, **given: Any) -> ExportRequest:
    height, width = res
    return export_request(given, "fp32", height=height, width=width, batch=batch, dynamic_res=dynamic_res)


@click.command("onnx")
@group(
    "request",
    _request,
    *WEIGHT_OPTIONS,
    RES_OPTION,
    click.option(
        "--batch",
        type=Parsed("batch", parse_batch),
        metavar="N|dynamic",
        default="1",
        show_default=True,
        help="Images per call, or any number.",
    ),
    click.option("--dynamic-res", is_flag=True, help="Any multiples of 64 at run time; --res is where it is checked."),
    *precision_options("fp32"),
    *TARGET_OPTIONS,
    *CALIBRATION_OPTIONS,
    *BOUND_OPTIONS,
    *GRAPH_OPTIONS,
    *CHECK_OPTIONS,
    OUT_OPTION,
    click.option("--force", is_flag=True, help="Replace an artifact that stands there."),
)
@model_repository_options
@max_pixels_option
@json_option
@verbose_option
def onnx(request: ExportRequest, repository: ModelRepository | None, as_json: bool) -> None:
    """Export FastViTHD to ONNX, and prove that it is the same model.

    Writes a folder: the graph, its weights, and a manifest with the verdict. A file that fails its verdict is not
    written.
    """
    from ..export.onnx_export import run_export
    from ..export.server_options import Served
    from ..export.triton_server import artifact_bytes, check_repository, write_repository
    from . import printing, render_artifact
    from .progress_bar import progress_bar

    output = request.output
    if repository is not None:
        precision = request.graph.precision
        served_file = Served(precision=precision, size=artifact_bytes(precision, request.weights.architecture))
        check_repository(repository.path, output.out, served_file, server=repository.server, force=output.force)
    with progress_bar() as progress:
        report = run_export(request, progress)
    served = None
    if repository is not None:
        served = write_repository(report.artifact, repository.path, server=repository.server, force=output.force)
    if as_json:
        printing.print_json(
            {
                "artifact": str(report.artifact.path),
                **({} if served is None else {"triton_server": str(served)}),
                "manifest": report.artifact.manifest.to_dict(),
                "verdict": report.verdict and report.verdict.to_dict(),
                "seconds": report.seconds,
                "notices": report.notices,
                "reused": report.reused,
            }
        )
    else:
        render_artifact.export_report(report, served=served)
