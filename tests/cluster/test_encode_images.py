"""`EncodeImages` on batches of Ray's own readers, compared bit by bit with `Encoder`."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("ray.data")


def _tar(images: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as tar:
        for file in sorted(images.iterdir()):
            tar.add(file, file.name)
    return out


def _hugging_face(images: Path, out: Path) -> Path:
    """A table as `datasets` stores images: half of them with their content, half as a path."""
    import pyarrow.parquet as pq

    files = sorted(images.iterdir())
    cells = [{"bytes": f.read_bytes() if i % 2 else None, "path": str(f)} for i, f in enumerate(files)]
    pq.write_table(pa.table({"path": [str(f) for f in files], "image": cells}), out)
    return out


READERS = {
    # kind: (reader, the images' column, the column that names the file)
    "read_images": (lambda data, images, out: data.read_images(str(images), include_paths=True), "image", "path"),
    "read_binary_files": (
        lambda data, images, out: data.read_binary_files(str(images), include_paths=True), "bytes", "path",
    ),
    "read_webdataset": (
        lambda data, images, out: data.read_webdataset(str(_tar(images, out)), decoder=None), "jpg", "__key__",
    ),
    "hugging face": (lambda data, images, out: data.read_parquet(str(_hugging_face(images, out))), "image", "path"),
    "paths": (
        lambda data, images, out: data.from_items([{"image": str(f), "path": str(f)} for f in images.iterdir()]),
        "image", "path",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_columns_of_rays_readers(
    cluster: Any, reader: str, images: Path, artifact: Path, encoder: Any, tmp_path: Path
) -> None:
    from fvexport.ray import EncodeImages

    read, column, name = READERS[reader]
    dataset = read(cluster.data, images, tmp_path / "made.parquet").materialize()
    encode = EncodeImages(artifact, column=column, batch_size=4)
    for batch_format in ("numpy", "pyarrow"):
        table = batch_format == "pyarrow"
        batch: Any = dataset.take_batch(6, batch_format=batch_format)
        result = encode(batch)
        before, after = (one.column_names if table else list(one) for one in (batch, result))
        assert after == [one for one in before if one != column] + ["features", "error"]
        features = result["features"].combine_chunks().to_numpy_ndarray() if table else result["features"]
        names, errors = (result[one].to_pylist() if table else list(result[one]) for one in (name, "error"))
        assert errors == [None] * 6 and len(set(names)) == 6
        for one, file in zip(features, names, strict=True):
            np.testing.assert_array_equal(one, encoder(images / f"{Path(file).stem}.jpg")[0])


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow"])
def test_failed_rows(images: Path, artifact: Path, encoder: Any, batch_format: str) -> None:
    """Images that cannot be read, empty cells and rows that already failed have an error and no features."""
    from fvexport.ray import EncodeImages

    good = sorted(images.iterdir())[0].read_bytes()
    cells, errors = [b"no image", good, None, good, good], [None, None, None, "lost on the way", ""]
    batch: Any = {"id": np.arange(5), "image": np.array(cells, object), "error": np.array(errors, object)}
    if batch_format == "pyarrow":
        batch = pa.table({"id": np.arange(5), "image": pa.array(cells), "error": pa.array(errors)})
    result = EncodeImages(artifact, pool="mean", dtype="float16", keep=True)(batch)
    expected = encoder(good)[0].mean(axis=0, dtype=np.float64).astype(np.float16)
    if batch_format == "pyarrow":
        assert result.column_names == ["id", "image", "features", "error"]
        assert result["features"].is_valid().to_pylist() == [False, True, False, False, True]
        assert result["features"].type == pa.fixed_shape_tensor(pa.float16(), expected.shape)
        texts, values = result["error"].to_pylist(), result["features"].combine_chunks()
        np.testing.assert_array_equal(values[1].to_numpy(), expected)
    else:
        texts, values = list(result["error"]), result["features"]
        assert values.dtype == np.float16 and np.isnan(values[[0, 2, 3]]).all()
        np.testing.assert_array_equal(values[1], expected)
    assert "not an image" in texts[0] and "empty" in texts[2]
    assert (texts[1], texts[3], texts[4]) == (None, "lost on the way", None)


def test_wrong_arguments(artifact: Path) -> None:
    from fvexport.core.errors import ArtifactError, ConfigError
    from fvexport.ray import EncodeImages

    with pytest.raises(ConfigError, match=r"no column 'image'; did you mean 'images'"):
        EncodeImages(artifact)({"images": np.array([b""], object)})
    with pytest.raises(ConfigError, match="decoders must be a whole number"):
        EncodeImages(artifact, decoders=0)
    with pytest.raises(ArtifactError, match="no artifact at"):
        EncodeImages(artifact / "missing")


def test_in_a_pipeline(
    cluster: Any, images: Path, artifact: Path, encoder: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    """Two steps of a pipeline on one cluster; the artifact is unpacked on a node that does not have it."""
    from dataclasses import replace

    from fvexport.ray import EncodeImages, ship

    shipped = replace(ship(artifact), path=str(tmp_path / "elsewhere"))
    dataset = cluster.data.read_binary_files(str(images), include_paths=True)
    dataset = dataset.map_batches(
        EncodeImages,
        fn_constructor_args=(shipped,),
        fn_constructor_kwargs={"column": "bytes"},
        batch_size=3,
        concurrency=1,
    )
    rows = dataset.take_all()
    assert len(rows) == 6
    for row in rows:
        assert row["error"] is None
        np.testing.assert_array_equal(row["features"], encoder(row["path"])[0])


@pytest.mark.parametrize(
    "known", [np.array([np.nan, np.nan], np.float32), np.array([None, None]), np.array(["", None])]
)
def test_a_column_of_no_errors_is_none(artifact: Path, encoder: Any, images: Path, known: np.ndarray) -> None:
    """Ray hands a column of None on as one of NaN."""
    from fvexport.ray import EncodeImages

    paths = [str(path) for path in sorted(images.iterdir())[:2]]
    result = EncodeImages(artifact, column="path")({"path": np.array(paths), "error": known})
    np.testing.assert_array_equal(result["features"], encoder(paths))
    assert list(result["error"]) == [None, None]


@pytest.mark.parametrize(
    "options",
    [{"pool": "max"}, {"dtype": "int8"}, {"batch_size": 2.5}, {"batch_size": 0}, {"decoders": 1.5}, {"threads": 0}],
)
def test_options_that_make_no_sense(artifact: Path, options: dict[str, Any]) -> None:
    from fvexport.core.errors import ConfigError
    from fvexport.ray import EncodeImages

    with pytest.raises(ConfigError, match=next(iter(options))):
        EncodeImages(artifact, **options)


def test_batches_of_another_kind(artifact: Path) -> None:
    import pandas

    from fvexport.core.errors import ConfigError
    from fvexport.ray import EncodeImages

    with pytest.raises(ConfigError, match="found DataFrame"):
        EncodeImages(artifact, column="bytes")(pandas.DataFrame({"bytes": [b"x"]}))
