"""`fvexport encode` on lists, tables, tar files and what else a user may name; its outputs and refusals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images in a folder of the current one."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for index in range(6):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def features(fvexport, artifact: Path, photos: Path) -> dict[str, np.ndarray]:
    """What each image's features are, by the command on the files themselves."""
    assert fvexport("encode", "photos", "--artifact", artifact, "--out", "plain.safetensors").code == 0
    return {Path(name).stem: value for name, value in load_file("plain.safetensors").items()}


def rows(out: str) -> dict[str, np.ndarray | None]:
    table = pq.read_table(out)
    shape = table.schema.field("features").type.shape
    found = [(row["id"], row["features"]) for row in table.to_pylist()]
    assert len(dict(found)) == len(found)
    return {name: None if value is None else np.reshape(np.float32(value), shape) for name, value in found}


def test_lists_and_stdin(fvexport, artifact: Path, photos: Path, features, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"photos/{index}.png" for index in (3, 1, 3, 5)]
    Path("list.txt").write_text("\r\n".join(names) + "\n")
    assert fvexport("encode", "@list.txt", "--artifact", artifact, "--out", "l.safetensors").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    assert fvexport("encode", "-", "--artifact", artifact, "--out", "s.parquet").code == 0
    for found in (load_file("l.safetensors"), rows("s.parquet")):
        assert found.keys() == {"photos/1.png", "photos/3.png", "photos/5.png"}
        assert all(np.array_equal(found[name], features[Path(name).stem]) for name in found)


def test_tables(fvexport, artifact: Path, photos: Path, features) -> None:
    """As Hugging Face stores images, with ids of a column and without."""
    images = [{"bytes": (photos / f"{index}.png").read_bytes(), "path": None} for index in range(6)]
    table = pa.table({"name": [f"id {index}" for index in range(6)], "image": [*images[:5], None]})
    pq.write_table(table, "t.parquet", row_group_size=2)
    ran = fvexport("encode", "t.parquet", "--artifact", artifact, "--out", "a.parquet", "--id-column", "name")
    assert ran.code == 1 and "id 5 has no image" in ran.err
    found = rows("a.parquet")
    assert list(found) == [f"id {index}" for index in range(6)] and found["id 5"] is None
    assert all(np.array_equal(found[f"id {index}"], features[str(index)]) for index in range(5))
    fvexport(
        "encode", "t.parquet", "--artifact", artifact, "--out", "b.parquet", "--pool", "mean", "--dtype", "float16"
    )
    found = rows("b.parquet")
    assert list(found) == [f"t.parquet#{index}" for index in range(6)]
    wanted = features["0"].mean(0, dtype=np.float64).astype(np.float16)
    np.testing.assert_array_equal(found["t.parquet#0"], wanted.astype(np.float32))
    fvexport("encode", "t.parquet", "--artifact", artifact, "--out", "c", "--image-column", "photo").one_line_error(
        "no column 'photo'", "name (string), image"
    )


def write_tar(path: str, photos: Path, indices: list[int]) -> None:
    with tarfile.open(path, "w") as tar:
        for index in indices:
            tar.add(photos / f"{index}.png", f"{index:03}.png")
            info = tarfile.TarInfo(f"{index:03}.json")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))


def test_tar_files_of_which_one_is_cut_off_and_one_cannot_be_read(fvexport, artifact: Path, photos, features) -> None:
    write_tar("shard-00.tar", photos, [0, 1])
    write_tar("shard-01.tar", photos, [2, 3])
    Path("shard-02.tar").write_bytes(b"\x01" * 2000)
    content = Path("shard-01.tar").read_bytes()
    Path("shard-01.tar").write_bytes(content[: content.index(b"003.png") + 600])
    ran = fvexport("encode", "shard-{00..02}.tar", "--artifact", artifact, "--out", "w.parquet", "--shard-rows", "2")
    assert ran.code == 1
    found = rows("w.parquet")
    assert {name for name, value in found.items() if value is not None} == {"000", "001", "002"}
    assert {name for name, value in found.items() if value is None} == {"shard-01.tar", "shard-02.tar"}
    assert all(np.array_equal(found[f"00{index}"], features[str(index)]) for index in range(3))
    assert "download it again" in ran.err and "2 of 5 images failed" in ran.err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["nothing.parquet"], ["nothing.parquet", "does not exist"]),
        (["t.txt"], ["t.txt"]),
        (["@gone.txt"], ["gone.txt", "@LIST"]),
        (["@empty.txt"], ["empty.txt", "names no image"]),
        (["photos", "t.parquet"], ["cannot be in one run"]),
        (["a.tar.gz"], ["compressed", "decompress it"]),
        (["photos", "--id-column", "name"], ["--id-column has no effect"]),
        (["numbers.parquet"], ["--image-column", "x"]),
        (["broken.parquet"], ["broken.parquet"]),
        (["photos", "--shard-rows", "0", "--format", "npy"], ["at least 1"]),
        (["photos", "--workers", "0"], ["--workers", "found 0"]),
        (["photos", "--shard-rows", "5"], ["--shard-rows", "no effect"]),
    ],
)
def test_refusals(fvexport, artifact: Path, photos: Path, args: list[str], parts: list[str]) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), "t.parquet")
    pq.write_table(pa.table({"x": [1]}), "numbers.parquet")
    Path("broken.parquet").write_bytes(Path("t.parquet").read_bytes()[:-5])
    for name in ("t.txt", "empty.txt", "a.tar.gz"):
        Path(name).write_text("\n")
    ran = fvexport("encode", *args, "--artifact", artifact, "--out", "out")
    assert ran.code == 1 and ran.out == "" and "Traceback" not in ran.err
    for part in parts:
        assert part in ran.err
    assert not Path("out").exists() and not list(Path().glob(".out*"))


def test_options_of_ray_without_ray(fvexport, artifact: Path, photos: Path) -> None:
    command = ("encode", "photos", "--artifact", artifact, "--out", "o")
    fvexport(*command, "--concurrency", 2).one_line_error("no effect without --engine ray", code=2)
    fvexport(*command, "--engine", "ray", "--workers", 2).one_line_error("no effect with --engine ray", code=2)
    fvexport(*command, "--engine", "ray", "--format", "npy").one_line_error("Parquet alone")


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_packages_that_are_missing(fvexport, artifact: Path, photos: Path, monkeypatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ("--format", "parquet") if package == "pyarrow" else ("--engine", "ray")
    extra = "data" if package == "pyarrow" else "ray"
    command = ("encode", "photos", "--artifact", artifact, "--out", "o")
    fvexport(*command, *words).one_line_error(f'pip install "fvexport[{extra}]"')
    assert not Path("o").exists() and not list(Path().glob(".o*"))


def test_many_failures_are_counted(fvexport, artifact: Path, tmp_path: Path) -> None:
    Path("list.txt").write_text("\n".join(f"gone/{index}.png" for index in range(80)))
    ran = fvexport("encode", "@list.txt", "--artifact", artifact, "--out", "o.parquet")
    assert ran.code == 1 and ran.err.count("no image at gone/") == 50
    assert "80 of 80 images failed (30 are not shown; column error has them)" in ran.err
    assert "o.parquet" in ran.out


@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_terminated_and_run_again(artifact: Path, photos: Path, features, tmp_path: Path) -> None:
    """The whole command: it keeps what it has, says so, and goes on."""
    names = [f"photos/{index % 6}.png" for index in range(3000)]
    for index, name in enumerate(names[6:], 6):
        os.link(name, f"photos/{index}.png")
    command = [
        sys.executable,
        "-m",
        "fvexport",
        "encode",
        "photos",
        "--artifact",
        str(artifact),
        "--out",
        "o.safetensors",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        journal = Path(".o.safetensors.encoding/pending.jsonl")
        for _ in range(3000):
            if journal.exists() and journal.stat().st_size:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert out == "" and err.splitlines() == [
        "note: what is encoded is kept; the same command goes on from there", "terminated"
    ]  # fmt: skip
    kept = len(journal.read_text().splitlines())
    assert 0 < kept < 3000 and not Path("o.safetensors").exists()
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert f'"resumed": {kept}' in again.stdout and '"encoded": 3000' in again.stdout
    found = load_file("o.safetensors")
    assert len(found) == 3000
    assert all(np.array_equal(value, features[str(int(Path(name).stem) % 6)]) for name, value in found.items())
    assert not Path(".o.safetensors.encoding").exists()
