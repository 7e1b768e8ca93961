"""Images in Parquet and Arrow files, against pyarrow's own reading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.core.errors import ImageError, UnavailableError
from fvexport.export.features import SourceOptions, open_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, table: Any, group: int = 1000) -> str:
    """Writes a table in the form that the suffix says; `.arrow` in the stream format, as `datasets` does."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=group)
    elif path.endswith(".feather"):
        feather.write_feather(table, path, chunksize=group)
    else:
        with pa.RecordBatchStreamWriter(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return path


def options(**columns: str) -> SourceOptions:
    return SourceOptions(**columns)


SUFFIXES = (".parquet", ".feather", ".arrow")
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
contents = st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=50)), min_size=1, max_size=40)
COLUMNS = {
    "binary": lambda values: pa.array(values, pa.binary()),
    "large": lambda values: pa.array(values, pa.large_binary()),
    "dictionary": lambda values: pa.array(values, pa.binary()).dictionary_encode(),
    "image": lambda values: pa.array([{"bytes": value, "path": None} for value in values], HF),
    "image without paths": lambda values: pa.array(
        [{"bytes": value, "path": None} for value in values], pa.struct([("bytes", pa.binary()), ("path", pa.null())])
    ),
}


@given(
    values=contents,
    suffix=st.sampled_from(SUFFIXES),
    group=st.integers(1, 15),
    kind=st.sampled_from(sorted(COLUMNS)),
    with_ids=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_images_are_what_pyarrow_reads(
    values: list[bytes | None], suffix: str, group: int, kind: str, with_ids: bool, check_source: Any
) -> None:
    keys = list(range(len(values), 0, -1))
    table = pa.table({"caption": ["c"] * len(values), "photo": COLUMNS[kind](values), "key": keys})
    path = write("t" + suffix, table, group)
    source = open_source([path], options(id_column="key") if with_ids else None)
    items = check_source(source)
    assert [item.data for item in items] == values
    assert [item.id for item in items] == [str(key) if with_ids else f"{path}#{row}" for row, key in enumerate(keys)]
    assert source.kind == "tables"
    for item, value in zip(items, values, strict=True):
        assert value is not None or item.error == f"{item.id} has no image (null in the column photo)"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_a_column_of_paths(suffix: str, kind: Any, check_source: Any) -> None:
    values = ["a.png", None, "/x/b.jpg", "in/../c.png", "", "n\0l.png"]
    table = pa.table({"id": range(6), "image_path": pa.array(values, pa.string()).cast(kind), "text": ["t"] * 6})
    items = check_source(open_source([write("in/t" + suffix, table, 4)]))
    assert [item.data and str(item.data) for item in items] == ["a.png", None, "/x/b.jpg", "in/../c.png", None, None]
    assert "null in the column image_path" in items[1].error
    assert "is empty" in items[4].error and "NUL" in items[5].error


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_hugging_face(suffix: str, check_source: Any) -> None:
    rows = [{"bytes": b"1", "path": "x.png"}, {"bytes": None, "path": "y.png"}, {"bytes": None, "path": None}, None]
    table = pa.table({"image": pa.array(rows, HF), "image_mask": ["a", "b", "c", "d"]})
    items = check_source(open_source([write("data/train" + suffix, table, 3)]))
    assert [item.data for item in items] == [b"1", Path("data/y.png"), None, None]


def test_a_dataset_that_hugging_face_writes(check_source: Any) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = [Image.new("RGB", (3, 2), (index, 0, 0)) for index in range(5)]
    built = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    built.to_parquet("in/x.parquet")
    built.save_to_disk("saved")
    parquet, saved = check_source(open_source(["in"])), check_source(open_source(["saved"]))
    assert [item.data for item in parquet] == [item.data for item in saved]
    assert all(item.data.startswith(b"\x89PNG") for item in parquet)


def test_a_folder_of_tables(check_source: Any) -> None:
    table = pa.table({"image": [b"0", b"1", b"2", b"3"]})
    for name in ("d/b.parquet", "d/a/0.parquet", "d/_delta/x.parquet", "d/.crc.parquet", "d/c.arrow"):
        write(name, table, 2)
    Path("d/_SUCCESS").write_text("")
    source = open_source(["d"])
    names = ["d/a/0.parquet", "d/b.parquet", "d/c.arrow"]
    assert [item.id for item in check_source(source)] == [f"{name}#{row}" for name in names for row in range(4)]
    assert source.splits(4) == [(0, 4), (4, 8), (8, 12)] and source.splits(2)[:2] == [(0, 2), (2, 4)]
    assert list(open_source(["d", "d/b.parquet"])) == list(source)
    Path("d").rename("d.parquet")  # as Spark names the folder
    assert len(open_source(["d.parquet"])) == 12


def test_bad_shards_are_one_item_each(check_source: Any) -> None:
    table = pa.table({"image": [b"0", b"1"], "key": ["k0", "k1"]})
    good = Path(write("e/good.parquet", table)).read_bytes()
    write("e/other.parquet", pa.table({"photo": [b"0"], "key": ["k2"]}))
    write("e/twice.parquet", pa.Table.from_arrays([pa.array([b"0"]), pa.array([b"1"])], ["image", "image"]))
    for name, content in [("cut.parquet", good[:-30]), ("empty.arrow", b""), ("text.feather", b"no table" * 9)]:
        Path("e", name).write_bytes(content)
    Path("e/pipe.parquet").unlink(missing_ok=True)
    os.mkfifo("e/pipe.parquet")
    for chosen in (options(image_column="image"), options(image_column="image", id_column="key")):
        items = check_source(open_source(["e"], chosen))
        errors = {item.id: item.error for item in items if item.error}
        assert len(items) == 8 and set(errors) == {
            f"e/{name}"
            for name in ("other.parquet", "twice.parquet", "cut.parquet", "empty.arrow", "text.feather", "pipe.parquet")
        }
        assert "has no column 'image' (columns: photo (binary), key (string))" in errors["e/other.parquet"]
        assert errors["e/pipe.parquet"].endswith("is a FIFO, not a regular file")
        assert all(error.startswith(name + " ") for name, error in errors.items())
    with pytest.raises(ImageError, match=r"no images: e/cut.parquet cannot be read \(.*\(and so 1 more\)"):
        open_source(["e/cut.parquet", "e/text.feather"])
    write("none.parquet", pa.table({"image": pa.array([], pa.binary())}))
    with pytest.raises(ImageError, match=r"no images: none.parquet has no rows"):
        open_source(["none.parquet"])


def test_columns_that_cannot_be_told() -> None:
    write("two.parquet", pa.table({"a": [b"0"], "b": [b"1"], "n": [1]}))
    write("none.parquet", pa.table({"url": ["https://x"], "n": [1]}))
    cases = [
        (
            "two",
            options(),
            r"several columns that may have the images \(columns: a \(binary\), b \(binary\), n \(int64\)\)",
        ),
        (
            "none",
            options(),
            r"no column that is surely the images \(columns: url \(string\), n \(int64\)\); name one with --im",
        ),
        ("two", options(image_column="c"), r"two.parquet has no column 'c' \(columns: a .*another with --image-column"),
        ("two", options(image_column="n"), r"no images or paths in the column 'n'"),
        ("two", options(image_column="a", id_column="x"), r"has no column 'x' .* another with --id-column"),
        ("two", options(image_column="a", id_column="b"), r"no text or integers in the column 'b'"),
    ]
    for name, chosen, message in cases:
        with pytest.raises(ImageError, match=message):
            open_source([name + ".parquet"], chosen)
    assert [item.data for item in open_source(["two.parquet"], options(image_column="b"))] == [b"1"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_are_unique_and_not_null(suffix: str) -> None:
    for keys, message in [
        (["a", None], f"row 1 of u{suffix} has no usable id (it is null in the column key)"),
        (["a", ""], f"row 1 of u{suffix} has no usable id (it is of 0 characters"),
        (["a", "x" * 5000], "of 5000 characters"),
        (["b", "a"], f"the id a is in two rows (t{suffix}#0 and u{suffix}#1)"),
    ]:
        write("t" + suffix, pa.table({"image": [b"0", b"1"], "key": ["a", "c"]}))
        write("u" + suffix, pa.table({"image": [b"2", b"3"], "key": keys}), 1)
        with pytest.raises(ImageError) as caught:
            open_source(["t" + suffix, "u" + suffix], options(id_column="key"))
        assert message in str(caught.value)


def test_the_digest_is_of_files_rows_and_columns() -> None:
    table = pa.table({"image": [b"0", b"1"], "b": [b"2", b"3"], "key": ["a", "c"], "n": [1, 2]})

    def digest(*inputs: str, image: str = "image", key: str | None = None) -> str:
        return open_source(inputs, SourceOptions(image_column=image, id_column=key)).digest

    one, two = write("1.parquet", table), write("2.parquet", table)
    found = [digest(one), digest(two), digest(one, two), digest(two, one), digest(one, image="b"), digest(one, key="n")]
    assert found[0] == digest(one) and len({*found, digest(one, key="key")}) == 7
    write("1.parquet", table, 1)
    assert digest(one) != found[0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_that_is_damaged_or_changes_later(suffix: str, check_source: Any) -> None:
    table = pa.table({"image": [os.urandom(3000) for _ in range(30)]})
    path = Path(write("t" + suffix, table, 10))
    source = open_source([str(path)])
    whole = list(source)
    content = bytearray(path.read_bytes())
    at = content.index(table["image"][12].as_py()[:20]) - 40  # the page's header, or the offsets
    content[at - 200 : at] = os.urandom(200)
    path.write_bytes(content)
    items = list(source)
    assert [item.id for item in items] == [item.id for item in whole]
    assert items[:10] == whole[:10] or suffix == ".feather", "the first row group is sound"
    assert any(item.error or item != sound for item, sound in zip(items, whole, strict=True))
    path.write_bytes(content[:-1])
    assert all(f"t{suffix} changed while it was read" in item.error for item in source)
    path.unlink()
    assert all("No such file" in item.error for item in check_source(source))


def test_rows_that_no_file_of_the_size_has() -> None:
    write("t.parquet", pa.table({"image": pa.array([None] * 3_000_000, pa.binary())}), 10**7)
    with pytest.raises(ImageError, match=r"t.parquet claims 3000000 rows in \d+ bytes"):
        open_source(["t.parquet"])


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    Path("t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UnavailableError, match=r'need pyarrow, which is not installed; `pip install "fvexport\[data\]"`'
    ):
        open_source(["t.parquet"])
