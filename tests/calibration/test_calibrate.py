"""`calibrate` and `load_ranges`: the pair of files, how it is replaced, and pairs that are broken."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fvexport.calibration import calibrate as calibrate_module
from fvexport.calibration.calibrate import CalibrationReport, calibrate, load_ranges, tensor_ranges, write_ranges
from fvexport.calibration.calibration_options import METHODS, CalibrationOptions
from fvexport.calibration.policy import QUANT_TARGETS, Policy
from fvexport.calibration.ranges import choose_range
from fvexport.calibration.ranges_file import Stats
from fvexport.core.errors import ArtifactError, ConfigError, ImageError
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.reparameterize import reparameterize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(variant="tiny")


@pytest.fixture(scope="module")
def folder(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs, small."""
    found = tmp_path_factory.mktemp("photos")
    for name in ("chelsea", "rocket"):
        Image.open(photographs[name]).resize((96, 80)).save(found / f"{name}.png")
    return found


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CalibrationReport:
    """Not to be changed."""
    place = tmp_path_factory.mktemp("made")
    options = CalibrationOptions(calib=folder, samples=3)
    return calibrate(checkpoint, place / "ranges.json", height=128, width=64, options=options, cache=place / "cache")


@pytest.fixture
def again(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> Any:
    """`calibrate` of one picture in a folder of the test's own."""

    def call(samples: int = 1, out: str = "ranges.json", **more: Any) -> CalibrationReport:
        options = CalibrationOptions(calib=folder, samples=samples, method="minmax")  # the quickest
        place = tmp_path / "out"
        place.mkdir(exist_ok=True)
        return calibrate(
            checkpoint, place / out, height=64, width=64, options=options, cache=tmp_path / "cache", **more
        )

    return call


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def side_of(path: Path) -> Path:
    return path.parent / json.loads(path.read_text())["statistics"]["file"]


# What is written


def test_the_pair(made: CalibrationReport, checkpoint: Checkpoint, folder: Path) -> None:
    content = json.loads(made.out.read_text(encoding="utf-8"))
    side = side_of(made.out)
    assert names(made.out.parent) == {"ranges.json", side.name, "cache"}
    assert content["statistics"]["sha256"] == hashlib.sha256(side.read_bytes()).hexdigest()
    assert content | made.record.to_dict() == content
    wanted = {
        "schema_version": 1, "checkpoint": checkpoint.info.sha256, "height": 128, "width": 64, "framing": "pad",
        "samples": 3, "source": str(folder), "variant": "tiny", "checkpoint_source": "seeded:0", "method": "weighted",
        "skipped": [],
    }  # fmt: skip
    assert {key: content[key] for key in wanted} == wanted
    assert content["amax"] == made.stats.amax
    assert content["notices"][0] == checkpoint.info.notice
    assert made.fp16_peak == max(made.stats.amax.items(), key=lambda item: item[1])


def test_ranges_cover_what_any_target_quantizes(made: CalibrationReport, checkpoint: Checkpoint) -> None:
    fused = reparameterize(checkpoint.encoder)
    policies = [Policy(target) for target in QUANT_TARGETS]
    layers = [name for name, _ in fused.named_modules()]
    taps = {f"{name}:in" for name in layers if any(policy.quantizes(name) for policy in policies)}
    taps |= {name for name in layers if any(policy.quantizes_output(name) for policy in policies)}
    assert {row.tap for row in made.ranges} == taps
    for row in made.ranges:
        histogram = made.stats.histograms[row.tap]
        assert (row.low, row.high) == (histogram.low.min().item(), histogram.high.max().item())
        assert min(0, row.low) <= row.chosen_low <= 0 <= row.chosen_high <= max(0, row.high)
        gelu = row.tap.endswith("fc1")
        chosen = choose_range(histogram.merged(), "weighted", symmetric=False, before_gelu=gelu)
        assert (row.chosen_low, row.chosen_high) == (chosen.low, chosen.high)
        assert (row.spread is None) == (len(histogram.low) == 1)
        assert row.spread is None or row.spread >= 1


@pytest.mark.parametrize("method", METHODS)
def test_methods(made: CalibrationReport, method: Any) -> None:
    rows = tensor_ranges(made.stats, method)
    clipped = sum(row.chosen_high < 0.999 * row.high or row.chosen_low > 0.999 * row.low for row in rows)
    assert clipped == 0 if method == "minmax" else clipped > 0


def test_load(made: CalibrationReport) -> None:
    """The statistics come back as they were used: an export of the run and of its file are the same."""
    stats = load_ranges(made.out)
    for field in ("key", "source", "done", "amax", "variant", "checkpoint_source"):
        assert getattr(stats, field) == getattr(made.stats, field)
    assert list(stats.histograms) == list(made.stats.histograms)
    for name, histogram in made.stats.histograms.items():
        assert torch.equal(stats.histograms[name].counts, histogram.counts)
    for name, moments in made.stats.moments.items():
        assert torch.equal(stats.moments[name].covariance, moments.covariance)
        assert torch.equal(stats.moments[name].mean, moments.mean)
    stats.check(made.checkpoint.sha256, 128, 64, "pad")


def test_again_is_the_same_to_the_byte(again: Any) -> None:
    """Afresh, and out of the cache."""
    first, second = again(samples=2).out, again(samples=2, out="second.json").out
    assert side_of(first).read_bytes() == side_of(second).read_bytes()
    texts = [file.read_text().replace(side_of(file).name, "") for file in (first, second)]
    assert texts[0] == texts[1]


def test_pictures_that_cannot_be_read(again: Any, checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in folder.iterdir():
        (photos / file.name).write_bytes(file.read_bytes())
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n")
    options = CalibrationOptions(calib=photos, samples=4, method="minmax")
    report = calibrate(
        checkpoint, tmp_path / "r.json", height=64, width=64, options=options, cache=tmp_path / "cache"
    )  # fmt: skip
    ((name, reason),) = report.skipped
    assert name.endswith("broken.png") and reason
    assert json.loads(report.out.read_text())["skipped"] == [{"image": name, "reason": reason}]
    assert any("skipped 1 file" in notice and "broken.png" in notice for notice in report.notices)
    assert report.stats.done == 4


# Replacing


def test_force_replaces_the_pair(again: Any) -> None:
    """Old statistics go with the file that named them; what others put there stays."""
    first = again()
    place, old = first.out.parent, side_of(first.out)
    (place / "ranges-0123456789ab.safetensors").write_text("mine")
    with pytest.raises(ArtifactError, match=r"ranges\.json exists; replace it with --force"):
        again(samples=2)
    assert load_ranges(first.out).done == 1
    report = again(samples=2, force=True)
    assert load_ranges(report.out).done == 2
    new = side_of(report.out)
    assert new != old
    assert names(place) == {"ranges.json", new.name, "ranges-0123456789ab.safetensors"}
    again(samples=2, force=True)
    assert names(place) == {"ranges.json", new.name, "ranges-0123456789ab.safetensors"}


@pytest.mark.parametrize("content", ["", "not JSON", "[1]", '{"statistics": {"file": "../photo.safetensors"}}'])
def test_force_over_another_file(again: Any, tmp_path: Path, content: str) -> None:
    """Nothing but what this command wrote is removed with it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ranges.json").write_text(content)
    (tmp_path / "photo.safetensors").write_text("mine")
    report = again(force=True)
    assert load_ranges(report.out).done == 1
    assert (tmp_path / "photo.safetensors").read_text() == "mine"


def test_a_full_disk_leaves_the_old_pair(again: Any, full_disk: AbstractContextManager[None]) -> None:
    first = again()
    before = {file: file.read_bytes() for file in first.out.parent.iterdir()}
    with full_disk, pytest.raises(ArtifactError, match=r"cannot write .*ranges\.json: .*--out"):
        again(samples=2, force=True)
    assert {file: file.read_bytes() for file in first.out.parent.iterdir()} == before
    assert load_ranges(first.out).done == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("stands", [False, True])
def test_stopped_between_the_two_files(
    again: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, stands: bool, tmp_path: Path
) -> None:
    """With the statistics written and the JSON not: nothing new is left, and an old pair works on."""
    if stands:
        again()
    place = tmp_path / "out"
    before = {file: file.read_bytes() for file in place.iterdir()} if stands else {}

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ArtifactError if isinstance(error, OSError) else KeyboardInterrupt):
        again(samples=2, force=True)
    assert {file: file.read_bytes() for file in place.iterdir()} == before


def test_the_same_statistics_may_stand_already(made: CalibrationReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not taken away where writing the JSON that names them once more fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(ArtifactError, match="the disk is full"):
            write_ranges(made)
    assert load_ranges(made.out).done == 3


# Places and inputs that are refused before any work


@pytest.mark.parametrize(
    ("out", "parts"),
    [
        ("ranges.txt", [".json", "ranges.txt"]),
        ("ranges", [".json"]),
        ("missing/ranges.json", ["missing is no folder", "--out"]),
        ("file/ranges.json", ["file is not a folder"]),
        ("folder.json", ["folder.json is a folder"]),
        ("caf\udce9.json", ["is not UTF-8", "--out"]),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_places(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, parts: list[str], force: bool
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    monkeypatch.setattr(calibrate_module, "observe", None)  # never gets there
    with pytest.raises((ArtifactError, ConfigError)) as caught:
        calibrate(checkpoint, tmp_path / out, height=64, width=64, force=force)
    assert all(part in str(caught.value) for part in parts)
    assert names(tmp_path) == {"file", "folder.json"}


def test_a_folder_that_cannot_be_written_to(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_module.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ArtifactError, match=r"no permission .*; choose another --out"):
        calibrate(checkpoint, tmp_path / "r.json", height=64, width=64)


def test_inputs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 64"):
        calibrate(checkpoint, tmp_path / "r.json", height=100, width=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in folder"):
        calibrate(
            checkpoint, tmp_path / "r.json", height=64, width=64, options=CalibrationOptions(calib=tmp_path / "empty")
        )
    assert names(tmp_path) == {"empty"}


# Pairs that are broken


@pytest.fixture
def copied(made: CalibrationReport, tmp_path: Path) -> Path:
    """A copy to damage."""
    for file in (made.out, side_of(made.out)):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / made.out.name


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_ranges(path)
    for part in (path.name, *parts, "fvexport calibrate"):
        assert part in str(caught.value)


def test_copies_load_anywhere(copied: Path) -> None:
    assert load_ranges(copied).done == 3


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.json", "no ranges at")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"{}", b'{"statistics": 1}', b'{"statistics": {"file": "a"}}',
     b'{"statistics": {"file": 1, "sha256": ""}}'],
)  # fmt: skip
def test_other_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    refused(tmp_path / "r.json", "is not what")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "r.json").mkdir()
    refused(tmp_path / "r.json", "is not what")


def test_statistics_gone(copied: Path) -> None:
    side_of(copied).unlink()
    refused(copied, "is gone", "copy both files")


def test_statistics_changed(copied: Path, made: CalibrationReport) -> None:
    """By a bit, and for those of another calibration."""
    side = side_of(copied)
    content = bytearray(side.read_bytes())
    content[-1] ^= 1
    side.write_bytes(content)
    refused(copied, "is not the file that", "was written with")
    other = Stats(made.stats.key, "other", 3)
    other.save(side)
    refused(copied, "is not the file that")


def test_statistics_that_may_not_be_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read anything
    with pytest.raises(ConfigError, match=r"safetensors cannot be read \(Permission denied\)"):
        load_ranges(copied)


def test_a_path_in_the_json_leads_nowhere_else(copied: Path) -> None:
    """The statistics are looked for beside the JSON, whatever it says."""
    content = json.loads(copied.read_text())
    content["statistics"]["file"] = "/etc/" + content["statistics"]["file"]
    copied.write_text(json.dumps(content))
    assert load_ranges(copied).done == 3
