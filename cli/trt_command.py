"""`fvexport trt`: a checkpoint or an ONNX artifact becomes a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..core.errors import ConfigError
from ..export.engines.engine_options import FLAVOURS, OPT_LEVELS
from .options import (
    Named,
    bound_options,
    calibration_from,
    check_images,
    check_seed,
    checkpoint_options,
    export_options,
    json_option,
    max_pixels_option,
    precision_options,
    refuse_given,
    triton_server_option,
    verbose_option,
)
from .parsing import parse_batch_span, parse_bytes, parse_resolution_span

OF_THE_ONNX_FILE = (
    "checkpoint", "revision", "variant", "seed", "res", "fp32", "fp16", "bf16", "int8", "fp8", "ranges", "min_sqnr",
    "min_cosine", "calib", "samples", "method", "projector", "input_kind", "io", "opset", "simplify",
    "attention_plugin",
)  # fmt: skip
"""Options without a meaning where the ONNX file is there already."""


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """Text that a function of the library reads."""

    def __init__(self, name: str, read: Any) -> None:
        self.name = name
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


@click.command("trt")
@checkpoint_options
@click.option(
    "--artifact", type=click.Path(path_type=Path), metavar="DIR",
    help="An ONNX artifact to build from; it gains the engine, or --out does.",
)  # fmt: skip
@click.option(
    "--dynamic-res", type=Parsed("range", parse_resolution_span), metavar="MIN:OPT:MAX",
    help="One engine for a range of resolutions, fastest at OPT; instead of --res.",
)  # fmt: skip
@click.option(
    "--batch", type=Parsed("batch", parse_batch_span), metavar="N|MIN:OPT:MAX", help="Images per call.  [default: 1]"
)
@precision_options("fp16")
@bound_options
@export_options
@click.option("--flavour", type=Named(FLAVOURS), help="Which TensorRT.  [default: the one that is installed]")
@click.option(
    "--workspace",
    type=Parsed("size", parse_bytes),
    metavar="4GiB",
    help="Memory for one layer.  [default: all]",
)
@click.option(
    "--opt-level", type=click.IntRange(OPT_LEVELS.start, OPT_LEVELS.stop - 1), metavar="0-5",
    help="Quick build to fastest engine.  [default: TensorRT's own, 3]",
)  # fmt: skip
@click.option(
    "--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="What builds measured before.  [default: one per GPU and version in the user's cache]",
)  # fmt: skip
@click.option("--hardware-compatible", is_flag=True, help="An engine for every GPU from Ampere on; a little slower.")
@click.option("--version-compatible", is_flag=True, help="An engine for later releases of the same major version.")
@click.option("--strip", is_flag=True, help="Leave the weights out; they come from the ONNX file when it is loaded.")
@click.option("--dry-run", is_flag=True, help="Write the ONNX file and print the trtexec line; needs no TensorRT.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.  [default: by content]")
@click.option("--force", is_flag=True, help="Replace an engine, or another artifact, that stands there.")
@triton_server_option
@max_pixels_option
@json_option
@verbose_option
def trt(
    res: tuple[int, int], artifact: Path | None, dynamic_res: Any, batch: Any, precision: Any, projector: bool,
    input_kind: Any, io: Any, opset: int | None, attention_plugin: bool, simplify: bool, checkpoint: str | None,
    revision: str | None, variant: str | None, seed: int | None, parity: bool, images: str | None, out: Path | None,
    force: bool, as_json: bool, flavour: Any, workspace: int | None, opt_level: int | None, timing_cache: Path | None,
    hardware_compatible: bool, version_compatible: bool, strip: bool, dry_run: bool, triton_server: Path | None,
    **given: Any,
) -> None:  # fmt: skip
    """Build a TensorRT engine of FastViTHD, and prove that it is the same model where a GPU can run it.

    Exports the ONNX file first, or takes one that is the same. TensorRT-RTX builds without a GPU; full TensorRT builds
    on the GPU that will run the engine.
    """
    context = click.get_current_context()
    if artifact is not None:
        refuse_given(OF_THE_ONNX_FILE, "is of the ONNX file, which --artifact brings")
    if dynamic_res is not None:
        refuse_given(("res",), "and --dynamic-res exclude each other")
    check_seed(seed, checkpoint)
    calibration = calibration_from(precision, given)
    check_images(images, parity, calibration)
    if triton_server is not None and dry_run:
        raise click.UsageError("--triton-server serves the engine, which --dry-run leaves out", context)
    from ..export.engine_export import export_trt
    from ..export.engines.api import load_api
    from ..export.engines.engine_options import EngineOptions
    from ..export.export_options import ExportOptions
    from ..export.triton_server import check_repository, write_repository
    from . import printing, render_engine
    from .progress_bar import progress_bar

    options = None
    if artifact is None:
        height, width = (span[1] for span in dynamic_res) if dynamic_res else res
        images_per_call = batch or (1, 1, 1)
        fixed = images_per_call[0] if images_per_call[0] == images_per_call[2] else None
        options = ExportOptions(
            height,
            width,
            fixed,
            dynamic_res is not None,
            precision,
            projector,
            input_kind,
            io,
            opset,
            simplify,
            attention_plugin=attention_plugin,
        )
    engine = EngineOptions(
        flavour, workspace, opt_level, str(timing_cache) if timing_cache else None, hardware_compatible,
        version_compatible, strip,
    )  # fmt: skip
    if triton_server is not None:
        check_repository(
            triton_server, out or artifact, precision=precision, platform="plan", flavour=load_api(flavour).flavour,
            strip=strip, force=force,
        )  # fmt: skip
    with progress_bar() as progress:
        report = export_trt(
            checkpoint, out, artifact=artifact, options=options, batch=batch, resolutions=dynamic_res, engine=engine,
            variant=variant, revision=revision, seed=seed or 0, force=force, parity=parity, images=images,
            calibration=calibration, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    served = None
    if triton_server is not None:
        served = write_repository(report.artifact, triton_server, platform="plan", force=force)
    if as_json:
        printing.print_json(render_engine.to_dict(report) | ({"triton_server": str(served)} if served else {}))
    else:
        render_engine.engine_report(report, served=served)
