"""What `encode` writes, opened by the libraries that people use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fvexport.core.errors import ArtifactError
from fvexport.export.features import FeatureForm, encode_images
from fvexport.export.features.table import METADATA_KEY


@pytest.fixture(scope="module")
def encoder(exported):
    from fvexport.export.runtime import Encoder

    return Encoder(exported(), "onnxruntime-cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(7):
        path = folder / f"naïve {index} 🐈.png"
        if index == 4:
            path.write_text("no image")
        else:
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", params=["float32", "float16"])
def tokens(request, encoder, images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "tokens"
    encode_images(images, encoder, out, form=FeatureForm(form="parquet", dtype=request.param, shard_rows=3))
    return out


@pytest.fixture(scope="module")
def wanted(encoder, images) -> list[np.ndarray | None]:
    """Features (N, C) float32 by one call of the encoder each; None for the image that cannot be read."""
    return [None if index == 4 else encoder(image)[0] for index, image in enumerate(images)]


def check(ids: list[str], features: list, errors: list, images: list[Path], wanted: list, dtype: type) -> None:
    """Compares rows in order with what the encoder gives, flattened."""
    assert ids == [path.as_posix() for path in images]
    assert [not isinstance(error, str) for error in errors] == [value is not None for value in wanted]
    for found, value in zip(features, wanted, strict=True):
        if value is None:
            assert found is None
        else:
            np.testing.assert_array_equal(np.asarray(found, dtype), value.astype(dtype).ravel())


def value_type(folder: Path) -> type:
    kind = pq.read_schema(folder / "part-00000.parquet").field("features").type.value_type
    return np.float16 if kind == pa.float16() else np.float32


def test_pyarrow(tokens: Path, images, wanted, encoder) -> None:
    table = pyarrow.dataset.dataset(tokens).to_table()
    kind = table.schema.field("features").type
    assert isinstance(kind, pa.FixedShapeTensorType) and kind.shape == list(encoder.shape)
    assert pq.read_metadata(tokens / "part-00000.parquet").num_rows == 3
    assert [path.name for path in sorted(tokens.iterdir())] == [f"part-0000{i}.parquet" for i in range(3)]
    rows = table.to_pylist()
    check(
        [row["id"] for row in rows], [row["features"] for row in rows], [row["error"] for row in rows], images, wanted,
        value_type(tokens),
    )  # fmt: skip
    first = table.column("features").chunk(0)  # as users get arrays
    np.testing.assert_array_equal(first.to_numpy_ndarray()[0], wanted[0].astype(value_type(tokens)))
    request = json.loads(table.schema.metadata[METADATA_KEY])
    manifest = encoder.artifact.manifest
    assert request["artifact_sha256"] == manifest.files["encoder.onnx"].sha256
    assert request["preprocessing"] == encoder.preprocessor.to_dict()
    assert (request["images"], request["shard_rows"], request["resolution"]) == (7, 3, "128x128")


def test_pandas(tokens: Path, images, wanted) -> None:
    import pandas

    frame = pandas.read_parquet(tokens)
    check(list(frame["id"]), list(frame["features"]), list(frame["error"]), images, wanted, value_type(tokens))


def test_polars(tokens: Path, images, wanted) -> None:
    import polars

    frame = polars.read_parquet(tokens)
    features = frame["features"].ext.storage() if hasattr(frame["features"], "ext") else frame["features"]
    check(frame["id"].to_list(), features.to_list(), frame["error"].to_list(), images, wanted, value_type(tokens))


def test_duckdb(tokens: Path, images, wanted) -> None:
    import duckdb

    rows = duckdb.sql(f"select id, features, error from '{tokens}/*.parquet' order by id").fetchall()
    check(
        [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], images, wanted, value_type(tokens)
    )


def test_hugging_face_datasets(tokens: Path, images, wanted, encoder, tmp_path: Path) -> None:
    """It knows no tensors of Arrow, and is told that they are lists."""
    from datasets import Features, List, Value, load_dataset

    count, channels = encoder.shape
    dtype = np.dtype(value_type(tokens)).name
    columns = Features(id=Value("string"), features=List(Value(dtype), length=count * channels), error=Value("string"))
    found = load_dataset("parquet", data_files=f"{tokens}/*.parquet", features=columns, cache_dir=str(tmp_path))[
        "train"
    ]
    check(list(found["id"]), list(found["features"]), list(found["error"]), images, wanted, value_type(tokens))


def test_pooled_features_are_the_mean_of_the_tokens(encoder, images, wanted, tmp_path: Path) -> None:
    encode_images(images, encoder, tmp_path / "pooled", form=FeatureForm(form="parquet", pool="mean"))
    table = pq.read_table(tmp_path / "pooled")
    assert table.schema.field("features").type.shape == [encoder.shape[1]]
    for row, value in zip(table.to_pylist(), wanted, strict=True):
        assert (row["features"] is None) == (value is None)
        if value is not None:
            np.testing.assert_allclose(row["features"], value.astype(np.float64).mean(0), rtol=1e-6)


def test_arrays_as_clip_retrieval_reads_them(encoder, images, wanted, tmp_path: Path) -> None:
    """`img_emb_*.npy` and `metadata_*.parquet` sort alike and have as many rows; each array has two axes."""
    out = tmp_path / "npy"
    encode_images(images, encoder, out, form=FeatureForm(form="npy", pool="mean", dtype="float16", shard_rows=3))
    arrays, tables = sorted((out / "img_emb").iterdir()), sorted((out / "metadata").iterdir())
    assert [path.name for path in arrays] == [f"img_emb_0000{i}.npy" for i in range(3)]
    assert [path.name for path in tables] == [f"metadata_0000{i}.parquet" for i in range(3)]
    names = [name for path in tables for name in pq.read_table(path).column("image_path").to_pylist()]
    good = [index for index, value in enumerate(wanted) if value is not None]
    assert names == [images[index].as_posix() for index in good]
    loaded = [np.load(path) for path in arrays]
    assert [len(one) for one in loaded] == [pq.read_metadata(path).num_rows for path in tables]
    for found, index in zip(np.concatenate(loaded), good, strict=True):
        np.testing.assert_array_equal(found, wanted[index].mean(0, dtype=np.float64).astype(np.float16))
    errors = [row for path in sorted((out / "errors").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in errors] == [images[4].as_posix()] and "holds text" in errors[0]["error"]


def test_features_beyond_float16_are_failures(encoder, images, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "run", lambda pixels: np.full((len(pixels), *encoder.shape), 1e5, np.float32))
    report = encode_images(
        images[:2], encoder, tmp_path / "out", form=FeatureForm(form="parquet", dtype="float16"), batch_size=2
    )
    assert report.failed_count == 2 and "use --dtype float32" in report.failed[0][1]
    assert pq.read_table(tmp_path / "out").column("features").null_count == 2
    assert encode_images(images[:2], encoder, tmp_path / "more", form=FeatureForm(form="parquet")).failed_count == 0


@pytest.mark.parametrize("form", ["parquet", "npy"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "gone"])
def test_a_damaged_dataset_is_not_taken_for_a_finished_one(
    encoder, images, tmp_path: Path, form, damage: str
) -> None:  # fmt: skip
    out, asked = tmp_path / "out", FeatureForm(form=form, shard_rows=2)
    encode_images(images, encoder, out, form=asked)
    path = out / ("part-00001.parquet" if form == "parquet" else "errors/errors_00001.parquet")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "foreign":
        pq.write_table(pa.table({"id": ["a", "b"], "error": ["x", "y"]}), path)
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match="--force"):
        encode_images(images, encoder, out, form=asked)


def test_many_failures_are_counted_and_the_first_are_listed(encoder, tmp_path: Path, monkeypatch) -> None:
    for module in ("existing", "output"):
        monkeypatch.setattr(f"fvexport.export.features.{module}.MAX_LISTED", 3)
    missing = [tmp_path / f"{index}.png" for index in range(10)]
    out = tmp_path / "out"
    for _ in range(2):  # the second run reads them from the files
        report = encode_images(missing, encoder, out, form=FeatureForm(form="parquet", shard_rows=2))
        assert (report.encoded, report.failed_count) == (0, 10)
        assert [name for name, _ in report.failed] == [path.as_posix() for path in missing[:3]]


@pytest.mark.parametrize("form", ["safetensors", "npy"])
def test_an_output_that_is_cut_off_is_not_taken_for_a_finished_one(encoder, images, tmp_path: Path, form) -> None:
    out, asked = tmp_path / "out", FeatureForm(form=form, shard_rows=None if form == "safetensors" else 3)
    encode_images(images, encoder, out, form=asked)
    path = out if form == "safetensors" else out / "img_emb" / "img_emb_00001.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="--force"):
        encode_images(images, encoder, out, form=asked)
    assert encode_images(images, encoder, out, form=asked, force=True).resumed == 0
