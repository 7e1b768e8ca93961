"""Option types, and single options that several commands take.

What may be mistyped answers with the nearest name. Whether a value makes sense for the model is the library's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ..core.errors import ConfigError
from ..core.phrases import did_you_mean
from ..core.threads import MAX_THREADS
from ..export.backend_table import ALIASES, BACKENDS, get_backend
from ..export.export_options import AUTO
from ..export.server_options import InstanceKind, ServerOptions
from .option_groups import group, names_of, refuse_given
from .parsing import parse_instances, parse_pixels, parse_resolution
from .printing import log_to_stderr

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
        return self.fail(f"{value!r} is unknown. {did_you_mean(value, known, sentence=True)}", param, ctx)


class BackendName(Named):
    """A name or alias from the table of backends -> the name."""

    def __init__(self) -> None:
        super().__init__((*(target.name for target in BACKENDS), *ALIASES))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return get_backend(super().convert(value, param, ctx)).name


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """Text that a function of `parsing` reads; its ConfigError becomes a usage error."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name, self.read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Folder(click.Path):
    """A folder's path; an empty value, as of an unset variable, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the value is empty; name a folder, or . for the current one", param, ctx)
        return super().convert(value, param, ctx)


RESOLUTION = Parsed("resolution", parse_resolution)


@dataclass(frozen=True)
class ModelRepository:
    """`--triton-server`: a model repository to add the result to, and how the server is to run it."""

    path: Path
    server: ServerOptions


def _model_repository(
    *, triton_server: Path | None, triton_instances: tuple[InstanceKind | None, int] | None,
    triton_threads: int | None, triton_inter_op_threads: int | None,
) -> ModelRepository | None:  # fmt: skip
    kind, count = triton_instances or (None, 1)
    if triton_server is None:
        refuse_given(TRITON_NAMES[1:], "has no effect without --triton-server")
        return None
    server = ServerOptions(
        kind=kind, instances=count, intra_op_threads=triton_threads, inter_op_threads=triton_inter_op_threads
    )
    return ModelRepository(triton_server, server)


TRITON_OPTIONS = (
    click.option(
        "--triton-server",
        type=Folder(path_type=Path),
        metavar="DIR",
        help="Add it to this model repository of Triton Inference Server, too.",
    ),
    click.option(
        "--triton-instances",
        type=Parsed("instances", parse_instances),
        metavar="[cpu:|gpu:|auto:]N",
        help="Instances that the server runs, and where.  [default: 1, where the file runs best]",
    ),
    click.option(
        "--triton-threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        help="Threads for one operator of an instance on a CPU.  [default: all cores]",
    ),
    click.option(
        "--triton-inter-op-threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        help="Operators that an instance on a CPU runs side by side.  [default: one]",
    ),
)
TRITON_NAMES = names_of(*TRITON_OPTIONS)
model_repository_options = group("repository", _model_repository, *TRITON_OPTIONS)
"""`--triton-server` and what belongs to it, passed on as `repository`: a ModelRepository, or None."""


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


def threads_option(command: F) -> F:
    """`--threads`, on the CPU."""
    return click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        help="Threads on the CPU.  [default: the runtime's own choice, within the container's CPU quota]",
    )(command)


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
        type=Parsed("pixels", parse_pixels),
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
            log_to_stderr()

    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=start, help="Log to stderr; tracebacks of errors."
    )(command)


def is_verbose(ctx: click.Context) -> bool:
    """Whether `-v` was given anywhere on the command line."""
    return bool(ctx.find_root().meta.get("fvexport.verbose"))
