"""Printing for all commands: JSON, tables, notes, errors, sizes. Tables fit 80 columns and have no colour in a pipe.

Names and texts come from files and arguments, and from models. No command prints in another way than through these
functions, which leave out what a terminal would obey; ruff refuses `click.echo` elsewhere.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from ..core.errors import one_line
from ..core.plain_text import plain_line, plain_text

MAX_NAMES = 4
"""Names of images listed in a row; the rest are counted."""


_erase: list[Callable[[], None]] = []
"""What removes the progress line from the terminal until it is drawn again."""


def progress_line(erase: Callable[[], None] | None) -> None:
    """Says that there is a progress line on stderr, which `erase` removes for a moment, or that there is none."""
    _erase[:] = [] if erase is None else [erase]


def write_line(line: object = "", *, err: bool = False) -> None:
    """One line on stdout, or on stderr with `err`, whatever it holds."""
    if err and _erase:
        _erase[0]()
    click.echo(plain_line(line), err=err)


def write_text(text: str, *, err: bool = False, end: str = "\n") -> None:
    """A text with line breaks, such as a model's answer."""
    click.echo(plain_text(text) + end, nl=False, err=err)


def print_json(data: Any) -> None:
    """`data`, and nothing else, on stdout."""
    # JSON escapes what a terminal obeys, but for this one.
    click.echo(json.dumps(data, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", numbers_from: int = 1) -> None:
    """A table on stdout; columns from `numbers_from` on are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # `str`, never markup: a file name may hold square brackets.
    result = Table(
        title=Text(plain_line(title), style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if any(header) else None,
        show_header=any(header),
        padding=(0, 1),
    )
    for index, name in enumerate(header):
        result.add_column(Text(plain_line(name)), justify="right" if index >= numbers_from else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(plain_line(cell)) for cell in row))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(result)
    # rich fills lines up with spaces and draws empty borders; a pipe needs neither.
    lines = [line.rstrip() for line in captured.get().splitlines()]
    click.echo("\n".join(line for line in lines if line) + "\n")


def facts(rows: Iterable[tuple[str, object]], *, title: str = "") -> None:
    """A table of names and values."""
    table(("", ""), rows, title=title, numbers_from=2)


def notices(sentences: Iterable[str], *, err: bool = False) -> None:
    """What a user should read, one line each, on stdout, or on stderr with `err`."""
    for sentence in sentences:
        write_line(f"note: {sentence}", err=err)


def error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    write_line(f"error: {one_line(message)}", err=True)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain_text(super().format(record))


def log_to_stderr() -> None:
    """Logs from INFO on to stderr, with the milliseconds since the start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(relativeCreated)6d ms %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def size(count: float) -> str:
    """Bytes in kB, MB or GB."""
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
