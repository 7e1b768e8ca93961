"""The walks in CONTRIBUTING.md name files and functions that exist, each file once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^### (.+?)\n\n((?:\d+\. .+\n)+)", TEXT, re.M))


def test_there_are_four() -> None:
    assert list(WALKS) == [
        "`--res` from the command line to the file",
        "`pixel_values` through `Encoder`",
        "Many images through `encode`",
        "One cell of a sweep, to the page",
    ]


@pytest.mark.parametrize("walk", WALKS)
def test_each_file_is_entered_once_and_has_what_is_named(walk: str) -> None:
    steps = re.findall(r"^\d+\. `([\w/.]+\.py)`[^:]*: (.+)$", WALKS[walk], re.M)
    assert len(steps) == WALKS[walk].count("\n")
    files = [file for file, _ in steps]
    assert len(set(files)) == len(files)
    for file, words in steps:
        source = (ROOT / file).read_text(encoding="utf-8")
        first = re.findall(r"`(\w+)`", words)[0]
        assert re.search(rf"^\s*(def|class) {first}\b", source, re.M), f"{file} defines no {first}"
