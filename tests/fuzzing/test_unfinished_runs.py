"""What runs of `encode` leave for the next one, damaged: the request, the journal, rows and shards."""

from __future__ import annotations

import functools
import json
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from limits import fuzz, only_our_errors
from mutations import byte_files, json_files, json_lines_files, safetensors_files

from fvexport.export.features import FeatureForm, Request
from fvexport.export.features.encode import files
from fvexport.export.features.existing import finished
from fvexport.export.features.output import Output, open_output
from fvexport.export.features.working_folder import WorkingFolder

SOURCE = files([f"{index}.png" for index in range(6)])
FORM = FeatureForm(form="parquet", shard_rows=3)


def request(form: str = "parquet") -> Request:
    return Request(
        artifact_sha256="a", checkpoint_sha256="b", resolution="64x64", preprocessing={"do_pad": True}, backend="x",
        form=form, pool="none", dtype="float32", shard_rows=3 if form != "safetensors" else 0, tokens=2, channels=3,
        source_sha256=SOURCE.digest, images=6,
    )  # fmt: skip


def write(out: Path, asked: Request, stop: int = 6) -> None:
    """A run that ends after `stop` images, of which the second has no features."""
    working = WorkingFolder(out)
    with working.held(asked, force=False):
        output: Output = open_output(working, asked, SOURCE)
        for index in range(output.done, stop):
            value = np.full((0 if index == 1 else 1, 2, 3), index, np.float32)
            output.append([f"{index}.png"], value, ["bad" if index == 1 else None])
        if working_on := stop < 6:
            working.keep = True
        else:
            output.finish(force=False)
        output.close(flush=working_on)


@functools.cache
def left(form: str, stop: int) -> dict[str, bytes]:
    """The files that a run leaves or makes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "out", request(form), stop)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
        }


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "out"


def changed(folder: Path, form: str, stop: int, name: str, content: bytes) -> None:
    """Runs go on from files of which one was changed; an output that comes of it has every image once."""
    files_left = left(form, stop)
    assert name in files_left, sorted(files_left)
    out = put(folder, files_left | {name: content})
    with only_our_errors():
        if finished(out, request(form), SOURCE) is None:
            write(out, request(form))
    if form == "parquet" and out.is_dir() and stop < 6:
        import pyarrow.parquet as pq

        with suppress(Exception):  # a damaged shard is found when it is read
            assert len(pq.read_table(out)) == 6


def test_sound_files_are_continued(tmp_path: Path) -> None:
    for form in ("parquet", "npy", "safetensors"):
        out = put(tmp_path, left(form, 4))
        write(out, request(form))
        failures = finished(out, request(form), SOURCE)
        assert failures is not None and failures.count == 1
    assert "out/part-00001.parquet" in left("parquet", 6)


@fuzz(examples=40, content=json_files(json.loads(request().to_json())))
def test_requests(content: bytes, folder: Path) -> None:
    changed(folder, "parquet", 4, ".out.encoding/run.json", content)


@fuzz(examples=40, content=json_lines_files([["3.png"]]))
def test_journals(content: bytes, folder: Path) -> None:
    changed(folder, "parquet", 4, ".out.encoding/pending-00001.jsonl", content)


@fuzz(examples=20, content=byte_files(b"\0" * 24))
def test_rows(content: bytes, folder: Path) -> None:
    changed(folder, "parquet", 4, ".out.encoding/pending-00001.rows", content)


@fuzz(examples=40, content=byte_files(left("parquet", 4)[".out.encoding/result/part-00000.parquet"]))
def test_shards_of_an_unfinished_run(content: bytes, folder: Path) -> None:
    changed(folder, "parquet", 4, ".out.encoding/result/part-00000.parquet", content)


@fuzz(examples=40, content=byte_files(left("parquet", 6)["out/part-00001.parquet"]))
def test_shards_of_an_output(content: bytes, folder: Path) -> None:
    changed(folder, "parquet", 6, "out/part-00001.parquet", content)


@fuzz(examples=30, content=byte_files(left("npy", 6)["out/errors/errors_00000.parquet"]))
def test_errors_beside_arrays(content: bytes, folder: Path) -> None:
    changed(folder, "npy", 6, "out/errors/errors_00000.parquet", content)


@fuzz(examples=40, content=safetensors_files(left("safetensors", 6)["out"]))
def test_files_of_features(content: bytes, folder: Path) -> None:
    changed(folder, "safetensors", 6, "out", content)
