"""Many images -> one safetensors file: header reservation, failures, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fvexport.core.errors import ArtifactError, ConfigError
from fvexport.export.features.request import read_request


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes two images at a time, so that most calls have to be filled up."""
    from fvexport.export.export_options import ExportOptions
    from fvexport.export.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("features") / "tiny"
    export_onnx(None, folder, options=ExportOptions(height=128, width=64, batch=2), variant="tiny", parity=False)
    return folder


@pytest.fixture(scope="module")
def encoder(artifact: Path):
    from fvexport.export.runtime import Encoder

    return Encoder(artifact, "onnxruntime-cpu")


def make_image(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def header_is_sound(path: Path) -> bool:
    """What the format asks for beside what its reader checks."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return length % 8 == 0 and content[8:9] == b"{"


def test_features_and_metadata(tmp_path: Path, artifact: Path, encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from fvexport import __version__
    from fvexport.export.features import encode_images

    monkeypatch.chdir(tmp_path)
    images = [make_image(Path(f"{i}.png"), i) for i in range(5)]
    told: list[tuple[str, int, int | None]] = []
    report = encode_images(
        [*images, images[0]], encoder, Path("new/f.safetensors"), progress=lambda *state: told.append(state)
    )
    assert (report.encoded, report.failed, report.shape) == (5, [], (2, 256))
    assert report.backend == "onnxruntime-cpu"
    assert told[0] == ("encode", 0, 5) and told[-1] == ("encode", 5, 5)
    with safe_open("new/f.safetensors", "np") as file:
        assert sorted(file.keys()) == [f"{i}.png" for i in range(5)]
        for image in images:
            features = file.get_tensor(str(image))
            assert features.dtype == np.float32 and features.shape == (2, 256)
            np.testing.assert_allclose(features, encoder(image)[0], rtol=1e-5, atol=1e-5)
        metadata = file.metadata()
    manifest = encoder.artifact.manifest
    request = read_request(metadata.pop("request"))
    assert (request.images, request.tokens, request.channels, request.form) == (5, 2, 256, "safetensors")
    assert metadata == {
        "artifact_sha256": manifest.files["encoder.onnx"].sha256,
        "checkpoint_sha256": manifest.checkpoint.sha256,
        "resolution": "128x64",
        "backend": "onnxruntime-cpu",
        "fvexport": __version__,
    }
    assert header_is_sound(Path("new/f.safetensors"))
    assert [file.name for file in Path("new").iterdir()] == ["f.safetensors"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_failures_anywhere_in_a_batch(tmp_path: Path, encoder, batch_size: int) -> None:
    from fvexport.export.features import encode_images

    good = [make_image(tmp_path / f"{i}.png", i) for i in range(4)]
    (tmp_path / "bad.jpg").write_text("not an image")
    bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.png"
    out = tmp_path / "f.safetensors"
    report = encode_images([bad, *good[:3], missing, good[3], bad], encoder, out, batch_size=batch_size)
    assert report.encoded == 4
    assert [name for name, _ in report.failed] == [bad.as_posix(), missing.as_posix()]
    assert "holds text" in report.failed[0][1]
    with safe_open(out, "np") as file:
        for image in good:
            np.testing.assert_allclose(file.get_tensor(image.as_posix()), encoder(image)[0], rtol=1e-5, atol=1e-5)


def test_names_of_any_kind_fit_the_reserved_header(tmp_path: Path, encoder, monkeypatch) -> None:
    from fvexport.export.features import encode_images

    monkeypatch.chdir(tmp_path)
    names = ["naïve 写真 🐈.png", 'quo"te\\back.png', "new\nline\t.png", "n" * 240 + ".png", "/".join(["d" * 200] * 8)]
    good = [make_image(Path(name if name.endswith(".png") else name + ".png")) for name in names]
    missing = [Path("🐈" * 60 + f"{i}.png") for i in range(300)]
    report = encode_images([*missing, *good], encoder, Path("f.safetensors"))
    assert report.encoded == len(good) and len(report.failed) == len(missing)
    with safe_open("f.safetensors", "np") as file:
        assert set(file.keys()) == {path.as_posix() for path in good}
    assert header_is_sound(Path("f.safetensors"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf8(tmp_path: Path, encoder, monkeypatch) -> None:
    from fvexport.export.features import encode_images

    monkeypatch.chdir(tmp_path)
    image = make_image(Path(os.fsdecode(b"caf\xe9.png")))
    report = encode_images([image], encoder, Path("f.safetensors"))
    assert report.encoded == 1
    with safe_open("f.safetensors", "np") as file:
        assert list(file.keys()) == ["caf\\udce9.png"]


def test_nothing_is_written_where_all_are_bad(tmp_path: Path, encoder) -> None:
    from fvexport.export.features import encode_images

    old = tmp_path / "old.safetensors"
    old.write_text("old")
    for out in (tmp_path / "new" / "f.safetensors", old):
        report = encode_images([tmp_path / "a.png", tmp_path / "b.png"], encoder, out, force=True)
        assert report.encoded == 0 and len(report.failed) == 2
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_infinite_features_are_a_failure(tmp_path: Path, encoder, monkeypatch) -> None:
    from fvexport.export.features import encode_images

    monkeypatch.setattr(encoder, "run", lambda pixels: np.full((len(pixels), 2, 256), np.inf, np.float32))
    report = encode_images([make_image(tmp_path / "a.png")], encoder, tmp_path / "f.safetensors")
    assert report.encoded == 0 and "infinite" in report.failed[0][1]


def test_refusals_before_any_work(tmp_path: Path, encoder, monkeypatch) -> None:
    from fvexport.export.features import encode_images

    image = make_image(tmp_path / "a.png")
    out = tmp_path / "f.safetensors"
    monkeypatch.setattr(encoder, "run", lambda _pixels: pytest.fail("worked"))
    with pytest.raises(ConfigError, match="no images"):
        encode_images([], encoder, out)
    with pytest.raises(ConfigError, match="at least 1"):
        encode_images([image], encoder, out, batch_size=0)
    with pytest.raises(ArtifactError, match="one of the images"):
        encode_images([image], encoder, image, force=True)
    with pytest.raises(ArtifactError, match="is a folder"):
        encode_images([image], encoder, tmp_path, force=True)
    with pytest.raises(ArtifactError, match="not a folder"):
        encode_images([image], encoder, image / "f.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr("fvexport.export.features.safetensors_file.MAX_HEADER_BYTES", 100)
        with pytest.raises(ConfigError, match="--format parquet"):
            encode_images([image], encoder, out)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(ArtifactError, match="free some space"):
            encode_images([image], encoder, out)
    out.write_text("old")
    with pytest.raises(ArtifactError, match="--force"):
        encode_images([image], encoder, out)
    assert out.read_text() == "old" and image.stat().st_size > 100
    assert sorted(tmp_path.iterdir()) == [image, out]


@pytest.mark.parametrize("moment", ["fsync", "fdatasync", "mkdir"])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, encoder, monkeypatch, moment: str) -> None:
    """And the next run goes on where this one ended."""
    from fvexport.export.features import encode_images

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    image, out = make_image(tmp_path / "a.png"), tmp_path / "f.safetensors"
    out.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(Path if moment == "mkdir" else os, moment, full)
        with pytest.raises(ArtifactError, match="the disk is full"):
            encode_images([image], encoder, out, force=True)
    assert out.read_text() == "old"
    left = [] if moment == "mkdir" else [tmp_path / ".f.safetensors.encoding"]
    assert sorted(tmp_path.iterdir()) == sorted([*left, image, out])
    report = encode_images([image], encoder, out, force=True)
    assert (report.encoded, report.resumed) == (1, 1 if moment == "fsync" else 0)
    assert sorted(tmp_path.iterdir()) == [image, out]


KILLED = """
import os, signal, sys
from pathlib import Path
from fvexport.export.features import encode_images
from fvexport.export.runtime import Encoder

def progress(task, done, total):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

images = sorted(Path(sys.argv[2]).glob("*.png"))
encode_images(images, Encoder(sys.argv[1]), Path(sys.argv[3]), force=True, batch_size=1, progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_killed_half_way(tmp_path: Path, artifact: Path, encoder) -> None:
    from fvexport.export.features import encode_images

    for index in range(8):
        make_image(tmp_path / "images" / f"{index}.png", index)
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "f [1].safetensors"
    out.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, artifact, tmp_path / "images", out], cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL
    assert out.read_text() == "old"
    assert len(list(folder.iterdir())) == 2
    encode_images(sorted((tmp_path / "images").iterdir()), encoder, out, force=True)
    assert list(folder.iterdir()) == [out]
    with safe_open(out, "np") as file:
        assert len(list(file.keys())) == 8


def test_two_runs_at_once(tmp_path: Path, encoder) -> None:
    """The second is refused, and the first is not disturbed."""
    from fvexport.export.features import encode_images

    images = [make_image(tmp_path / f"{i}.png", i) for i in range(6)]
    out = tmp_path / "f.safetensors"
    refused = []

    def meanwhile(_task: str, done: int, _total: int | None) -> None:
        if done == 4:
            with pytest.raises(ArtifactError, match="another run writes") as caught:
                encode_images(images, encoder, out, force=True)
            refused.append(caught)

    report = encode_images(images, encoder, out, force=True, progress=meanwhile)
    assert len(refused) == 1
    assert report.encoded == 6
    with safe_open(out, "np") as file:
        assert len(file.keys()) == 6
    assert not list(tmp_path.glob(".f.safetensors*"))
