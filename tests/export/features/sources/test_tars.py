"""Images in tar files, against `tarfile` and WebDataset's own reading."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.core.errors import ImageError, ImageWarning
from fvexport.encoder.image import image_suffixes
from fvexport.export.features import open_source
from fvexport.export.features.sources.tar_index import TarDamageError, members
from fvexport.export.features.sources.tar_source import image_key

IMAGES = (".jpg", ".png", ".JPEG", ".webp")
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_tar(
    path: str | Path, files: list[tuple[str, bytes]], form: str = "gnu", kind: bytes = tarfile.REGTYPE
) -> Path:
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" * 150 if kind != tarfile.REGTYPE else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return Path(path)


def samples(*keys: str) -> list[tuple[str, bytes]]:
    """An image and what WebDataset keeps beside it, for each key."""
    return [(key + suffix, f"{key}{suffix}".encode()) for key in keys for suffix in (".jpg", ".json", ".txt")]


names = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(["", "./", "a/", "/x/", "../", "写/", "d" * 120 + "/"]),
              st.sampled_from(["0", "1", "n.m", "ü", "k" * 110, ".hidden"]),
              st.sampled_from([*IMAGES, ".txt", ".cls", "", ".image.png"])),
    st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), min_size=1, max_size=9),
)  # fmt: skip
files = st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=8, unique_by=lambda file: file[0])


@given(
    files,
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, b"1", b"5", b"6"]),
)
def test_members_agree_with_tarfile(content: list[tuple[str, bytes]], form: str, kind: bytes) -> None:
    try:
        path = make_tar("t.tar", content, form, kind)
    except ValueError:  # a name that ustar cannot hold
        return
    with tarfile.open(path, "r:") as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    with path.open("rb") as file:
        found = [(name.rstrip("/"), *place) for name, *place in members(file, path.stat().st_size)]
    assert found == [(name.rstrip("/"), *place) for name, *place in expected]


@given(files)
def test_images_are_what_webdataset_reads(content: list[tuple[str, bytes]]) -> None:
    tariterators = pytest.importorskip("webdataset.tariterators")
    path = make_tar("t.tar", content)
    expected = {}
    with path.open("rb") as stream:
        for sample in tariterators.tar_file_iterator(stream):
            key, suffix = tariterators.base_plus_ext(sample["fname"])
            # Of `a/.0.jpg`, a hidden file, WebDataset takes `a/` for the key; macOS puts such files beside all others.
            if key and not key.endswith("/") and "." + suffix.rpartition(".")[2].lower() in image_suffixes():
                expected.setdefault(key, []).append(sample["data"])
    if any(len(found) > 1 for found in expected.values()) or not expected:
        with pytest.raises(ImageError, match=r"images with the key|has no member"):
            open_source([path])
    else:
        assert {item.id: [item.data] for item in open_source([path])} == expected


@given(content=files, place=st.integers(0, 10**6))
def test_a_tar_that_is_cut_off_keeps_what_is_before(content: list[tuple[str, bytes]], place: int) -> None:
    keys = Counter(image_key(name, image_suffixes()) for name, _ in content)
    content = [("first.png", b"first")] + [(n, c) for n, c in content if keys[image_key(n, image_suffixes())] == 1]
    path = make_tar("whole.tar", content)
    with tarfile.open(path, "r:") as tar:
        ends = [info.offset_data + info.size for info in tar]
    whole = list(open_source([path]))
    size = ends[0] + place % (ends[-1] + 500 - ends[0])
    Path("cut.tar").write_bytes(path.read_bytes()[:size])
    *kept, last = open_source(["cut.tar"])
    assert kept == whole[: len(kept)] and (last.id, last.data) == ("cut.tar", None)
    assert last.error == f"cut.tar is cut off at byte {size}; download it again"
    images = [image_key(name, image_suffixes()) is not None for name, _ in content]
    assert len(kept) == sum(image for image, end in zip(images, ends, strict=True) if end <= size)


def test_shards_of_a_pattern_or_a_folder(check_source) -> None:
    Path("in/deep").mkdir(parents=True)
    for shard in range(4):
        make_tar(f"in/deep/s-{shard:03d}.tar", samples(*(f"{shard}{image}" for image in range(3))))
        Path(f"in/deep/s-{shard:03d}.parquet").write_bytes(b"img2dataset writes these")
    source = open_source(["in"])
    items = check_source(source)
    assert [item.id for item in items] == [f"{shard}{image}" for shard in range(4) for image in range(3)]
    assert items[5].data == b"12.jpg" and source.kind == "tars"
    assert source.splits(3) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    again = open_source(["in/deep/s-{000..003}.tar", "in/deep/s-001.tar"])
    assert list(again) == items and again.digest == source.digest
    make_tar("in/deep/s-003.tar", samples("30", "31", "3x"))
    assert open_source(["in"]).digest != source.digest


def test_keys_in_several_shards_get_a_prefix(check_source) -> None:
    make_tar("a.tar", samples("0", "1"))
    make_tar("b.tar", samples("1", "2"))
    with pytest.warns(ImageWarning, match=r"keys are in several shards \(1 in a.tar and b.tar\): ids are SHARD/KEY"):
        source = open_source(["a.tar", "b.tar"])
    assert [item.id for item in check_source(source)] == ["a/0", "a/1", "b/1", "b/2"]
    Path("in").mkdir()
    make_tar("in/a.tar", samples("0"))
    with pytest.raises(ImageError, match=r"a.tar and in/a.tar have one name and both have the key 0; rename one"):
        open_source(["a.tar", "in/a.tar"])


@pytest.mark.parametrize("second", ["0.png", "0.left.jpg", "0.jpg"])
def test_two_images_of_a_key_are_refused(second: str) -> None:
    make_tar("a.tar", [*samples("x", "0"), (second, b"")])
    with pytest.raises(ImageError, match=rf"a.tar has 2 images with the key 0 \(0.jpg, {second}\); keep one"):
        open_source(["a.tar"])
    make_tar("b.tar", samples("0"))
    with pytest.raises(ImageError, match=r"a.tar has 2 images with the key 0"):
        open_source(["b.tar", "a.tar"])


def test_bad_shards_are_one_item_each(check_source) -> None:
    make_tar("good.tar", samples("0"))
    make_tar("text.tar", [("a.txt", b"")])
    whole = Path("good.tar").read_bytes()
    bad = {
        "empty.tar": b"",
        "words.tar": b"no tar file" * 100,
        "short.tar": b"no tar file",
        "zip.tar": b"\x1f\x8b" + bytes(2000),
        "cat.tar": whole.replace(b"0.jpg", b"1.jpg", 1)[:1024] + bytes(1024) + whole,
    }
    for name, content in bad.items():
        Path(name).write_bytes(content)
    os.mkfifo("pipe.tar")
    Path("folder.tar").mkdir()
    make_tar("folder.tar/x.tar", samples("x"))
    # The checksum of the changed name is wrong by one.
    source = open_source(["text.tar", *bad, "pipe.tar", "good.tar", "folder.tar"])
    errors = {item.id: item.error for item in check_source(source) if item.error}
    assert {item.id for item in source if item.data} == {"0", "x"}
    assert errors == {
        "empty.tar": "empty.tar is empty",
        "words.tar": "words.tar is not a tar file",
        "short.tar": "short.tar is not a tar file",
        "zip.tar": "zip.tar is compressed with gzip, so images cannot be read by position; decompress it",
        "cat.tar": "cat.tar is not a tar file",
        "pipe.tar": "pipe.tar is a FIFO, not a regular file",
    }
    with pytest.raises(ImageError, match=r"no images: empty.tar is empty \(and so 1 more\)"):
        open_source(["empty.tar", "words.tar"])
    with pytest.raises(ImageError, match=r"no images: text.tar has no member with an image's suffix"):
        open_source(["text.tar"])


def test_tar_files_that_were_joined_by_cat() -> None:
    make_tar("a.tar", samples("0"))
    Path("b.tar").write_bytes(Path("a.tar").read_bytes() * 2)
    *images, last = open_source(["b.tar"])
    assert [item.id for item in images] == ["0"] and "goes on after its end marker at byte" in last.error


def test_a_shard_that_changes_after_it_was_indexed() -> None:
    make_tar("a.tar", samples("0", "1"))
    source = open_source(["a.tar"])
    make_tar("a.tar", samples("0", "1") * 9)
    assert all("a.tar changed while it was read" in item.error for item in source)
    Path("a.tar").unlink()
    assert [item.id for item in source] == ["0", "1"]
    assert all("cannot be read (No such file or directory)" in item.error for item in source)


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from fvexport.export.features.sources import tar_source

    monkeypatch.setattr(tar_source, "MAX_IMAGE_BYTES", 5)
    make_tar("a.tar", [("0.jpg", b"12345"), ("1.jpg", b"123456")])
    first, second = open_source(["a.tar"])
    assert first.data == b"12345" and "has 6 bytes; an image may have up to 5" in second.error


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_files_are_an_error_of_the_image(form: str) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size = 512
    if form == "pax":
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    header = bytearray(info.tobuf(FORMATS[form]))
    if form == "gnu":
        header[156:157] = b"S"
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    Path("a.tar").write_bytes(bytes(header) + bytes(512) + Path(make_tar("b.tar", samples("1"))).read_bytes())
    first, second = open_source(["a.tar"])
    assert "0 is stored as a sparse file in a.tar" in first.error and second.id == "1"


def test_sizes_beyond_octal_digits() -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size = 9 << 30
    for form in ("gnu", "pax"):
        Path("a.tar").write_bytes(info.tobuf(FORMATS[form]) + bytes(600))
        with Path("a.tar").open("rb") as file, pytest.raises(TarDamageError, match="is cut off at byte"):
            list(members(file, Path("a.tar").stat().st_size))
        with Path("a.tar").open("rb") as file:
            (found,) = (member for member in _first(file, 20 << 30))
        assert found.size == 9 << 30


def _first(file, size: int):
    yield next(members(file, size))
