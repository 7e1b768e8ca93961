"""The group of commands, and the one place where errors become messages and exit codes.

0 done, 1 an error that the user can fix, 2 wrong usage, 130 interrupted, 143 terminated, 129 hung up. Any other
exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from .. import __version__
from ..core.errors import FvexportError, lacks_memory
from ..core.hardware import quota_threads
from ..core.phrases import did_you_mean
from . import printing, signals
from .ask_command import ask
from .calibrate_command import calibrate
from .doctor_command import doctor
from .encode_command import encode
from .eval_command import evaluation
from .inspect_command import inspect
from .notices import printed_warnings
from .onnx_command import onnx
from .options import is_verbose, verbose_option
from .parity_command import parity
from .report_command import report
from .surroundings import check_surroundings
from .sweep_command import sweep
from .trt_command import trt
from .tune_command import tune

EPILOG = """\b
Completion of options and names in your shell:
  bash  eval "$(_FVEXPORT_COMPLETE=bash_source fvexport)"
  zsh   eval "$(_FVEXPORT_COMPLETE=zsh_source fvexport)"
  fish  _FVEXPORT_COMPLETE=fish_source fvexport | source
"""


class Commands(click.Group):
    """Suggests the nearest command for a mistyped one, and shows users' errors as one line."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            ctx.fail(f"No such command {name!r}. {did_you_mean(name, known, sentence=True)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            check_surroundings()
            with printed_warnings():
                return super().invoke(ctx)
        except FvexportError as found:
            if signals.received() is not None:  # an interrupt that became an error on its way
                raise signals.Ended from found
            if is_verbose(ctx):
                printing.write_text("".join(traceback.format_exception(found)), err=True, end="")
            printing.error(str(found))
            ctx.exit(1)
        except KeyboardInterrupt:
            raise signals.Ended from None  # click would print a blank line


@click.group(
    "fvexport",
    cls=Commands,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fvexport", message="%(prog)s %(version)s")
@verbose_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Export FastViTHD, the vision encoder of FastVLM: files that run elsewhere, with proof that they are the same
    model.
    """
    if ctx.invoked_subcommand is None:
        printing.write_text(ctx.get_help())


COMMANDS = (onnx, trt, calibrate, parity, inspect, encode, ask, evaluation, sweep, report, tune, doctor)
for command in COMMANDS:
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command `fvexport`; always ends in SystemExit."""
    if (quota := quota_threads()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))  # before torch and NumPy start their threads
    sys.excepthook = _show_bug
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a character of ours, or of a file name, shows another instead.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if args is None:
        signals.end_on_signals()
    try:
        with signals.working():
            code = _run(args)
    except (click.Abort, KeyboardInterrupt, signals.Ended):
        code = signals.report()
    except Exception:
        if signals.received() is None:
            raise
        code = signals.report()
    sys.exit(code)


def _run(args: Sequence[str] | None) -> int:
    """Runs a command and returns its exit code."""
    code: Any
    try:
        code = cli.main(None if args is None else list(args), prog_name="fvexport", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        printing.error(_usage(error))
        code = error.exit_code
    except BrokenPipeError:
        # The reader is gone (`| head`). Python would complain at exit when it flushes what is left.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (MemoryError, RuntimeError, ImportError) as error:
        if not lacks_memory(error):
            raise
        error.__traceback__ = error.__context__ = None  # what its frames hold is free for the line below
        # Printed without the functions of `printing`, which need memory.
        sys.stderr.write("error: not enough memory: free some, or use smaller images, a smaller batch or resolution\n")
        code = 1
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            printing.error(f"too many open files ({error.filename}); raise the limit with `ulimit -n`")
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            printing.error(f"the disk is full ({error.filename or 'standard output'}); free some space")
        else:
            raise
        code = 1
    return code if isinstance(code, int) else 0


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python's own `sys.excepthook`, without escape sequences: a bug's message may quote any file."""
    printing.write_text("".join(traceback.format_exception(kind, error, trace)), err=True, end="")


def _usage(error: click.ClickException) -> str:
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        # click's own wording differs by release, and lists all that are similar.
        hint = did_you_mean(error.option_name, error.possibilities, cutoff=0, sentence=True)
        message = f"No such option {error.option_name!r}. {hint}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        end = "" if message.endswith((".", "?", ")")) else "."
        return f"{message}{end} See `{error.ctx.command_path} --help`"
    return message
