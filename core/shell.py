"""Words of a command line that a user can paste, whatever bytes their file names have."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def quoted(word: object) -> str:
    """One word, as `shlex.quote` writes it; bytes that are no text, and control characters, as in bash's `$'…'`."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def command_line(words: Iterable[object]) -> str:
    """Words with blanks between them."""
    return " ".join(map(quoted, words))


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    # A surrogate of a path is a byte that the file system's encoding does not have.
    how = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", how))
