"""`fvexport inspect`: what an artifact holds and costs, and the floor that a GPU sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from ..core.gpus import DEFAULT_GPU, GPUS, Gpu, get_gpu
from ..encoder.config import VARIANTS, FastViTHDConfig, get_variant
from ..export.roofline import FloorPrecision
from .options import Named, Parsed, json_option, verbose_option
from .parsing import parse_resolutions

DEFAULT_RESOLUTIONS = "256,512,768,1024,1536,2048"


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option("--roofline", is_flag=True, help="Bytes, operations and the floor of each block; needs no artifact.")
@click.option(
    "--gpu", type=Named(gpu.name for gpu in GPUS), help=f"Whose peak rates set the floor.  [default: {DEFAULT_GPU}]"
)
@click.option("--tflops", type=float, metavar="X", help="Of another GPU: dense FP16 on tensor cores.")
@click.option(
    "--fp32-tflops", type=float, metavar="Y", help="Of another GPU: FP32 on CUDA cores; without it they bound nothing."
)
@click.option("--bandwidth", type=float, metavar="Z", help="Of another GPU: memory, in GB/s.")
@click.option(
    "--res",
    type=Parsed("resolutions", parse_resolutions),
    metavar="R,…",
    help=f"Resolutions of the roofline.  [default: the artifact's, else {DEFAULT_RESOLUTIONS}]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), metavar="N", help="Images per call.  [default: the artifact's, else 1]"
)
@click.option("--precision", type=Named(get_args(FloorPrecision)), help="Of the roofline.  [default: fp16]")
@click.option("--variant", type=Named(VARIANTS), help="Of the roofline, without an artifact.  [default: fastvithd]")
@json_option
@verbose_option
def inspect(artifact: Path | None, roofline: bool, as_json: bool, **given: Any) -> None:
    """Show what an artifact holds and what each stage costs.

    Inputs and outputs, operators, parameters, multiply-adds and activations, read from its graph. With --roofline
    instead the bytes and operations of its architecture, the time that a GPU cannot go below, and what each fused
    kernel removes of it.
    """
    context = click.get_current_context()
    if not roofline:
        for name, value in given.items():
            if value is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} is for --roofline", context)
        if artifact is None:
            raise click.UsageError("Missing argument 'ARTIFACT'", context)
        from ..export.inspection import inspect_artifact
        from . import printing, render_artifact

        found = inspect_artifact(artifact)
        if as_json:
            printing.print_json(found.to_dict())
        else:
            render_artifact.inspection(found)
        return
    gpu = _gpu(context, given)
    config, sizes, batch = _subject(context, artifact, given)
    from ..export.roofline import roofline as floors_of
    from . import printing, render_artifact, render_roofline

    report = floors_of(config, sizes, gpu, precision=given["precision"] or "fp16", batch=batch)
    if as_json:
        printing.print_json(report.to_dict())
    else:
        render_roofline.roofline(report)


def _gpu(context: click.Context, given: dict[str, Any]) -> Gpu:
    rates = {"tflops": given["tflops"], "fp32_tflops": given["fp32_tflops"], "bandwidth": given["bandwidth"]}
    if all(value is None for value in rates.values()):
        return get_gpu(given["gpu"] or DEFAULT_GPU)
    if given["gpu"] is not None:
        # A known GPU with rates of one's own: one that was measured, or that runs at another clock.
        return replace(get_gpu(given["gpu"]), **{name: rate for name, rate in rates.items() if rate is not None})
    for name, other in (("tflops", "bandwidth"), ("bandwidth", "tflops")):
        if rates[name] is None:
            raise click.UsageError(f"--{other} needs --{name} too, or a GPU by --gpu", context)
    return Gpu("custom", **rates)


def _subject(
    context: click.Context, artifact: Path | None, given: dict[str, Any]
) -> tuple[FastViTHDConfig, list[tuple[int, int]], int]:
    """Architecture, resolutions and batch: the artifact's where there is one."""
    if artifact is None:
        sizes = given["res"] or parse_resolutions(DEFAULT_RESOLUTIONS)
        return get_variant(given["variant"] or next(iter(VARIANTS))), sizes, given["batch"] or 1
    if given["variant"] is not None:
        raise click.UsageError("--variant is for a roofline without an artifact, which has its own", context)
    from ..export.artifact import Artifact

    manifest = Artifact.open(artifact).manifest
    prepared = manifest.preprocessor
    images = manifest.input.shape[0]
    own = images if isinstance(images, int) else 1
    return manifest.architecture, given["res"] or [(prepared.height, prepared.width)], given["batch"] or own
