"""The exported files give the golden numbers, at the traced size and at others; and what an export refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fvexport.core.errors import ArtifactError, CheckpointError, ConfigError, ExportError
from fvexport.core.records import plain
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export import onnx_export
from fvexport.export.artifact import Artifact
from fvexport.export.export_options import ExportOptions
from fvexport.export.manifest import TensorSpec
from fvexport.export.onnx_export import export_onnx
from fvexport.export.parity_backends import ParityOnnxRuntime
from fvexport.export.runtime import OnnxRuntimeBackend

TOLERANCE = 1e-5
SMALL = ExportOptions(height=64, width=64)
DYNAMIC = {"batch": None, "dynamic_res": True}
Distance = Callable[[Any, Any], float]
Golden = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llava_tiny", (256, 256)),
        ("llava_tiny", (320, 192)),
        ("timm_tiny", (320, 192)),
        ("transformers_tiny", (256, 256)),
    ],
)
def test_golden_static(
    exported: Any, load_golden: Golden, distance: Distance, name: str, size: tuple[int, int]
) -> None:
    height, width = size
    data, text = load_golden(name), f"{height}x{width}"
    projector = name == "llava_tiny" and size == (320, 192)
    artifact = exported(name, height=height, width=width, projector=projector)
    found = OnnxRuntimeBackend(artifact).run(data[f"pixels_{text}"])
    assert distance(found, data[f"{'projected' if projector else 'tokens'}_{text}"]) < TOLERANCE


# Ten seconds each: the timm form's names and weights are in `test_golden_static`, dynamic files in the other two.
@pytest.mark.parametrize("name", ["llava_tiny", pytest.param("timm_tiny", marks=pytest.mark.long), "transformers_tiny"])
def test_golden_dynamic(exported: Any, load_golden: Golden, distance: Distance, name: str) -> None:
    """Traced at another size than any it runs at."""
    data, projector = load_golden(name), name != "timm_tiny"
    backend = OnnxRuntimeBackend(exported(name, **DYNAMIC, projector=projector))
    sizes = [key.removeprefix("pixels_") for key in data if key.startswith("pixels_")]
    assert "256x256" in sizes
    for size in sizes:
        pixels, wanted = data[f"pixels_{size}"], data[f"{'projected' if projector else 'tokens'}_{size}"]
        assert distance(backend.run(pixels), wanted) < TOLERANCE
        three = backend.run(np.concatenate([pixels, pixels[..., ::-1], pixels]))
        assert distance(three[[0, 2]], np.concatenate([wanted, wanted])) < TOLERANCE


def test_golden_taps(exported: Any, load_golden: Golden, golden_taps: dict[str, str], distance: Distance) -> None:
    data = load_golden("llava_tiny")
    names = [key.removeprefix("tap_256x256/") for key in data if key.startswith("tap_256x256/")]
    assert len(names) >= 12
    for artifact in (exported("llava_tiny", height=256, width=256), exported("llava_tiny", **DYNAMIC, projector=True)):
        backend = ParityOnnxRuntime(artifact, taps=[golden_taps[name] for name in names])
        features, inner = backend.run_taps(data["pixels_256x256"])
        assert (
            distance(features, data["projected_256x256" if features.shape[-1] == 64 else "tokens_256x256"]) < TOLERANCE
        )
        errors = {name: distance(inner[golden_taps[name]], data[f"tap_256x256/{name}"]) for name in names}
        assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 128, 192), (1, 320, 64), (2, 64, 448)])
def test_dynamic_file_at_other_shapes(
    dynamic: Artifact, tiny: Checkpoint, distance: Distance, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    pixels = np.random.default_rng(0).random((batch, 3, height, width), np.float32)
    with torch.inference_mode():
        wanted = tiny.encoder(torch.from_numpy(pixels))
    assert distance(OnnxRuntimeBackend(dynamic).run(pixels), wanted) < TOLERANCE


@pytest.mark.parametrize(
    "options", [{}, DYNAMIC, {"precision": "fp16", "io": "model"}], ids=["static", "dynamic", "fp16"]
)
def test_uint8_input(exported: Any, tiny: Checkpoint, distance: Distance, options: dict[str, Any]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128)).astype(np.uint8)
    artifact = exported(input="uint8", **options)
    with torch.inference_mode():
        wanted = tiny.encoder(torch.from_numpy(levels).float() / 255)
    assert artifact.manifest.input.dtype == "uint8"
    half = options.get("precision") == "fp16"
    assert distance(OnnxRuntimeBackend(artifact).run(levels), wanted) < (1e-2 if half else TOLERANCE)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_io_of_the_model(exported: Any, tiny: Checkpoint, distance: Distance, precision: str, dtype: str) -> None:
    artifact = exported(precision=precision, io="model")
    assert artifact.manifest.input.dtype == artifact.manifest.output.dtype == dtype
    proto = onnx.load(artifact.model_path, load_external_data=False)
    assert not [n.name for n in proto.graph.node if n.op_type == "Cast"]
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    found = OnnxRuntimeBackend(artifact).run(pixels)
    assert found.dtype == np.float32
    with torch.inference_mode():
        wanted = tiny.encoder(torch.from_numpy(pixels))
    assert distance(found, wanted) < {"fp32": TOLERANCE, "fp16": 1e-2, "bf16": 5e-2}[precision]


def test_manifest_and_metadata_tell_the_same(exported: Any, golden_dir: Path) -> None:
    artifact = exported("llava_tiny", **DYNAMIC, projector=True)
    manifest = artifact.manifest
    proto = onnx.load(artifact.model_path, load_external_data=False)
    embedded = json.loads({p.key: p.value for p in proto.metadata_props}["fvexport"])
    written = json.loads((artifact.path / "manifest.json").read_text())
    files = written.pop("files")
    assert embedded == written
    assert set(files) == {"encoder.onnx", "encoder.onnx.data"}
    assert manifest.checkpoint.sha256 == load_checkpoint(golden_dir / "llava_tiny").info.sha256
    assert (manifest.tokens, manifest.opset, manifest.variant) == (None, 20, "tiny")
    assert manifest.input == TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, "height", "width"))
    assert manifest.output.shape == ("batch", "tokens", 64)
    assert manifest.options.connector.kind == "mlp2x_gelu"


def test_export_leaves_the_checkpoint_alone(tiny: Checkpoint, static: Artifact) -> None:
    assert static.manifest.checkpoint.sha256 == load_checkpoint(variant="tiny").info.sha256
    before = {k: v.clone() for k, v in tiny.encoder.state_dict().items()}
    reparameterize(tiny.encoder).half()
    assert tiny.encoder.form == "train"
    assert all(torch.equal(v, before[k]) for k, v in tiny.encoder.state_dict().items())


class StoppedError(Exception):
    """The expensive work was about to begin."""


def stop(*_: Any, **__: Any) -> None:
    raise StoppedError


@pytest.mark.parametrize("kind", ["existing", "foreign", "resolution", "projector"])
def test_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: Any, static: Artifact, golden_dir: Path, kind: str
) -> None:
    monkeypatch.setattr(onnx_export, "trace", stop)
    out, force, options, source, wanted = tmp_path / "new", False, SMALL, golden_dir / "timm_tiny", ArtifactError
    if kind == "existing":
        out = copied(static)
    elif kind == "foreign":
        out, force = tmp_path, True
        (tmp_path / "thesis.txt").write_text("years of work")
    elif kind == "resolution":
        options, wanted = ExportOptions(height=1000, width=1000), ConfigError
    else:
        options, wanted = ExportOptions(height=64, width=64, projector=True), CheckpointError
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(wanted):
        export_onnx(source, out, options=options, force=force)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("force", [False, True])
def test_failed_parity_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: Any, static: Artifact, tiny: Checkpoint, force: bool
) -> None:
    out = copied(static) if force else tmp_path / "new"
    before = {f: f.read_bytes() for f in out.glob("*")}

    def wrong(module: Any, options: ExportOptions) -> Any:
        module.encoder.stages[2].blocks[1].mlp.fc2.weight.data.mul_(1.01)
        return trace(module, options)

    trace = onnx_export.trace
    monkeypatch.setattr(onnx_export, "trace", wrong)
    with pytest.raises(ExportError, match=r"parity failed, nothing written: relative L2 error .*--no-parity"):
        export_onnx(tiny, out, options=SMALL, force=force)
    assert {f: f.read_bytes() for f in out.glob("*")} == before
    assert [f.name for f in tmp_path.iterdir()] == ([out.name] if force else [])
    Artifact.open(out) if force else None


def test_force_replaces_and_parity_is_recorded(tmp_path: Path, tiny: Checkpoint, copied: Any, static: Artifact) -> None:
    out = copied(static)
    phases: list[str] = []

    def progress(task: str, done: int, total: int | None) -> None:
        phases.append(task)

    images: Sequence[np.ndarray] = [np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8)]
    report = export_onnx(tiny, out, options=SMALL, force=True, images=images, progress=progress)
    opened = Artifact.open(out, verify=True)
    assert opened.manifest.to_json() == report.artifact.manifest.to_json()
    assert opened.manifest.tokens == 1
    assert report.verdict is not None and report.verdict.passed
    assert plain(opened.manifest.parity) == json.loads(json.dumps(report.verdict.to_dict()))
    assert list(report.seconds) == ["load", "prepare", "trace", "simplify", "write", "check", "parity"]
    assert {*report.seconds, "fuse"} <= set(phases)
    assert "seeded" in report.notices[0]
    assert [f.name for f in tmp_path.iterdir()] == [out.name]
