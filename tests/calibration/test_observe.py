"""What is observed against plain hooks, and runs that are stopped, damaged, refused a disk, or not alone."""

from __future__ import annotations

import copy
import dataclasses
import math
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration import observe as observe_module
from fvexport.calibration.data import CalibrationData, calibration_data
from fvexport.calibration.fp16 import plan_fp16
from fvexport.calibration.observe import cache_folder, observe, observe_peaks
from fvexport.calibration.policy import QUANT_TARGETS, Policy
from fvexport.calibration.stats import Stats
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.fastvithd import Attention, FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize
from fvexport.errors import ConfigError, ImageError

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = Preprocessor(128, 128)
COUNT = 4


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(variant="tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> FastViTHD:
    return reparameterize(checkpoint.encoder)


@pytest.fixture(scope="module")
def data(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> CalibrationData:
    listed = tmp_path_factory.mktemp("calibration") / "list.txt"
    listed.write_text("\n".join(str(photographs[name]) for name in ("camera", "chelsea", "coins", "rocket")))
    return calibration_data(listed, COUNT)


@pytest.fixture
def run(model: FastViTHD, checkpoint: Checkpoint, data: CalibrationData, tmp_path: Path) -> Callable[..., Stats]:
    """`observe` with its cache in a folder of the test's own."""

    def call(**changed: Any) -> Stats:
        given: dict[str, Any] = {
            "model": model, "info": checkpoint.info, "data": data, "preprocessor": FRAME, "cache": tmp_path / "cache",
        }  # fmt: skip
        return observe(**(given | changed))

    return call


@pytest.fixture(scope="module")
def whole(
    model: FastViTHD, checkpoint: Checkpoint, data: CalibrationData, tmp_path_factory: pytest.TempPathFactory
) -> Stats:
    """Of a run that nothing disturbed; not to be changed."""
    return observe(model, checkpoint.info, data, FRAME, cache=tmp_path_factory.mktemp("whole"))


@pytest.fixture
def same(tmp_path: Path) -> Callable[[Stats, Stats], bool]:
    """Whether two are equal to the last bit, names apart."""

    def call(*both: Stats) -> bool:
        files = [tmp_path / f"compared.{number}" for number in range(2)]
        for stats, file in zip(both, files, strict=True):
            replace(stats, source="", checkpoint_source="").save(file)
        return files[0].read_bytes() == files[1].read_bytes()

    return call


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


# What is seen


def plain(model: FastViTHD, data: CalibrationData) -> dict[str, list[Tensor]]:
    """Every module's inputs and outputs as PyTorch's own hooks hand them over, and all attention scores."""
    seen: dict[str, list[Tensor]] = {}
    model = copy.deepcopy(model)

    def keep(name: str, x: Tensor) -> None:
        seen.setdefault(name, []).append(x.clone())

    def scores(name: str, attention: Attention, qkv: Tensor) -> None:
        heads = qkv.shape[-1] // 3 // attention.head_dim
        q, k, _ = qkv.view(1, -1, 3, heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        keep(f"{name}:scores", q @ k.transpose(-1, -2))

    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, args, y, name=name: (keep(f"{name}:in", args[0]), keep(name, y), None)[2]
        )
        if isinstance(module, Attention):
            module.qkv.register_forward_hook(lambda _m, _a, y, name=name, at=module: scores(name, at, y))
    with torch.inference_mode():
        for index in range(len(data)):
            model(torch.from_numpy(data.pixels(index, FRAME))[None].float() / 255)
    return seen


def test_extremes_are_those_of_plain_hooks(model: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    seen = plain(model, data)
    assert len(whole.amax) > 80
    for tap, value in whole.amax.items():
        assert value == pytest.approx(max(float(x.abs().max()) for x in seen[tap]), rel=1e-6), tap
    for tap, histogram in whole.histograms.items():
        axes = (0, 2, 3) if seen[tap][0].ndim == 4 else (0, 1)
        if len(histogram.low) == 1:
            axes = tuple(range(seen[tap][0].ndim))
        low, high = (torch.stack([f(x, axes) for x in seen[tap]]) for f in (torch.amin, torch.amax))
        assert torch.equal(histogram.low, low.amin(0).view(-1)) and torch.equal(histogram.high, high.amax(0).view(-1))


def test_samples_where_all_positions_are_taken(model: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    """128 x 128 pixels have fewer positions than are sampled: means and covariances are those of all values."""
    seen = plain(model, data)
    assert whole.key.rows == 4096
    for tap, moments in whole.moments.items():
        x = torch.cat([y.flatten(2).transpose(1, 2) if y.ndim == 4 else y for y in seen[tap]], 1)[0].double().numpy()
        assert moments.rows == len(x)
        np.testing.assert_allclose(moments.mean.double(), x.mean(0), rtol=1e-4, atol=1e-6)
        wanted = np.cov(x.T, bias=True)
        scale = np.sqrt(np.outer(wanted.diagonal(), wanted.diagonal()))
        assert (np.abs(moments.covariance.double().numpy() - wanted) <= 1e-3 * scale + 1e-12).all()
        assert whole.histograms[tap].counts.sum().item() == x.size


def test_fewer_positions_are_sampled(run: Callable[..., Stats], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of each picture, each of them once."""
    monkeypatch.setattr(observe_module, "ROWS_IN_ALL", 0)
    stats = run()
    assert stats.key.rows == 256
    for tap, moments in stats.moments.items():
        assert 0 < moments.rows <= COUNT * 256, tap
        assert stats.histograms[tap].counts.sum() == moments.rows * len(moments.mean)
    assert stats.moments["stages.0.blocks.0.mlp.fc1:in"].rows == COUNT * 256


def test_fp16_finds_every_tap(model: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    assert not plan_fp16(model, whole.amax).needed
    assert not plan_fp16(model, observe_peaks(model, data, FRAME)).needed


@pytest.mark.parametrize("target", QUANT_TARGETS)
def test_quantization_finds_every_tap(model: FastViTHD, whole: Stats, target: str) -> None:
    policy = Policy(target)
    for name, module in model.named_modules():
        if policy.quantizes(name):
            width = module.weight.shape[1]
            assert whole.moments[f"{name}:in"].mean.shape == (width,)
            channels = 1 if name.endswith("fc2") else width
            assert whole.histograms[f"{name}:in"].counts.shape[0] == channels
        if policy.quantizes_output(name):
            channels = 1 if name.endswith("fc1") else module.weight.shape[0]
            assert whole.histograms[name].counts.shape[0] == channels


def test_peaks_alone(model: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    """The same values, of fewer taps, in the order of running."""
    calls: list[tuple[str, int, int | None]] = []
    peaks = observe_peaks(model, data, FRAME, progress=lambda *call: calls.append(call))
    assert peaks.items() <= whole.amax.items()
    assert calls == [("calibrate", done, COUNT) for done in range(COUNT + 1)]
    assert not hooks(model)


def test_uint8_pixels(checkpoint: Checkpoint, data: CalibrationData, whole: Stats, run: Callable[..., Stats]) -> None:
    """A model that takes levels sees the same activations, and shares the cache."""
    fused = reparameterize(checkpoint.encoder, uint8_input=True)
    stats = run(model=fused)
    assert stats.key == whole.key
    for found in (stats.amax, observe_peaks(fused, data, FRAME)):
        for tap, value in found.items():
            assert value == pytest.approx(whole.amax[tap], rel=1e-3)


def test_only_the_fused_form(checkpoint: Checkpoint, run: Callable[..., Stats]) -> None:
    with pytest.raises(ConfigError, match=r"needs the fused form; call reparameterize"):
        run(model=checkpoint.encoder)


def test_memory_does_not_grow(model: FastViTHD, data: CalibrationData, whole: Stats, run: Callable[..., Stats]) -> None:
    def held(stats: Stats) -> int:
        tensors = [
            t for kept in (stats.histograms, stats.moments) for part in kept.values() for t in vars(part).values()
        ]
        return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))

    one = run(data=replace(data, pictures=data.pictures[:1], fingerprint="one"))
    assert held(one) == held(whole) > 1e5


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["stem.1.reparam_conv", "stages.1.blocks.0.mlp.fc1", "stages.3.blocks.0.token_mixer.qkv"]
)
def test_damaged_weights(
    model: FastViTHD, data: CalibrationData, run: Callable[..., Stats], tmp_path: Path, name: str, value: float
) -> None:
    """The first module whose output is not finite is named, nothing is kept, and no hook stays."""
    broken = copy.deepcopy(model)
    broken.get_submodule(name).bias.data[0] = value
    for call in (lambda: run(model=broken), lambda: observe_peaks(broken, data, FRAME)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert f"infinite or undefined at {name}:" in str(caught.value)
        assert "checkpoint is damaged" in str(caught.value)
        assert not hooks(broken)
    assert not (tmp_path / "cache").exists()


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
    run: Callable[..., Stats], whole: Stats, data: CalibrationData, same: Any, at: int, model: FastViTHD,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """To the last bit as if it had not been stopped, and no picture is shown twice."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    stopped = watched(data, **{f"at{at}": interrupt})
    with pytest.raises(KeyboardInterrupt):
        run(data=stopped)
    assert not hooks(model)
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
    model: FastViTHD, run: Callable[..., Stats], whole: Stats, data: CalibrationData, same: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What half a picture added is not kept."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    stopping = copy.deepcopy(model)
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
    run: Callable[..., Stats], data: CalibrationData, whole: Stats, model: FastViTHD, tmp_path: Path, same: Any,
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
    assert not hooks(model)
    (tmp_path / "away.png").rename(copied)
    rest = watched(moved)
    assert same(run(data=rest), whole)
    assert rest.shown == [2, 3]


# The cache


def test_names_are_those_of_this_run(run: Callable[..., Stats], checkpoint: Checkpoint, data: CalibrationData) -> None:
    """The same weights and pictures out of the cache, under other names."""
    run()
    stats = run(info=replace(checkpoint.info, source="elsewhere.pt"), data=replace(data, source="moved"))
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
    run: Callable[..., Stats], checkpoint: Checkpoint, data: CalibrationData, tmp_path: Path
) -> None:
    """Another framing, resolution, checkpoint or choice of pictures is another state."""
    run()
    (first,) = (tmp_path / "cache").iterdir()
    content = first.read_bytes()
    keys = {
        run(**changed).key.digest
        for changed in (
            {"preprocessor": Preprocessor(128, 128, "crop")},
            {"preprocessor": Preprocessor(64, 128)},
            {"info": replace(checkpoint.info, sha256="0" * 64)},
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
    model: FastViTHD, run: Callable[..., Stats], whole: Stats, data: CalibrationData, tmp_path: Path, same: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One runs from beginning to end in the middle of another, in the same cache."""
    monkeypatch.setattr(observe_module, "SAVE_SECONDS", -1.0)
    inner: list[Stats] = []
    another = copy.deepcopy(model)  # as another process has
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


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "fvexport" / "calibration"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fvexport" / "calibration"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)  # as for a container's user without an entry
    assert cache_folder().parts[-2:] == ("fvexport", "calibration")


def test_the_users_cache_is_the_default(
    model: FastViTHD, checkpoint: Checkpoint, data: CalibrationData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stats = observe(model, checkpoint.info, replace(data, pictures=data.pictures[:1]), Preprocessor(64, 64))
    assert (tmp_path / "fvexport" / "calibration" / f"{stats.key.digest}.safetensors").is_file()
