"""`export_trt`: the artifact that it writes, what it reuses, and that nothing is lost where it fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.core.errors import ArtifactError, ConfigError, ExportError, FvexportError, UnavailableError
from fvexport.core.hashing import file_sha256
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.export import engine_export as module
from fvexport.export.artifact import Artifact
from fvexport.export.engine_export import export_trt
from fvexport.export.engines.api import Api
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.engine_section import Gpu
from fvexport.export.export_options import ExportOptions

SMALL = ExportOptions(height=64, width=64, precision="fp16")
FILES = ["encoder.layers.json", "encoder.onnx", "encoder.onnx.data", "encoder.plan", "manifest.json"]


@pytest.fixture
def copied(onnx_artifact: Callable[..., Artifact], tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_artifact().path, tmp_path / "artifact"))


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def content(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in folder.iterdir()}


def test_an_artifact_gains_its_engine(rtx: Api, copied: Path) -> None:
    before = content(copied)
    report = export_trt(artifact=copied, parity=False)
    assert report.reused and report.artifact.path == copied and listing(copied) == FILES
    after = content(copied)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }
    manifest = Artifact.open(copied, verify=True).manifest
    engine = manifest.engine
    assert engine is not None
    assert (engine.flavour, engine.version, engine.gpu) == ("tensorrt-rtx", rtx.version, None)
    assert engine.profile == Profile(batch=(1, 1, 1), height=(128,) * 3, width=(128,) * 3)
    assert engine.memory["plan"] == manifest.files["encoder.plan"].bytes
    assert engine.layers.layers == len(json.loads((copied / "encoder.layers.json").read_text()))
    assert engine.capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1") and "8.9, 12.0" in engine.bound_to
    assert any("was not run, for want of an NVIDIA GPU" in notice for notice in report.notices)


def test_elsewhere_the_source_stays(rtx: Api, onnx_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    source = onnx_artifact()
    before = content(source.path)
    report = export_trt(out=tmp_path / "out", artifact=source, parity=False)
    assert content(source.path) == before
    assert listing(report.artifact.path) == FILES


def test_an_engine_is_replaced_only_by_force(rtx: Api, copied: Path) -> None:
    export_trt(artifact=copied, parity=False)
    before = content(copied)
    with pytest.raises(ArtifactError, match="holds an engine already; replace it with --force"):
        export_trt(artifact=copied, parity=False)
    assert content(copied) == before
    export_trt(artifact=copied, parity=False, force=True, engine=EngineOptions(opt_level=0))
    assert Artifact.open(copied).manifest.engine.options.opt_level == 0  # type: ignore[union-attr]


def test_from_a_checkpoint(rtx: Api, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ONNX file is exported once, judged, reused while it is the same, and made anew by force where it is not."""
    out = tmp_path / "out"
    first = export_trt(tiny, out, options=SMALL)
    assert not first.reused and first.artifact.manifest.parity is not None
    assert listing(tmp_path) == ["out"] and listing(out) == FILES
    calls: list[Any] = []
    monkeypatch.setattr(module, "run_export", lambda *a, **k: calls.append(a) or pytest.fail("exported again"))
    again = export_trt(tiny, out, options=SMALL, force=True)
    assert again.reused and calls == []
    for options, calibration, words in (
        (ExportOptions(height=64, width=128, precision="fp16"), None, "its width is 64, not 128"),
        (ExportOptions(height=64, width=64, precision="bf16"), None, "its precision is fp16, not bf16"),
        (SMALL, CalibrationOptions(samples=1), "which pictures its FP16 scales were chosen on is not recorded"),
    ):
        with pytest.raises(ArtifactError, match=rf"holds another artifact \({words}\); replace it with --force"):
            export_trt(tiny, out, options=options, calibration=calibration)
    with pytest.raises(ArtifactError, match="it was made from other weights, seeded:0"):
        export_trt(load_checkpoint(variant="tiny", seed=1), out, options=SMALL)


def test_the_engine_fails_and_the_onnx_file_stays(rtx: Api, tiny: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="--workspace 1024 may be too small"):
        export_trt(tiny, out, options=SMALL, parity=False, engine=EngineOptions(workspace=1024))
    assert listing(tmp_path) == ["out"]
    assert Artifact.open(out, verify=True).manifest.engine is None
    assert export_trt(tiny, out, options=SMALL, parity=False).reused


@pytest.mark.parametrize("failure", ["workspace", "interrupted", "full"])
def test_the_old_artifact_survives(
    rtx: Api, tiny: Checkpoint, built, tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it would have been replaced by another."""
    out = Path(shutil.copytree(built(precision="fp16").artifact.path, tmp_path / "out"))
    before = content(out)
    engine, expected = EngineOptions(), (ExportError, KeyboardInterrupt, ArtifactError)
    if failure == "workspace":
        engine = EngineOptions(workspace=1024)
    elif failure == "interrupted":
        monkeypatch.setattr(module, "build_plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    else:
        written = Path.write_bytes

        def write(self: Path, data: bytes) -> int:
            if self.name == "encoder.plan":
                raise OSError(28, "No space left on device", str(self))
            return written(self, data)

        monkeypatch.setattr(Path, "write_bytes", write)
    for source in ({"checkpoint": tiny, "options": SMALL}, {"artifact": out}):
        with pytest.raises(expected) as caught:
            export_trt(out=out, parity=False, force=True, engine=engine, **source)
        if failure == "full":
            assert "the disk is full" in str(caught.value)
        assert content(out) == before
        assert listing(tmp_path) == ["out"]


def test_a_dry_run_needs_no_tensorrt(
    onnx_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an ONNX file for any size; that of a checkpoint is in `tests/cli/test_trt_command.py`."""
    monkeypatch.setattr(module, "load_api", lambda flavour: pytest.fail("imported"))
    out, source = tmp_path / "dry run", onnx_artifact(batch=None, dynamic_res=True)
    report = export_trt(
        out=out, artifact=source, batch=(1, 2, 4), resolutions=((64, 64, 128), (64, 64, 192)), parity=False,
        dry_run=True, engine=EngineOptions(workspace=2**30, opt_level=5, hardware_compatible=True, strip=True),
    )  # fmt: skip
    assert listing(out) == ["encoder.onnx", "encoder.onnx.data", "manifest.json"]
    assert report.trtexec == (
        f"trtexec '--onnx={out}/encoder.onnx' '--saveEngine={out}/encoder.plan' --stronglyTyped --noTF32 "
        "--minShapes=pixel_values:1x3x64x64 --optShapes=pixel_values:2x3x64x64 --maxShapes=pixel_values:4x3x128x192 "
        "--memPoolSize=workspace:1024M --builderOptimizationLevel=5 --hardwareCompatibilityLevel=ampere+ "
        "--stripWeights --profilingVerbosity=detailed"
    )
    assert Artifact.open(out, verify=True)


def test_no_tensorrt_fails_before_the_export(
    without_tensorrt: None, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(module, "run_export", lambda *a, **k: pytest.fail("exported"))
    with pytest.raises(UnavailableError, match="is not installed: `pip install tensorrt"):
        export_trt(tiny, tmp_path / "out", options=SMALL)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batch": (1, 2, 4)}, "the ONNX file takes batch 1 alone, not 1:2:4; export it with --batch dynamic"),
        (
            {"resolutions": ((64, 128, 256),) * 2},
            "takes height 128 alone, not 64:128:256; export it with --dynamic-res",
        ),
    ],
)
def test_sizes_that_the_file_has_not(rtx: Api, copied: Path, asked: dict[str, Any], words: str) -> None:
    before = content(copied)
    with pytest.raises(ConfigError, match=words):
        export_trt(artifact=copied, **asked)
    assert content(copied) == before


def test_sizes_that_the_model_has_not(rtx: Api, tiny: Checkpoint, tmp_path: Path) -> None:
    options = ExportOptions(height=64, width=64, dynamic_res=True, precision="fp16")
    with pytest.raises(ConfigError, match=r"resolution 100x64 is not a multiple of 64"):
        export_trt(tiny, tmp_path / "out", options=options, resolutions=((64, 64, 100), (64, 64, 64)))
    assert listing(tmp_path) == []


def test_two_artifacts_share_no_file(rtx: Api, copied: Path) -> None:
    """Who writes into the weights of one, as `onnx.save` does, has not written into the other's."""
    out = copied.parent / "other"
    export_trt(out=out, artifact=copied, parity=False)
    assert Artifact.open(copied).manifest.engine is None
    for name in ("encoder.onnx", "encoder.onnx.data"):
        assert not (out / name).samefile(copied / name)
        assert (out / name).read_bytes() == (copied / name).read_bytes()


@pytest.mark.parametrize("links", [True, False])
def test_weights_in_place_are_not_written_twice(
    rtx: Api, copied: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def none_here(*_: object) -> None:
        raise OSError("no links here")

    before = (copied / "encoder.onnx.data").stat().st_ino
    if not links:
        monkeypatch.setattr(os, "link", none_here)
    export_trt(artifact=copied, parity=False)
    assert Artifact.open(copied, verify=True).manifest.engine
    if links:
        assert (copied / "encoder.onnx.data").stat().st_ino == before


@pytest.mark.parametrize("damage", ["plan", "layers"])
def test_a_damaged_engine_is_seen(rtx: Api, copied: Path, damage: str) -> None:
    export_trt(artifact=copied, parity=False)
    file = copied / {"plan": "encoder.plan", "layers": "encoder.layers.json"}[damage]
    data = bytearray(file.read_bytes())
    data[-10] ^= 255
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(FvexportError, match="was changed after its export"):
        Artifact.open(copied, verify=True)
    file.write_bytes(data[:100])
    with pytest.raises(ArtifactError, match="has 100 bytes instead of"):
        Artifact.open(copied)


def test_a_gpu_that_rtx_does_not_run_on_is_refused_before_any_work(
    rtx: Api, onnx_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "current_gpu", lambda: Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", driver="13.0")
    )
    for started in (
        f"{module.__name__}.run_export",
        f"{module.__name__}.build_plan",
        "fvexport.encoder.checkpoint.load_checkpoint",
    ):
        monkeypatch.setattr(started, lambda *_, **__: pytest.fail("work was begun"))
    engine = EngineOptions(flavour="tensorrt-rtx")
    for source in ({"variant": "tiny"}, {"artifact": onnx_artifact()}):
        with pytest.raises(
            UnavailableError, match=r"does not run on compute capability 9\.0.*full TensorRT does.*H100"
        ):
            export_trt(out=tmp_path / "out", engine=engine, **source)
    monkeypatch.undo()
    monkeypatch.setattr(
        module, "current_gpu", lambda: Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", driver="13.0")
    )
    report = export_trt(out=tmp_path / "out", engine=engine, artifact=onnx_artifact(), parity=False)  # for another GPU
    assert report.artifact.manifest.engine is not None
