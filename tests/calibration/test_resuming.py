"""Runs that are stopped, whose cache is damaged or cannot be written, or that are not alone: no bit differs."""

from __future__ import annotations

import copy
import dataclasses
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fvexport.calibration import observe as observe_module
from fvexport.calibration.observe import observe
from fvexport.calibration.photos import CalibrationData
from fvexport.calibration.ranges_file import Stats
from fvexport.core.errors import ImageError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 4


@dataclasses.dataclass(frozen=True)
class Watched(CalibrationData):
    """Pictures that are counted, with something done before some of them."""

    shown: list[int] = dataclasses.field(default_factory=list)
    before: dict[int, Callable[[], object]] = dataclasses.field(default_factory=dict)

    def pixels(self, index: int, preprocessor: Preprocessor) -> Any:
        self.before.get(index, int)()
        self.shown.append(index)
        return super().pixels(index, preprocessor)


def watched(data: CalibrationData, **before: Callable[[], object]) -> Watched:
    """With `at<index>` called before a picture is read."""
    parts = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return Watched(**parts, before={int(name[2:]): call for name, call in before.items()})


def interrupt() -> None:
    raise KeyboardInterrupt


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# Runs that are stopped


def test_twice_is_the_same(run: Callable[..., Stats], whole: Stats, data: CalibrationData, same: Any) -> None:
    """Afresh in another cache, and out of the cache, without a picture being read."""
    assert same(run(), whole)
    again = watched(data)
    calls: list[tuple[str, int, int | None]] = []
    assert same(run(data=again, progress=lambda *call: calls.append(call)), whole)
    assert again.shown == []
    assert calls == [("calibrate", COUNT, COUNT)]


@pytest.mark.parametrize("at", range(COUNT))
def test_stopped_and_resumed(
    run: Callable[..., Stats], whole: Stats, data: CalibrationData, same: Any, at: int, fused_tiny: FastViTHD,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """To the last bit as if it had not been stopped, and no picture is shown twice."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    stopped = watched(data, **{f"at{at}": interrupt})
    with pytest.raises(KeyboardInterrupt):
        run(data=stopped)
    assert not hooks(fused_tiny)
    rest = watched(data)
    assert same(run(data=rest), whole)
    assert stopped.shown == list(range(at))
    assert rest.shown == list(range(at, COUNT))


def test_stopped_each_time(
    run: Callable[..., Stats], whole: Stats, data: CalibrationData, same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    for at in range(1, COUNT):
        with pytest.raises(KeyboardInterrupt):
            run(data=watched(data, **{f"at{at}": interrupt}))
    assert same(run(), whole)


def test_stopped_inside_a_picture(
    fused_tiny: FastViTHD, run: Callable[..., Stats], whole: Stats, data: CalibrationData, same: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What half a picture added is not kept."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    stopping = copy.deepcopy(fused_tiny)
    seen: list[int] = []

    def stop(*_: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    handle = stopping.stages[3].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model=stopping)
    handle.remove()
    assert not hooks(stopping)
    rest = watched(data)
    assert same(run(data=rest), whole)
    assert rest.shown == [2, 3]


def test_nothing_is_saved_all_the_time(
    run: Callable[..., Stats], data: CalibrationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[int] = []
    save = Stats.save
    monkeypatch.setattr(Stats, "save", lambda stats, file: (saves.append(stats.done), save(stats, file)))
    run()
    assert saves == [COUNT]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_picture_that_is_gone(
    run: Callable[..., Stats], data: CalibrationData, whole: Stats, fused_tiny: FastViTHD, tmp_path: Path, same: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is named; with the file back in its place the run goes on."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    copied = tmp_path / "moved.png"
    copied.write_bytes(data.pictures[2].path.read_bytes())
    pictures = list(data.pictures)
    pictures[2] = replace(pictures[2], path=copied)
    moved = replace(data, pictures=tuple(pictures))
    with pytest.raises(ImageError, match=r"moved\.png"):
        run(data=watched(moved, at1=lambda: copied.rename(tmp_path / "away.png")))
    assert not hooks(fused_tiny)
    (tmp_path / "away.png").rename(copied)
    rest = watched(moved)
    assert same(run(data=rest), whole)
    assert rest.shown == [2, 3]


# The cache


def test_names_are_those_of_this_run(run: Callable[..., Stats], seeded_tiny: Checkpoint, data: CalibrationData) -> None:
    """The same weights and pictures out of the cache, under other names."""
    run()
    stats = run(info=replace(seeded_tiny.info, source="elsewhere.pt"), data=replace(data, source="moved"))
    assert (stats.checkpoint_source, stats.source, stats.variant) == ("elsewhere.pt", "moved", "tiny")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_state_is_set_aside(
    run: Callable[..., Stats], whole: Stats, tmp_path: Path, same: Any, keep: int
) -> None:
    run()
    (file,) = (tmp_path / "cache").iterdir()
    rest = file.read_bytes()[:keep]
    file.write_bytes(rest)
    assert same(run(), whole)
    assert {f.name for f in file.parent.iterdir()} == {file.name, file.with_suffix(".damaged").name}
    assert file.with_suffix(".damaged").read_bytes() == rest
    assert same(Stats.load(file), whole)


def test_other_runs_are_left_alone(
    run: Callable[..., Stats], seeded_tiny: Checkpoint, data: CalibrationData, tmp_path: Path
) -> None:
    """Another framing, resolution, checkpoint or choice of pictures is another state."""
    run()
    (first,) = (tmp_path / "cache").iterdir()
    content = first.read_bytes()
    keys = {
        run(**changed).key.digest
        for changed in (
            {"preprocessor": Preprocessor(128, 128, PreprocessConfig("shortest"))},
            {"preprocessor": Preprocessor(64, 128)},
            {"info": replace(seeded_tiny.info, sha256="0" * 64)},
            {"data": replace(data, fingerprint="0" * 64)},
        )
    }
    assert len(keys - {first.stem}) == 4
    assert {file.stem for file in (tmp_path / "cache").iterdir()} == {first.stem, *keys}
    assert first.read_bytes() == content


def test_a_state_under_a_wrong_name(run: Callable[..., Stats], whole: Stats, tmp_path: Path, same: Any) -> None:
    run(preprocessor=Preprocessor(64, 64))
    (wrong,) = (tmp_path / "cache").iterdir()
    wrong.rename(wrong.with_name(f"{whole.key.digest}.safetensors"))
    assert same(run(), whole)


def test_a_cache_that_cannot_be_written(run: Callable[..., Stats], whole: Stats, tmp_path: Path, same: Any) -> None:
    """Costs the chance to go on later, not the calibration."""
    (tmp_path / "file").write_text("mine")
    assert same(run(cache=tmp_path / "file"), whole)
    assert same(run(cache=tmp_path / "file" / "below"), whole)


def test_a_full_disk(
    run: Callable[..., Stats], whole: Stats, tmp_path: Path, same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        stats = run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(stats, whole)
    assert not list((tmp_path / "cache").iterdir())


def test_two_at_once(
    fused_tiny: FastViTHD, run: Callable[..., Stats], whole: Stats, data: CalibrationData, tmp_path: Path, same: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One runs from beginning to end in the middle of another, in the same cache."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    inner: list[Stats] = []
    another = copy.deepcopy(fused_tiny)  # as another process has
    outer = run(data=watched(data, at2=lambda: inner.append(run(model=another))))
    assert same(outer, whole) and same(inner[0], whole)
    (file,) = (tmp_path / "cache").iterdir()
    assert same(Stats.load(file), whole)


def test_a_damaged_state_that_another_run_takes_away(
    run: Callable[..., Stats], whole: Stats, tmp_path: Path, same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"damaged")
    load = Stats.load

    def taken(path: Path) -> Stats:
        try:
            return load(path)
        finally:
            path.unlink()

    monkeypatch.setattr(Stats, "load", taken)
    assert same(run(), whole)


def test_the_users_cache_is_the_default(
    fused_tiny: FastViTHD,
    seeded_tiny: Checkpoint,
    data: CalibrationData,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stats = observe(fused_tiny, seeded_tiny.info, replace(data, pictures=data.pictures[:1]), Preprocessor(64, 64))
    assert (tmp_path / "fvexport" / "calibration" / f"{stats.key.digest}.safetensors").is_file()
