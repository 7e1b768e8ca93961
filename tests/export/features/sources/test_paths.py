"""Files, folders, and lists of paths; and how kinds of sources are told apart."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import ConfigError, ImageError, ImageWarning
from fvexport.export.features import Item, SourceOptions, open_source
from fvexport.export.features.sources.open_source import expand_braces


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images `a.png`, `b.jpg` and `in/c.png`."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.png", "b.jpg", "in/c.png"):
        Image.new("RGB", (4, 3)).save(name)
    return tmp_path


def ids(*inputs: str, **options: object) -> list[str]:
    return [item.id for item in open_source(inputs, **options)]


def test_files_and_folders_in_order_and_once(check_source) -> None:
    source = open_source(["b.jpg", "./a.png", "in", "gone.png", Path("a.png"), "in/c.png", "notes.txt"])
    items = check_source(source)
    assert items == [Item(name, Path(name)) for name in ("b.jpg", "a.png", "in/c.png", "gone.png", "notes.txt")]
    assert (source.kind, source.notices) == ("images", [])


def test_what_a_folder_leaves_out_is_a_warning(here: Path) -> None:
    Path("in/notes.txt").write_text("")
    with pytest.warns(ImageWarning, match=r"not an image by its suffix: 1 \(in/notes.txt\)"):
        source = open_source(["in", "a.png"])
    assert len(source) == 2 and len(source.notices) == 1


def test_lists_are_read_as_they_are_written(check_source) -> None:
    Path("list.txt").write_bytes("\ufeffb.jpg\r\n\n  \nin\r\ngone 写真.png\na.png".encode())
    expected = ["b.jpg", "in/c.png", "gone 写真.png", "a.png"]
    assert [item.id for item in check_source(open_source(["@list.txt"]))] == expected
    assert ids("a.png", "@list.txt") == ["a.png", *expected[:-1]]
    assert ids("-", stdin=io.BytesIO(Path("list.txt").read_bytes())) == expected


@given(
    st.lists(
        st.sampled_from(
            ["a.png", "./b.jpg", "in/c.png", "x/../gone.png", "in", "in/./c.png", "in//", ".//a.png", "in/c.png/"]
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_list_is_the_same_as_its_lines_as_arguments(lines: list[str]) -> None:
    source = open_source(["-"], stdin=io.BytesIO("\n".join(lines).encode()))
    assert list(source) == list(open_source(lines))
    assert source.digest == open_source(lines).digest


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_utf8(check_source) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 3)).save(name)
    (item,) = check_source(open_source(["-", name], stdin=io.BytesIO(b"caf\xe9.png\n")))
    assert item.id == "caf\\udce9.png" and item.data.exists()


def test_the_digest_is_of_ids_order_and_sizes() -> None:
    def digest(*inputs: str) -> str:
        return open_source(inputs).digest

    first = digest("a.png", "b.jpg")
    assert first == digest("./a.png", "b.jpg", "a.png")
    assert len({first, digest("b.jpg", "a.png"), digest("a.png"), digest("a.png", "b.jpg", "gone.png")}) == 4
    with Path("a.png").open("ab") as file:
        file.write(b"more")
    assert digest("a.png", "b.jpg") != first


def test_a_list_of_many_paths_takes_little_memory() -> None:
    count = 50_000
    lines = "".join(f"photos/{i // 1000:03d}/{i:09d}.jpg\n" for i in range(count)).encode()
    stdin = io.BytesIO(lines)
    ids("a.png")  # imports what is needed
    tracemalloc.start()
    try:
        source = open_source(["-"], stdin=stdin)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source) == count
    path = len(lines) / count
    assert held < count * (path + 32) and peak < count * 150, (held / count, peak / count)


def test_a_folder_of_many_images_takes_little_memory() -> None:
    count = 3000
    for number in range(count):
        file = Path(f"in/{number // 50:040d}/{number:040d}.png")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    ids("in")
    tracemalloc.start()
    try:
        source = open_source(["in"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    path = 84
    assert len(source) == count + 1 and peak < count * (2 * path + 130), peak / count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png\0b.jpg\0", "line 1 of list.txt contains a NUL byte"),
        ("a.png\n".encode("utf-16"), "line 1 of list.txt contains a NUL byte"),
        (b"a.png\n" + b"x" * 70_000, "line 2 of list.txt is longer than 65536 bytes"),
        (b"\n \n", "list.txt names no image"),
        (b"a.png\nx.tar\n", "line 2 of list.txt is no image but x.tar"),
        (b"a.png\nempty\n", "line 2 of list.txt: no image in folder empty"),
    ],
)
def test_lists_that_are_none(content: bytes, message: str) -> None:
    Path("empty").mkdir()
    Path("list.txt").write_bytes(content)
    with pytest.raises((ImageError, ConfigError), match=message):
        open_source(["@list.txt"])


def test_inputs_that_are_refused() -> None:
    Path("t.tar").write_bytes(b"")
    Path("both").mkdir()
    for name in ("x.tar", "y.parquet"):
        Path("both", name).write_bytes(b"")
    os.mkfifo("pipe.txt")
    for inputs, message in [
        ([], "no images given; name at least one image or folder"),
        ([""], "the path of an image is empty"),
        (["a.png", "t.tar"], r"images and tar files cannot be in one run \(a.png, t.tar\)"),
        (["t.tar", "-"], "tar files and images cannot be in one run"),
        (["@gone.txt"], r"cannot read the list gone.txt \(No such file or directory\)"),
        (["@pipe.txt"], "is a FIFO"),
        (["@in"], "is a folder|Is a directory"),
        (["-"], "no stdin"),
        (["x.tar.gz"], "x.tar.gz is compressed, so images cannot be read by position; decompress it"),
        (["gone.tar"], "gone.tar does not exist"),
        (["gone-{00..03}.parquet"], "gone-00.parquet does not exist"),
        (["both"], "has tables and tar files"),
    ]:
        with pytest.raises((ImageError, ConfigError), match=message):
            open_source(inputs)
    for options in (SourceOptions(image_column="x"), SourceOptions(id_column="x")):
        with pytest.raises(ConfigError, match=r"-column has no effect on images; leave it out"):
            open_source(["a.png"], options)


def test_braces_as_webdataset_writes_them() -> None:
    assert expand_braces("s-{00008..00011}.tar") == [f"s-{i:05d}.tar" for i in range(8, 12)]
    assert expand_braces("{a,b}/{0..2..2}.tar") == ["a/0.tar", "a/2.tar", "b/0.tar", "b/2.tar"]
    assert expand_braces("{2..0}.tar") == ["2.tar", "1.tar", "0.tar"]
    assert expand_braces("{a}.tar") == ["{a}.tar"] and expand_braces("a.tar") == ["a.tar"]
    for pattern in ("{0..9999999}.tar", "{0..999}{0..999}{0..9}.tar", "{0..999999999999999999}.tar"):
        with pytest.raises(ConfigError, match="stands for more than 1000000 files"):
            expand_braces(pattern)


@given(st.integers(-20, 200), st.integers(-20, 200), st.integers(0, 4), st.sampled_from(["", "..1", "..3"]))
def test_braces_agree_with_braceexpand(first: int, last: int, width: int, step: str) -> None:
    braceexpand = pytest.importorskip("braceexpand")
    pattern = f"s{{{first:0{width}d}..{last:0{width}d}{step}}}.tar"
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))
