"""`fvexport trt`: a checkpoint or an ONNX artifact becomes a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from ..export.engines.engine_options import (
    FLAVOURS,
    OPT_LEVELS,
    EngineOptions,
    ProfileOptions,
)
from ..export.requests import EngineRequest
from .option_groups import group, names_of, refuse_given
from .options import (
    ModelRepository,
    Named,
    Parsed,
    json_option,
    max_pixels_option,
    model_repository_options,
    verbose_option,
)
from .parsing import parse_batch_span, parse_bytes, parse_resolution_span
from .request_options import (
    BOUND_OPTIONS,
    CALIBRATION_OPTIONS,
    CHECK_OPTIONS,
    GRAPH_OPTIONS,
    OUT_OPTION,
    RES_OPTION,
    WEIGHT_OPTIONS,
    export_request,
    precision_options,
)

PRECISION_OPTIONS = precision_options("fp16")
ONNX_FILE_OPTIONS = names_of(
    *WEIGHT_OPTIONS, RES_OPTION, *PRECISION_OPTIONS, *CALIBRATION_OPTIONS, *BOUND_OPTIONS, *GRAPH_OPTIONS
)
"""Options that have no effect with --artifact."""


ENGINE_OPTIONS = (
    click.option("--flavour", type=Named(FLAVOURS), help="Which TensorRT.  [default: the one that is installed]"),
    click.option(
        "--workspace", type=Parsed("size", parse_bytes), metavar="4GiB", help="Memory for one layer.  [default: all]"
    ),
    click.option(
        "--opt-level",
        type=click.IntRange(OPT_LEVELS.start, OPT_LEVELS.stop - 1),
        metavar="0-5",
        help="Quick build to fastest engine.  [default: TensorRT's own, 3]",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="What builds measured before.  [default: one per GPU and version in the user's cache]",
    ),
    click.option(
        "--hardware-compatible", is_flag=True, help="An engine for every GPU from Ampere on; a little slower."
    ),
    click.option("--version-compatible", is_flag=True, help="An engine for later releases of the same major version."),
    click.option(
        "--strip", is_flag=True, help="Leave the weights out; they come from the ONNX file when it is loaded."
    ),
)


def _request(*, artifact: Path | None, dynamic_res: Any, batch: Any, dry_run: bool, **given: Any) -> EngineRequest:
    if artifact is not None:
        refuse_given(ONNX_FILE_OPTIONS, "is of the ONNX file, which --artifact brings")
    if dynamic_res is not None:
        refuse_given(("res",), "and --dynamic-res exclude each other")
    size: dict[str, Any] = {}
    if artifact is None:
        height, width = (span[1] for span in dynamic_res) if dynamic_res else given["res"]
        fewest, _, most = batch or (1, 1, 1)
        fixed = fewest if fewest == most else None
        size = {"height": height, "width": width, "batch": fixed, "dynamic_res": dynamic_res is not None}
    return EngineRequest(
        export=export_request(given, "fp16", **size),
        artifact=artifact,
        profile=ProfileOptions(batch=batch, resolutions=dynamic_res),
        engine=EngineOptions(**{name: given[name] for name in names_of(*ENGINE_OPTIONS)}),
        dry_run=dry_run,
    )


@click.command("trt")
@group(
    "request",
    _request,
    *WEIGHT_OPTIONS,
    RES_OPTION,
    click.option(
        "--artifact",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="An ONNX artifact to build from; it gains the engine, or --out does.",
    ),
    click.option(
        "--dynamic-res",
        type=Parsed("range", parse_resolution_span),
        metavar="MIN:OPT:MAX",
        help="One engine for a range of resolutions, fastest at OPT; instead of --res.",
    ),
    click.option(
        "--batch",
        type=Parsed("batch", parse_batch_span),
        metavar="N|MIN:OPT:MAX",
        help="Images per call.  [default: 1]",
    ),
    *PRECISION_OPTIONS,
    *CALIBRATION_OPTIONS,
    *BOUND_OPTIONS,
    *GRAPH_OPTIONS,
    *CHECK_OPTIONS,
    *ENGINE_OPTIONS,
    click.option("--dry-run", is_flag=True, help="Write the ONNX file and print the trtexec line; needs no TensorRT."),
    OUT_OPTION,
    click.option("--force", is_flag=True, help="Replace an engine, or another artifact, that stands there."),
)
@model_repository_options
@max_pixels_option
@json_option
@verbose_option
def trt(request: EngineRequest, repository: ModelRepository | None, as_json: bool) -> None:
    """Build a TensorRT engine of FastViTHD, and prove that it is the same model where a GPU can run it.

    Exports the ONNX file first, or takes one that is the same. TensorRT-RTX builds without a GPU; full TensorRT builds
    on the GPU that will run the engine.
    """
    if repository is not None and request.dry_run:
        message = "--triton-server serves the engine, which --dry-run leaves out"
        raise click.UsageError(message, click.get_current_context())
    from ..export.engine_export import run_engine
    from ..export.engines.api import load_api
    from ..export.server_options import Served
    from ..export.triton_server import artifact_bytes, check_repository, write_repository
    from . import printing, render_engine
    from .progress_bar import progress_bar

    export, engine = request.export, request.engine
    if repository is not None:
        out = export.output.out or cast("Path | None", request.artifact)
        precision = export.graph.precision
        served_file = Served(
            precision=precision, platform="plan", flavour=load_api(engine.flavour).flavour, strip=engine.strip,
            size=0 if request.artifact else artifact_bytes(precision, export.weights.architecture),
        )  # fmt: skip
        check_repository(repository.path, out, served_file, server=repository.server, force=export.output.force)
    with progress_bar() as progress:
        report = run_engine(request, progress)
    served = None
    if repository is not None:
        served = write_repository(
            report.artifact, repository.path, platform="plan", server=repository.server, force=export.output.force
        )
    if as_json:
        printing.print_json(render_engine.to_dict(report) | ({"triton_server": str(served)} if served else {}))
    else:
        render_engine.engine_report(report, served=served)
