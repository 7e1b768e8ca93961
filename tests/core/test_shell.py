"""Command lines to paste: bash reads the words back, whatever bytes they have."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest

from fvexport.core.shell import command_line, quoted

WORDS = [
    b"caf\xe9",
    "modèle 模型".encode(),
    b"it's \\n \xff0",
    b"a\nb\tc\x1b[0m",
    b"plain",
    b"",
    b'$(x) `y` "z" !',
    b"\x80\x81",
]


def test_bash_reads_the_words_back() -> None:
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash")
    line = command_line(["printf", r"%s\0", *map(os.fsdecode, WORDS)])
    done = subprocess.run([bash, "-c", line.encode()], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == WORDS


def test_ordinary_words_are_as_in_shlex() -> None:
    for word in ("plain", "two words", "it's", "模型", "", "$HOME"):
        assert quoted(word) == shlex.quote(word)
    assert quoted("caf\udce9") == r"$'caf\xe9'"
    assert quoted("a\nb").isprintable() and quoted("\ud800\u200b").isascii()
