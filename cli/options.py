"""Option types and groups of options that several commands take.

What may be mistyped answers with the nearest name. Whether a value makes sense for the model is the library's to say.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ..calibration.calibration_options import DEFAULT_SAMPLES, FP16_SAMPLES, METHODS
from ..calibration.policy import QUANT_TARGETS
from ..core.errors import ConfigError
from ..encoder.config import VARIANTS
from ..export.backend_table import ALIASES, BACKENDS, get_backend
from ..export.export_options import AUTO, DEFAULT_OPSET, OPSETS, InputKind, IoKind
from ..export.precision import PRECISIONS
from .parsing import parse_batch, parse_resolution

F = TypeVar("F", bound=Callable[..., Any])


class Named(click.Choice):  # type: ignore[type-arg]  # not generic before click 8.2
    """One of a few names; a mistyped one answers with the nearest."""

    name = "name"

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(list(names))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        known = [str(choice) for choice in self.choices]
        if value in known:
            return str(value)
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}."
        return self.fail(f"{value!r} is unknown. {hint}", param, ctx)


class BackendName(Named):
    """A name or alias from the table of backends -> the name."""

    def __init__(self) -> None:
        super().__init__((*(target.name for target in BACKENDS), *ALIASES))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return get_backend(super().convert(value, param, ctx)).name


class Resolution(click.ParamType):  # type: ignore[type-arg]
    """`1024` or `512x384`, height first -> (height, width)."""

    name = "resolution"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_resolution(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Batch(click.ParamType):  # type: ignore[type-arg]
    """A number, or `dynamic`, which becomes None."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if not isinstance(value, str):
            return int(value)
        try:
            return parse_batch(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def checkpoint_options(command: F) -> F:
    """`--checkpoint`, `--revision`, `--variant`, `--seed`, `--res`: which weights, and at which resolution."""
    for option in (
        click.option(
            "--res",
            type=Resolution(),
            metavar="1024|HxW",
            default="1024",
            show_default=True,
            help="Multiples of 64 pixels.",
        ),
        click.option("--seed", type=int, metavar="N", help="For seeded weights.  [default: 0]"),
        click.option(
            "--variant", type=Named(VARIANTS), help="Architecture; found out from a checkpoint, else fastvithd."
        ),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hugging Face checkpoint."),
        click.option(
            "--checkpoint",
            metavar="SRC",
            help="File, folder or Hugging Face id; without it seeded weights that mean nothing.",
        ),
    ):
        command = option(command)
    return command


def precision_options(default: str) -> Callable[[F], F]:
    """`--fp32`, `--fp16`, `--bf16`, `--int8`, `--fp8`: at most one of them, passed on as `precision`."""
    meaning = {
        "fp32": "Weights and activations in float32.",
        "fp16": "In float16, scaled so that nothing overflows.",
        "bf16": "In bfloat16.",
        "int8": "Q/DQ in 8-bit integers where the target gains from them.",
        "fp8": "Q/DQ in FP8 (E4M3), for TensorRT on Hopper and later.",
    }

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            chosen = [name for name in PRECISIONS if kwargs.pop(name)]
            if len(chosen) > 1:
                message = f"--{chosen[0]} and --{chosen[1]} exclude each other"
                raise click.UsageError(message, click.get_current_context())
            return command(*args, precision=chosen[0] if chosen else default, **kwargs)

        for name in reversed(PRECISIONS):
            text = meaning[name] + ("  [default]" if name == default else "")
            wrapped = click.option(f"--{name}", name, is_flag=True, help=text)(wrapped)
        return wrapped  # type: ignore[return-value]

    return decorate


def calibration_options(command: F) -> F:
    """`--calib`, `--samples`, `--method`: what ranges are taken on, and how they are chosen."""
    for option in (
        click.option("--method", type=Named(METHODS), help=f"How ranges are chosen.  [default: {METHODS[0]}]"),
        click.option(
            "--samples",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Pictures to calibrate on.  [default: {DEFAULT_SAMPLES}; {FP16_SAMPLES} with --fp16]",
        ),
        click.option(
            "--calib",
            metavar="SRC",
            help="Photographs: a folder, a list, or `sample`, scikit-image's.  [default: sample]",
        ),
    ):
        command = option(command)
    return command


def bound_options(command: F) -> F:
    """`--ranges`, `--min-sqnr`, `--min-cosine` and `calibration_options`: how a quantized file is made."""
    for option in (
        click.option(
            "--min-cosine", type=float, metavar="C", help="The same bound, as the cosine that such noise leaves."
        ),
        click.option(
            "--min-sqnr",
            type=float,
            metavar="DB",
            help="Keep layers in float until the features reach this SQNR, plain and centred.",
        ),
        click.option("--ranges", metavar="FILE", help="What `fvexport calibrate` wrote, instead of --calib."),
    ):
        command = option(command)
    return calibration_options(command)


def target_options(command: F) -> F:
    """`--target` and `--reduce-range`: the runtime that a quantized file is for, and the range of its weights."""
    for option in (
        click.option(
            "--reduce-range/--no-reduce-range",
            default=None,
            help="INT8 weights from -64 to 64: exact on CPUs without VNNI, too.  [default: if this CPU has none]",
        ),
        click.option(
            "--target",
            type=Named((AUTO, *QUANT_TARGETS)),
            help="Runtime that a quantized file is for.  [default: auto, the fastest of this machine]",
        ),
    ):
        command = option(command)
    return command


def export_options(command: F) -> F:
    """`--projector`, `--input`, `--io`, `--opset`, `--simplify`, `--parity`, `--images`: of any export."""
    for option in (
        click.option("--images", metavar="PATH", help="Photographs to compare on: a file or folder.  [default: two]"),
        click.option("--parity/--no-parity", default=True, help="Compare with the eager model.  [default: parity]"),
        click.option("--simplify/--no-simplify", default=True, help="Run onnxsim.  [default: simplify]"),
        click.option(
            "--attention-plugin",
            is_flag=True,
            help="Experimental: attention as one node that TensorRT gives to our kernel.",
        ),
        click.option(
            "--opset",
            type=int,
            metavar="N",
            help=f"{OPSETS.start} to {OPSETS.stop - 1}.  "
            f"[default: {DEFAULT_OPSET}; with --bf16 the first that has its Conv]",
        ),
        click.option(
            "--io",
            type=Named(get_args(IoKind)),
            default="fp32",
            show_default=True,
            help="Type of the inputs and outputs.",
        ),
        click.option(
            "--input",
            "input_kind",
            type=Named(get_args(InputKind)),
            default="float",
            show_default=True,
            help="Pixels in [0, 1], or 0 to 255.",
        ),
        click.option(
            "--projector", is_flag=True, help="Append the connector, so that the output fits the language model."
        ),
    ):
        command = option(command)
    return command


def refuse_given(names: Iterable[str], why: str) -> None:
    """Raises UsageError for the first of the current command's parameters `names` that was typed."""
    context = click.get_current_context()
    by_name = {param.name: param for param in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{by_name[name].opts[0]} {why}", context)


def calibration_from(precision: str, given: dict[str, Any]) -> Any:
    """The `CalibrationOptions` of `calibration_options` or `bound_options`; refuses what has no effect.

    Args:
        precision: that was asked for.
        given: option names and values, None where not given.
    """
    from ..calibration.calibration_options import CalibrationOptions
    from ..export.precision import QUANTIZED

    takes = tuple(given) if precision in QUANTIZED else ("calib", "ranges", "samples") if precision == "fp16" else ()
    for name, value in given.items():
        if value is not None and name not in takes:
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect with --{precision}", click.get_current_context()
            )
    return CalibrationOptions(**{name: value for name, value in given.items() if value is not None})


def triton_server_option(command: F) -> F:
    """`--triton-server`, a model repository to add the result to."""
    return click.option(
        "--triton-server",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Add it to this model repository of Triton Inference Server, too.",
    )(command)


def check_seed(seed: int | None, checkpoint: str | None) -> None:
    """Raises UsageError where a seed was given for weights that have none."""
    if seed is not None and checkpoint is not None:
        message = "--seed is for seeded weights; leave it out with --checkpoint"
        raise click.UsageError(message, click.get_current_context())


def check_images(images: str | None, parity: bool, calibration: Any) -> None:
    """Raises UsageError where photographs were given that nothing would look at."""
    if images is not None and not parity and calibration.bound is None:
        raise click.UsageError("--images is for the parity that --no-parity skips", click.get_current_context())


def json_option(command: F) -> F:
    """`--json`, passed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


BACKEND_NAMES = (AUTO, *(target.name for target in BACKENDS), *ALIASES)
"""What `--backend` takes."""


def backend_option(command: F) -> F:
    """`--backend`: `auto`, or a name or alias from the table of backends."""
    return click.option(
        "--backend",
        type=Named(BACKEND_NAMES),
        default=AUTO,
        show_default=True,
        help="What runs the artifact; auto takes its engine, the GPU, or what it was made for.",
    )(command)


class Pixels(click.ParamType):  # type: ignore[type-arg]
    """`200M`, `1.5G`, `250000` or `none` -> a number of pixels, or None for no limit."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if str(value).strip().lower() == "none":
            return None
        match = re.fullmatch(r"(\d+|\d*\.\d+)\s*([kMG]?)", str(value).strip(), re.IGNORECASE)
        factor = {"": 1, "k": 1000, "m": 10**6, "g": 10**9}
        pixels = round(float(match[1]) * factor[match[2].lower()]) if match else 0
        if pixels < 1:
            self.fail(f"{value!r} is no number of pixels; give one such as 200M, or none for no limit", param, ctx)
        return pixels


def max_pixels_option(command: F) -> F:
    """`--max-pixels`, which sets `PIL.Image.MAX_IMAGE_PIXELS` while the command runs."""

    def start(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
        if ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.DEFAULT:
            return
        from PIL import Image

        before = Image.MAX_IMAGE_PIXELS

        def restore() -> None:
            Image.MAX_IMAGE_PIXELS = before

        ctx.call_on_close(restore)
        Image.MAX_IMAGE_PIXELS = value

    return click.option(
        "--max-pixels",
        type=Pixels(),
        metavar="N",
        envvar="FVEXPORT_MAX_PIXELS",
        show_envvar=True,
        expose_value=False,
        callback=start,
        help="Largest image to read, such as 200M; none for no limit.  [default: Pillow's, 89M]",
    )(command)


def verbose_option(command: F) -> F:
    """`-v`, before or after the command's name: log to stderr, and a traceback with each error."""

    def start(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not is_verbose(ctx):
            ctx.find_root().meta["fvexport.verbose"] = True
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)6d ms %(message)s")

    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=start, help="Log to stderr; tracebacks of errors."
    )(command)


def is_verbose(ctx: click.Context) -> bool:
    """Whether `-v` was given anywhere on the command line."""
    return bool(ctx.find_root().meta.get("fvexport.verbose"))
