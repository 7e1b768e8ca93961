"""Lines that a kill cut off are neither read nor added to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvexport.benchmarks.json_lines import append_lines, complete_lines
from fvexport.core.errors import ArtifactError


def test_lines_are_appended_and_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    assert list(complete_lines(file)) == []
    append_lines(file, [], begins="{")
    assert not file.parent.exists()
    append_lines(file, ['{"a": "ü"}'], begins='{"a": ')
    append_lines(file, ["2", "3"], begins='{"a": ')
    assert file.read_bytes() == '{"a": "ü"}\n2\n3\n'.encode()
    assert list(complete_lines(file)) == [(1, '{"a": "ü"}'), (2, "2"), (3, "3")]


@pytest.mark.parametrize("torn", ["", "{", '{"a', '{"a": "\ud83d"}', '{"a": 1} '])
@pytest.mark.parametrize("before", ["", "1\n", "1\n\n2\n"])
def test_a_torn_line_is_replaced(tmp_path: Path, before: str, torn: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(before.encode() + torn.encode("utf-8", "surrogatepass")[:-1])
    whole = list(complete_lines(file))
    assert [text for _, text in whole] == before.split()
    append_lines(file, ["new"], begins='{"a": ')
    assert file.read_bytes() == before.encode() + b"new\n"


@pytest.mark.parametrize("before", ["", "\n", " \r\n\n"])
@pytest.mark.parametrize("only", ["precious", "[1, 2]", '{"b": 1}', '{"a"; ', "\0\0", "a" * 100])
def test_an_only_line_that_is_not_ours_is_kept(tmp_path: Path, before: str, only: str) -> None:
    """A file of another program whose last line has no line break."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes((before + only).encode())
    with pytest.raises(ArtifactError, match=rf"line {before.count(chr(10)) + 1} is no result of this command; choose"):
        append_lines(file, ["new"], begins='{"a": ')
    assert file.read_bytes() == (before + only).encode()


def test_blank_lines_count_but_hold_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"1\r\n\n \n\xff2\n")
    assert list(complete_lines(file)) == [(1, "1"), (4, "\ufffd2")]
