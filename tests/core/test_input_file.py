from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fvexport.core.input_file import check_regular, open_regular, parse_json, read_bytes, read_json, read_text


def test_regular_files_are_read_through_links_too(tmp_path: Path) -> None:
    file, link = tmp_path / "a.json", tmp_path / "link"
    file.write_text('{"ü": 1}', encoding="utf-8")
    link.symlink_to(file)
    for path in (file, link, str(link)):
        check_regular(path)
        assert read_text(path) == '{"ü": 1}'
        assert read_json(path) == {"ü": 1}
        with open_regular(path) as stream:
            assert stream.read() == file.read_bytes()


@pytest.mark.parametrize("read", [check_regular, open_regular, read_bytes, read_text, read_json])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, read, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes
    os.mkfifo("fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")
    for path, word in (
        ("fifo", "a FIFO"),
        (".", "a folder"),
        ("/dev/zero", "a device"),
        ("socket", "socket|No such device"),
    ):
        with pytest.raises(OSError, match=word):
            read(Path(path))
    listening.close()


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 64 MB"):
        read_bytes(file)
    file.write_bytes(b"12345")
    assert read_bytes(file, limit=5) == b"12345"
    with pytest.raises(OSError, match="larger than"):
        read_bytes(file, limit=4)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "{", b"\xff\xfe{", b"\x80"])
def test_json_of_any_content_raises_only_valueerror(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is the library's
        parse_json(text)


def test_nesting_is_bounded_where_python_could_still_read_it() -> None:
    assert parse_json("[" * 100 + "]" * 100) and parse_json('{"a":' * 50 + "[1]" + "}" * 50)
    for text in ("[" * 101 + "]" * 101, '{"a":' * 120 + "[1]" + "}" * 120, '[0, {"a": ' + "[" * 900 + "]" * 900 + "}]"):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    assert [parse_json(text) for text in ("1", '"[["', "null", "[[], {}]")] == [1, "[[", None, [[], {}]]
