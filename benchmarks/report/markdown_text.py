"""Parts of a Markdown document, whose texts are only text: none of their characters is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...core.plain_text import storable_line
from .formatting import THIN

_MARKUP = re.compile(r"[\\`*~\[\]<>|]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp)(:)(?=//)|\b(www)(\.)")
"""What GitHub makes a link of without being asked."""
_START = re.compile(r"[#+=-]|\d+(?=[.)])")
"""What makes a heading, list or rule of a line that starts with it."""


def text(content: str) -> str:
    """One line of text; what would be HTML, a link, an image, emphasis or a table's border is shown as it is."""
    plain = storable_line(content).replace(THIN, " ")
    escaped = _MARKUP.sub(lambda found: "\\" + found[0], plain)
    return _ADDRESS.sub(lambda found: f"{found[1] or found[3]}\\{found[2] or found[4]}", escaped)


def line(content: str) -> str:
    """The same at the start of a line."""
    escaped = text(content).strip()
    start = _START.match(escaped)
    if start is None:
        return escaped
    number = start[0] if start[0].isdigit() else ""
    return f"{number}\\{escaped[len(number) :]}"


def heading(level: int, content: str) -> str:
    """A heading and the empty line after it."""
    return f"{'#' * level} {line(content)}\n"


def paragraph(content: str) -> str:
    """A paragraph of one line."""
    return line(content) + "\n"


def quote(content: str) -> str:
    """A quoted paragraph."""
    return f"> {line(content)}\n"


def bullets(items: Iterable[str]) -> str:
    """A list, of `line`, `code` and text of one's own."""
    return "".join(f"- {item}\n" for item in items)


def code(content: str) -> str:
    """Code within a line."""
    plain = storable_line(content)
    fence = "`" * (1 + _longest_run(plain))
    return f"{fence} {plain} {fence}" if "`" in plain else f"{fence}{plain}{fence}"


def console(content: str) -> str:
    """A command in a block of its own."""
    plain = storable_line(content)
    fence = "`" * max(3, 1 + _longest_run(plain))
    return f"{fence}console\n{plain}\n{fence}\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A table that is aligned in a terminal too; columns of `numbers` are aligned to the right."""
    cells = [[text(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(header))]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numbers, strict=True)]

    def joined(row: Sequence[str]) -> str:
        padded = (t.rjust(w) if right else t.ljust(w) for t, w, right in zip(row, widths, numbers, strict=True))
        return "| " + " | ".join(padded) + " |"

    return "\n".join([joined(cells[0]), joined(rule), *map(joined, cells[1:])]) + "\n"


def _longest_run(plain: str) -> int:
    return max(map(len, re.findall("`+", plain)), default=0)
