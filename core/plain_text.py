"""Makes texts of files, arguments and models plain: what is printed or shown of them controls no terminal."""

from __future__ import annotations

import re

from .phrases import printable

CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff"
"""Control characters, line separators, overrides of the writing direction, and what XML cannot hold; for `re`."""

SURROGATES = "\ud800-\udfff"
"""Halves of UTF-16 pairs, which UTF-8 cannot hold; for `re`."""

_ESCAPES = re.compile(
    # Source: ECMA-48, and xterm's control sequences. A string without an end is no string, but its start is removed.
    "(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"  # titles, links, the clipboard
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, moves of the cursor
    "|\x1b[ -/]*[0-~]?"
)
_IN_LINE = re.compile(f"[{CONTROLS}]")
_IN_TEXT = re.compile("[" + CONTROLS.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f") + "]")


def without_escapes(text: str) -> str:
    """`text` without the sequences that move a cursor, set a colour or title, or open a link in a terminal."""
    return _ESCAPES.sub("", text)


def plain_line(text: object) -> str:
    """`text` without escape sequences, with a space for each control character; blanks stay as they are."""
    return _IN_LINE.sub(" ", without_escapes(str(text)))


def storable_line(text: object) -> str:
    """`plain_line` without halves of UTF-16 pairs: what a file of UTF-8 can hold, such as a `records.Text`."""
    return plain_line(printable(str(text)))


def plain_text(text: str) -> str:
    """`text` in any language with its line breaks and tabs, without escape sequences and other control characters."""
    return _IN_TEXT.sub("", without_escapes(text))
