"""Options of an export, and the request that they become.

Whether a value makes sense for the model is checked by the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from ..calibration.calibration_options import DEFAULT_SAMPLES, FP16_SAMPLES, METHODS, CalibrationOptions
from ..calibration.policy import QUANT_TARGETS
from ..encoder.config import VARIANTS
from ..encoder.weight_options import WeightOptions
from ..export.export_options import (
    AUTO,
    DEFAULT_OPSET,
    OPSETS,
    ExportOptions,
    InputKind,
    IoKind,
)
from ..export.precision import PRECISIONS, QUANTIZED, Precision
from ..export.requests import CheckOptions, ExportRequest, OutputOptions
from .option_groups import Decorator, names_of
from .options import RESOLUTION, Named

WEIGHT_OPTIONS = (
    click.option(
        "--checkpoint",
        metavar="SRC",
        help="File, folder or Hugging Face id; without it seeded weights that mean nothing.",
    ),
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hugging Face checkpoint."),
    click.option("--variant", type=Named(VARIANTS), help="Architecture; found out from a checkpoint, else fastvithd."),
    click.option("--seed", type=int, metavar="N", help="For seeded weights.  [default: 0]"),
)
RES_OPTION = click.option(
    "--res", type=RESOLUTION, metavar="1024|HxW", default="1024", show_default=True, help="Multiples of 64 pixels."
)
TARGET_OPTIONS = (
    click.option(
        "--target",
        type=Named((AUTO, *QUANT_TARGETS)),
        help="Runtime that a quantized file is for.  [default: auto, the fastest of this machine]",
    ),
    click.option(
        "--reduce-range/--no-reduce-range",
        default=None,
        help="INT8 weights from -64 to 64: exact on CPUs without VNNI, too.  [default: if this CPU has none]",
    ),
)
CALIBRATION_OPTIONS = (
    click.option(
        "--calib", metavar="SRC", help="Photographs: a folder, a list, or `sample`, scikit-image's.  [default: sample]"
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Pictures to calibrate on.  [default: {DEFAULT_SAMPLES}; {FP16_SAMPLES} with --fp16]",
    ),
    click.option("--method", type=Named(METHODS), help=f"How ranges are chosen.  [default: {METHODS[0]}]"),
)
BOUND_OPTIONS = (
    click.option("--ranges", metavar="FILE", help="What `fvexport calibrate` wrote, instead of --calib."),
    click.option(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="Keep layers in float until the features reach this SQNR, plain and centred.",
    ),
    click.option("--min-cosine", type=float, metavar="C", help="The same bound, as the cosine that such noise leaves."),
)
GRAPH_OPTIONS = (
    click.option("--projector", is_flag=True, help="Append the connector, so that the output fits the language model."),
    click.option(
        "--input",
        type=Named(get_args(InputKind)),
        default="float",
        show_default=True,
        help="Pixels in [0, 1], or 0 to 255.",
    ),
    click.option(
        "--io", type=Named(get_args(IoKind)), default="fp32", show_default=True, help="Type of the inputs and outputs."
    ),
    click.option(
        "--opset",
        type=int,
        metavar="N",
        help=f"{OPSETS.start} to {OPSETS.stop - 1}.  "
        f"[default: {DEFAULT_OPSET}; with --bf16 the first that has its Conv]",
    ),
    click.option(
        "--attention-plugin",
        is_flag=True,
        help="Experimental: attention as one node that TensorRT gives to our kernel.",
    ),
    click.option("--simplify/--no-simplify", default=True, help="Run onnxsim.  [default: simplify]"),
)
CHECK_OPTIONS = (
    click.option("--parity/--no-parity", default=True, help="Compare with the eager model.  [default: parity]"),
    click.option("--images", metavar="PATH", help="Photographs to compare on: a file or folder.  [default: two]"),
)
OUT_OPTION = click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.  [default: by content]"
)


def precision_options(default: Precision) -> tuple[Decorator, ...]:
    """`--fp32`, `--fp16`, `--bf16`, `--int8`, `--fp8`, of which at most one can be given."""
    meaning = {
        "fp32": "Weights and activations in float32.",
        "fp16": "In float16, scaled so that nothing overflows.",
        "bf16": "In bfloat16.",
        "int8": "Q/DQ in 8-bit integers where the target gains from them.",
        "fp8": "Q/DQ in FP8 (E4M3), for TensorRT on Hopper and later.",
    }
    return tuple(
        click.option(f"--{name}", is_flag=True, help=meaning[name] + ("  [default]" if name == default else ""))
        for name in PRECISIONS
    )


def weight_options(
    *, checkpoint: str | None, revision: str | None, variant: str | None, seed: int | None
) -> WeightOptions:
    """Raises UsageError if a seed was given for weights that are not seeded."""
    if seed is not None and checkpoint is not None:
        raise _usage("--seed is for seeded weights; leave it out with --checkpoint")
    return WeightOptions(checkpoint=checkpoint, revision=revision, variant=variant, seed=seed or 0)


def export_request(given: Mapping[str, Any], default: Precision, **size: Any) -> ExportRequest:
    """The request of a command that takes the options above.

    Args:
        given: option names and values; `target` and `reduce_range` may be missing.
        default: the precision if none was given.
        size: height, width, batch and dynamic_res of the graph.

    Raises:
        UsageError: an option has no effect beside the others.
        ConfigError: see `ExportOptions` and `CalibrationOptions`.
    """

    def values(*options: Decorator) -> dict[str, Any]:
        return {name: given[name] for name in names_of(*options)}

    weights = weight_options(**values(*WEIGHT_OPTIONS))
    precision = _precision(given, default)
    calibration = _calibration(precision, values(*CALIBRATION_OPTIONS, *BOUND_OPTIONS))
    target, reduce_range = given.get("target"), given.get("reduce_range")
    if target is not None and precision not in QUANTIZED:
        raise _usage(f"--target has no effect with --{precision}")
    if reduce_range is not None and precision != "int8":
        flag = "--reduce-range" if reduce_range else "--no-reduce-range"
        raise _usage(f"{flag} has no effect with --{precision}")
    checks = CheckOptions(**values(*CHECK_OPTIONS))
    if checks.images is not None and not checks.parity and calibration.bound is None:
        raise _usage("--images is for the parity that --no-parity skips")
    return ExportRequest(
        weights=weights,
        graph=ExportOptions(
            **size, **values(*GRAPH_OPTIONS), precision=precision, target=target, reduce_range=reduce_range
        ),
        calibration=calibration,
        checks=checks,
        output=OutputOptions(out=given["out"], force=given["force"]),
    )


def _precision(given: Mapping[str, Any], default: Precision) -> Precision:
    chosen = [name for name in PRECISIONS if given[name]]
    if len(chosen) > 1:
        raise _usage(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    return chosen[0] if chosen else default


def _calibration(precision: Precision, given: Mapping[str, Any]) -> CalibrationOptions:
    """The options that were given (not None); raises UsageError for one without effect in this precision."""
    effective = (
        tuple(given) if precision in QUANTIZED else ("calib", "ranges", "samples") if precision == "fp16" else ()
    )
    typed = {name: value for name, value in given.items() if value is not None}
    for name in typed:
        if name not in effective:
            raise _usage(f"--{name.replace('_', '-')} has no effect with --{precision}")
    return CalibrationOptions(**typed)


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())
