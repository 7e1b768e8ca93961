"""The file of one calibration: what comes back, whom it belongs to, and what happens where it cannot be written."""

from __future__ import annotations

import copy
import json
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fvexport.calibration import ranges_file as ranges_file_module
from fvexport.calibration.histograms import Histogram, Moments
from fvexport.calibration.ranges_file import METADATA, Key, Stats
from fvexport.core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = Key("c" * 64, 128, 64, "d" * 64, 3, 256)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(done: int = 3) -> Stats:
    """Statistics of a layer's input and output, as `observe` keeps them."""
    x = randn(768, 5) @ randn(5, 5, seed=1) * torch.tensor([1.0, 100.0, 1e-3, 0.0, 7.0]) + 2
    kept, whole, moments = Histogram.empty(5, 256), Histogram.empty(1, 2048), Moments.empty(5)
    for rows in x.split(256)[:done]:
        for histogram, seen in ((kept, rows), (whole, rows.reshape(-1, 1))):
            histogram.widen(seen.amin(0), seen.amax(0))
            histogram.add(seen)
        moments.add(rows)
    amax = {"b.fc1": 0.1 + 0.2, "b.fc1:in": float(x.abs().max())}  # a float with 17 digits
    return Stats(KEY, "photos", done, {"b.fc1:in": kept, "a.fc1": whole}, {"b.fc1:in": moments}, amax, "tiny", "w.pt")


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.fixture
def stats() -> Stats:
    return made()


def same(found: Stats, wanted: Stats) -> None:
    """Asserts that two are equal to the last bit."""
    for name in ("key", "source", "done", "amax", "variant", "checkpoint_source"):
        assert getattr(found, name) == getattr(wanted, name), name
    for kind in ("histograms", "moments", "amax"):
        assert list(getattr(found, kind)) == list(getattr(wanted, kind))
    for name, histogram in wanted.histograms.items():
        for part in ("low", "high", "limit", "counts"):
            assert torch.equal(getattr(found.histograms[name], part), getattr(histogram, part)), (name, part)
    for name, moments in wanted.moments.items():
        assert found.moments[name].rows == moments.rows
        assert torch.equal(found.moments[name].mean, moments.mean)
        assert torch.equal(found.moments[name].covariance, moments.covariance)


def test_round_trip(stats: Stats, tmp_path: Path) -> None:
    """Everything exact but the covariances, whose correlations are half-precision."""
    stats.save(tmp_path / "new" / "a.safetensors")
    assert names(tmp_path / "new") == ["a.safetensors"]
    found = Stats.load(tmp_path / "new" / "a.safetensors")
    before, after = (s.moments.pop("b.fc1:in") for s in (stats, found))
    same(found, stats)
    assert torch.equal(after.mean, before.mean) and after.rows == before.rows == 768
    wanted = before.covariance
    torch.testing.assert_close(after.covariance.diagonal(), wanted.diagonal(), rtol=1e-6, atol=0)
    scale = torch.outer(wanted.diagonal().sqrt(), wanted.diagonal().sqrt())
    assert ((after.covariance - wanted).abs() <= 2**-11 * scale * 1.001).all()


def test_settled_is_what_comes_back(stats: Stats, tmp_path: Path) -> None:
    """However often it is written and read: exports with the run itself and with its file are the same to the bit."""
    stats.settle()
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    stats.save(first)
    found = Stats.load(first)
    same(found, stats)
    found.save(second)
    assert first.read_bytes() == second.read_bytes()


def test_unfinished_is_kept_exactly(tmp_path: Path) -> None:
    """So that what is added later gives what it would have given without the stop."""
    stats, file = made(done=2), tmp_path / "a.safetensors"
    stats.save(file)
    found, more = Stats.load(file), randn(256, 5, seed=7)
    same(found, stats)
    for each in (found, stats):
        each.moments["b.fc1:in"].add(more)
        each.histograms["b.fc1:in"].add(more)
        each.done = 3
        each.settle()
    same(found, stats)


def test_counts_beyond_16_bits(stats: Stats, tmp_path: Path) -> None:
    """A rare bin beside one of a hundred million counts is not lost: it is where clipping hurts."""
    counts = stats.histograms["a.fc1"].counts
    counts.zero_()
    counts[0, 1024], counts[0, 2047], counts[0, 5] = 1e8, 1, 65536
    stats.histograms["b.fc1:in"].counts[2, 7] = 65535
    stats.save(tmp_path / "a.safetensors")
    found = Stats.load(tmp_path / "a.safetensors")
    assert torch.equal(found.histograms["a.fc1"].counts, counts)
    assert found.histograms["b.fc1:in"].counts[2, 7] == 65535


def test_channels_that_hardly_vary(stats: Stats, tmp_path: Path) -> None:
    """Constant ones, whose correlations are rounding over rounding, must not poison the rest."""
    x = randn(2048, 4) * 30
    x[:, 0], x[:, 1], x[:, 2] = 10000.1, 0, 1e-20 * x[:, 2]
    moments = Moments.empty(4)
    for rows in x.split(256):
        moments.add(rows)
    stats.moments["b.fc1:in"] = moments
    stats.save(tmp_path / "a.safetensors")
    found = Stats.load(tmp_path / "a.safetensors").moments["b.fc1:in"]
    assert torch.isfinite(found.covariance).all()
    torch.testing.assert_close(found.mean.double(), x.double().mean(0), rtol=1e-6, atol=1e-4)
    assert found.covariance[3, 3].item() == pytest.approx(x[:, 3].double().var(correction=0).item(), rel=1e-5)
    assert found.covariance[:3].abs().max() < 1e-2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(2, 40), st.floats(-12, 12), st.integers(0, 99))
def test_covariances_of_any_size(channels: int, rows: int, magnitude: float, seed: int) -> None:
    """Fewer rows than channels too: finite, symmetric, and unchanged by being packed again."""
    moments = Moments.empty(channels)
    moments.add(randn(rows, channels, seed=seed) * 10**magnitude)
    once = ranges_file_module._unpack(rows, ranges_file_module._pack(moments, exact=False))
    twice = ranges_file_module._unpack(rows, ranges_file_module._pack(once, exact=False))
    assert torch.equal(once.outer, twice.outer) and torch.equal(once.mean, twice.mean)
    assert torch.equal(once.outer, once.outer.T)
    wanted = moments.covariance
    bound = torch.outer(wanted.diagonal().clamp_min(0).sqrt(), wanted.diagonal().clamp_min(0).sqrt())
    assert ((once.covariance - wanted).abs() <= 1e-3 * bound + 1e-30).all()


# The key


@pytest.mark.parametrize("name", [field.name for field in fields(Key)])
def test_each_field_changes_the_digest(name: str) -> None:
    value = getattr(KEY, name)
    other = replace(KEY, **{name: value + 1 if isinstance(value, int) else value + "x"})
    assert other.digest != KEY.digest
    assert replace(KEY).digest == KEY.digest
    assert len(KEY.digest) == 32 and KEY.digest.isalnum()


def test_so_does_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = KEY.digest
    monkeypatch.setattr(ranges_file_module, "FORMAT", 2)
    assert KEY.digest != before


def test_check(stats: Stats) -> None:
    stats.check("c" * 64, 128, 64, "pad")
    for args, words in [
        (
            ("e" * 64, 128, 64, "pad"),
            ("another checkpoint", "w.pt", "cccccccccccc", "eeeeeeeeeeee", "fvexport calibrate"),
        ),
        (("c" * 64, 64, 128, "pad"), ("128x64", "64x128", "--res")),
        (("c" * 64, 128, 64, "squash"), ("prepared as pad", "as squash", "fvexport calibrate")),
    ]:
        with pytest.raises(ConfigError) as caught:
            stats.check(*args)
        assert all(word in str(caught.value) for word in words)
    stats.done = 2
    with pytest.raises(ConfigError, match="2 of 3 pictures"):
        stats.check("c" * 64, 128, 64, "pad")


# Files that are not what they should be


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.safetensors is gone.*fvexport calibrate"):
        Stats.load(tmp_path / "gone.safetensors")


def rewritten(file: Path, change: Any) -> Path:
    """The file after `change(about, tensors)`."""
    with safetensors.safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()[METADATA])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    change(about, tensors)
    save_file(tensors, file, metadata={METADATA: json.dumps(about)})
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda about, _: about.pop("key"),
        lambda about, _: about.update(key={"checkpoint": "c"}),
        lambda about, _: about.update(done="two"),
        lambda about, _: about.update(done=4),
        lambda about, _: about.update(rows=[]),
        lambda about, _: about.update(rows={"elsewhere:in": 4}),
        lambda _, tensors: tensors.pop("a.fc1/limit"),
        lambda _, tensors: tensors.update({"b.fc1:in/correlation": torch.zeros(3, dtype=torch.float16)}),
        lambda _, tensors: tensors.update({"b.fc1:in/mean": torch.zeros(10**6)}),  # whose square takes 4 TB
        lambda _, tensors: tensors.update({"b.fc1:in/low": torch.zeros(5, dtype=torch.complex64)}),
        lambda _, tensors: tensors.update({"b.fc1:in/low": torch.full((5,), torch.nan)}),
        lambda _, tensors: tensors.update({"b.fc1:in/low": torch.full((5,), 1e30)}),
        lambda _, tensors: tensors.update({"b.fc1:in/power": torch.full((5,), -1.0)}),
        lambda _, tensors: tensors.update({"a.fc1/counts": torch.zeros(1, 2047)}),
        lambda _, tensors: tensors.update({"a.fc1/limit": torch.zeros(0)}),
        lambda about, _: about["key"].update(samples="three"),
        lambda about, _: about["amax"].update(x=float("inf")),
        lambda about, _: about.update(histograms="a.fc1"),
    ],
)
def test_parts_that_do_not_fit(stats: Stats, tmp_path: Path, change: Any) -> None:
    stats.save(tmp_path / "a.safetensors")
    file = rewritten(tmp_path / "a.safetensors", change)
    with pytest.raises(ConfigError, match=r"a\.safetensors holds no calibration statistics .*fvexport calibrate"):
        Stats.load(file)


def test_another_version(stats: Stats, tmp_path: Path) -> None:
    stats.save(tmp_path / "a.safetensors")
    file = rewritten(tmp_path / "a.safetensors", lambda about, _: about.update(format=99, key={"new": 1}))
    with pytest.raises(ConfigError, match="another version of fvexport"):
        Stats.load(file)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_cut_short(stats: Stats, tmp_path: Path, kept: int) -> None:
    file = tmp_path / "a.safetensors"
    stats.save(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ConfigError, match="holds no calibration statistics"):
        Stats.load(file)


def test_other_files(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("model.safetensors", "folder.safetensors"):
        with pytest.raises(ConfigError, match="holds no calibration statistics"):
            Stats.load(tmp_path / name)


# Places that cannot be written


def test_a_full_disk_leaves_the_old_file(stats: Stats, tmp_path: Path, full_disk: AbstractContextManager[None]) -> None:
    file = tmp_path / "a.safetensors"
    stats.save(file)
    before = file.read_bytes()
    later = copy.deepcopy(stats)
    later.source = "other"
    with full_disk, pytest.raises(ConfigError, match=r"cannot write .*a\.safetensors"):
        later.save(file)
    assert file.read_bytes() == before
    assert names(tmp_path) == ["a.safetensors"]


def test_no_folder_can_be_made(stats: Stats, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "a.safetensors", tmp_path / "file" / "b" / "a.safetensors"):
        with pytest.raises(ConfigError, match="cannot write"):
            stats.save(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission(stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the operating system refuses it; root may write anywhere."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ConfigError, match=r"cannot write .*Permission denied"):
        stats.save(tmp_path / "a.safetensors")
    assert not names(tmp_path)


def test_an_interrupted_save_leaves_nothing(stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object, path: str, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(ranges_file_module, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stats.save(tmp_path / "a.safetensors")
    assert not names(tmp_path)


def test_two_runs_write_beside_each_other(stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two saves of one file, in one process, ends before the first: both end well."""
    file, real = tmp_path / "a.safetensors", ranges_file_module.save_file
    other = copy.deepcopy(stats)
    other.source = "the other's"

    def slow(tensors: Any, path: Path, **options: Any) -> None:
        monkeypatch.setattr(ranges_file_module, "save_file", real)
        other.save(file)
        assert Stats.load(file).source == "the other's"
        real(tensors, path, **options)

    monkeypatch.setattr(ranges_file_module, "save_file", slow)
    stats.save(file)
    assert Stats.load(file).source == "photos"
    assert names(tmp_path) == ["a.safetensors"]


def test_permissions_are_the_usual(stats: Stats, tmp_path: Path) -> None:
    """Colleagues can read the statistics wherever they can read `ranges.json`."""
    (tmp_path / "ranges.json").touch()
    stats.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "ranges.json").stat().st_mode
