"""Sources of images: tar files, tables and lists that are damaged, or claim what they do not have."""

from __future__ import annotations

import functools
import io
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import NUMBERS, TEXTS, byte_files, hostile_text

from fvexport.export.features import Item, SourceOptions, open_source

TAR_BLOCK = 512


def tar_of(form: int) -> bytes:
    """A tar file with a short and a long name, a link, and a file that is no image."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in [
            ("a/0.jpg", b"0" * 700),
            ("a/0.json", b"{}"),
            ("n" * 180 + ".png", b"1" * 30),
            ("2.png", b""),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return file.getvalue()


TARS = [tar_of(tarfile.GNU_FORMAT), tar_of(tarfile.PAX_FORMAT)]


@st.composite
def tar_files(draw: st.DrawFn) -> bytes:
    """A tar file with changed fields in its headers, which keep their checksums, in most cases; else bytes damaged."""
    content = bytearray(draw(st.sampled_from(TARS)))
    if draw(st.integers(0, 4)) == 0:
        return draw(byte_files(bytes(content)))
    headers = [at for at in range(0, len(content), TAR_BLOCK) if content[at + 257 : at + 262] == b"ustar"]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(headers))
        field, width = draw(
            st.sampled_from([(0, 100), (124, 12), (124, 12), (124, 12), (156, 1), (156, 1), (257, 8), (345, 155)])
        )
        value = draw(
            st.one_of(
                st.binary(min_size=width, max_size=width),
                st.sampled_from([*b"01234567LKxXgSVM"]).map(lambda kind: bytes([kind])),
                st.sampled_from(TEXTS).map(lambda text: text.encode("utf-8", "surrogatepass")),
                st.sampled_from([number for number in NUMBERS if isinstance(number, int)]).map(
                    lambda n: b"%o" % abs(n)
                ),
                st.integers(0, 2**88 - 1).map(lambda n: b"\x80" + n.to_bytes(11, "big")),
            )
        )
        content[at + field : at + field + width] = value[:width].ljust(width, b"\0")
        total = sum(content[at : at + 148]) + 256 + sum(content[at + 156 : at + TAR_BLOCK])
        content[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(content)


def read_all(path: Path, **columns: str) -> list[Item]:
    """Every item; checks what holds for every source."""
    source = open_source([path], SourceOptions(**columns))
    items = list(source)
    assert len(source) == len(items) == len({item.id for item in items})
    assert len(items) < 10_000_000 and len(source.digest) == 64
    for item in items:
        assert (item.data is None) != (item.error is None)
        assert item.data is None or isinstance(item.data, Path) or len(item.data) <= path.stat().st_size * 1000
    return items


@pytest.mark.parametrize("content", TARS)
def test_sound_tar_files_are_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    items = read_all(tmp_path / "t.tar")
    assert [(item.id, len(item.data)) for item in items] == [("a/0", 700), ("n" * 180, 30), ("2", 0)]


@fuzz(examples=120, content=tar_files())
def test_tar_file(content: bytes, folder: Path) -> None:
    (folder / "t.tar").write_bytes(content)
    with only_our_errors():
        read_all(folder / "t.tar")


@st.composite
def pax_headers(draw: st.DrawFn) -> bytes:
    """A tar file whose first header has attributes of any kind."""
    record = st.one_of(
        st.binary(max_size=30),
        st.builds(
            "{} {}={}\n".format,
            st.one_of(st.integers(-3, 60), st.sampled_from(NUMBERS)),
            st.sampled_from(["path", "size", "GNU.sparse.name", "GNU.sparse.map", "x"]),
            st.one_of(hostile_text, st.sampled_from(NUMBERS)),
        ).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.tuples(st.sampled_from([b"path", b"size"]), st.one_of(st.binary(max_size=20), st.just(b"10"))).map(
            lambda pair: b"%d %b=%b\n" % (len(b"".join(pair)) + 5, *pair)
        ),
    )
    body = b"".join(draw(st.lists(record, max_size=3)))
    info = tarfile.TarInfo("x")
    info.type, info.size = draw(st.sampled_from([b"x", b"g", b"L"])), len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0") + TARS[0]


@fuzz(examples=80, content=pax_headers())
def test_attributes_of_a_tar_file(content: bytes, folder: Path) -> None:
    (folder / "t.tar").write_bytes(content)
    with only_our_errors():
        read_all(folder / "t.tar")


@functools.cache
def sound_tables() -> dict[str, bytes]:
    """Tables of images as each library writes them, with more than one row group."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    image = pa.array([{"bytes": b"1" * 90, "path": "a.png"}, {"bytes": None, "path": "b.png"}, None] * 4)
    table = pa.table({"image": image, "key": [f"k{row}" for row in range(12)], "number": range(12)})
    written: dict[str, bytes] = {}
    for name, compression in [("snappy.parquet", "snappy"), ("plain.parquet", "none")]:
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=5, compression=compression)
        written[name] = file.getvalue()
    for name, opened in [("stream.arrow", pa.RecordBatchStreamWriter), ("file.feather", pa.RecordBatchFileWriter)]:
        file = io.BytesIO()
        with opened(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
        written[name] = file.getvalue()
    return written


def test_sound_tables_are_read(tmp_path: Path) -> None:
    for name, content in sound_tables().items():
        (tmp_path / name).write_bytes(content)
        items = read_all(tmp_path / name, id_column="key")
        assert [item.id for item in items] == [f"k{row}" for row in range(12)]
        assert [item.data for item in items[:3]] == [b"1" * 90, tmp_path / "b.png", None]


@st.composite
def table_changes(draw: st.DrawFn) -> Any:
    """How a table is changed: numbers of any size written into it, or bytes damaged."""
    seed = draw(st.integers(0, 2**32))
    number = draw(st.sampled_from([0, 1, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]))
    width = draw(st.sampled_from([1, 2, 4, 8]))
    damaged = draw(st.integers(0, 2)) == 0

    def change(content: bytes) -> bytes:
        # Most of what is told is in the last bytes of Parquet, and at the start of Arrow's messages.
        at = seed % len(content) if damaged else len(content) - 1 - seed % min(len(content) - 1, 1200)
        return content[:at] + struct.pack("<Q", number)[:width] + content[at + width :]

    cut = draw(st.one_of(st.none(), st.none(), st.none(), st.integers(1, 2000)))
    return lambda content: change(content)[: -cut if cut else None]


@fuzz(
    examples=160,
    share=0.5,
    name=st.sampled_from(["snappy.parquet", "plain.parquet", "stream.arrow", "file.feather"]),
    change=table_changes(),
    with_ids=st.booleans(),
)
def test_table(name: str, change: Any, with_ids: bool, folder: Path) -> None:
    (folder / name).write_bytes(change(sound_tables()[name]))
    with only_our_errors():
        read_all(folder / name, **({"id_column": "key"} if with_ids else {}))


def leads_outside(text: str, folder: Path) -> bool:
    """Whether a text names a folder above; to search all of a disk takes as long as it takes."""
    return os.path.isdir(text) and not Path(text).resolve().is_relative_to(folder)  # noqa: PTH112  # never raises


lines = st.lists(
    st.one_of(
        st.sampled_from(TEXTS).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from([b"a.png", b".", b"@list", b"-", b"/dev/zero", b"x.tar", b"\xff\xfe", b"\xef\xbb\xbf"]),
        st.binary(max_size=9),
    ),
    max_size=5,
)


@fuzz(examples=80, lines=lines, end=st.sampled_from([b"\n", b"\r\n", b"\r", b"\0"]))
def test_list(lines: list[bytes], end: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("a.png").write_bytes(b"")
    content = end.join(lines)
    Path("list").write_bytes(content)
    if any(leads_outside(line, folder) for line in content.decode("utf-8", "surrogateescape").splitlines()):
        return
    with only_our_errors():
        source = open_source(["@list"])
        assert len(source) == len(list(source)) > 0 and len(source.digest) == 64


@fuzz(
    examples=80,
    text=st.one_of(hostile_text, st.text("{}.,0123456789-a", max_size=30)),
    suffix=st.sampled_from(["", ".tar", ".parquet"]),
)
def test_argument(text: str, suffix: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if leads_outside(text, folder):
        return
    with only_our_errors():
        source = open_source([text + suffix])
        assert len(source) == len(list(source))
