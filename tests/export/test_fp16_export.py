"""FP16 exports of models that would overflow: scaled, said so, judged, and judged again from the manifest alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from fvexport.calibration.calibrate import calibrate
from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.core.errors import ArtifactError, ConfigError
from fvexport.core.progress import silent
from fvexport.encoder.checkpoint import Checkpoint, weights_sha256
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export import onnx_export
from fvexport.export import prepare as preparing
from fvexport.export.artifact import BLOCK_SCALES_FILE, MANIFEST_FILE, Artifact
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import ExportReport, export_onnx
from fvexport.export.parity import check_parity
from fvexport.export.parity_backends import EagerReference
from fvexport.export.prepare import prepare
from fvexport.export.runtime import EagerBackend
from fvexport.export.simplification import simplified
from fvexport.export.tracing import ExportModule, trace

HALF = ExportOptions(height=128, width=128, precision="fp16")
ISLAND = "stages.4.blocks.0.mlp"


def enlarged(checkpoint: Checkpoint, change: Callable[[FastViTHD], None]) -> Checkpoint:
    encoder = reparameterize(checkpoint.encoder)
    with torch.no_grad():
        change(encoder)
    return replace(checkpoint, encoder=encoder, info=replace(checkpoint.info, sha256=weights_sha256(encoder)))


def grow(model: FastViTHD) -> None:
    """The same function; stage 4's stream and one hidden tensor of stage 5 pass FP16's end by far."""
    stage, block, factor = model.stages[3], model.stages[3].blocks[0], 2.0**17
    for part in (stage.pos_emb.reparam_conv, block.token_mixer.proj, block.mlp.fc2):
        part.weight *= factor
        part.bias *= factor
    block.norm.eps *= factor**2
    for reader in (block.mlp.conv, model.stages[4].downsample.proj[0].reparam_conv):
        reader.weight /= factor
    mlp = model.get_submodule(ISLAND)
    mlp.fc1.weight *= 1e6
    mlp.fc2.weight /= 1e6


@pytest.fixture(scope="module")
def large(tiny: Checkpoint) -> Checkpoint:
    return enlarged(tiny, grow)


@pytest.fixture(scope="module")
def report(large: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_onnx(large, tmp_path_factory.mktemp("fp16") / "made", options=HALF)


def test_the_checkpoint_overflows(large: Checkpoint, photographs: dict[str, Path]) -> None:
    pixels = Preprocessor(128, 128)(photographs["coffee"])
    assert np.isfinite(EagerBackend(large.encoder).run(pixels)).all()
    assert not np.isfinite(EagerReference(large.encoder, emulate_half=torch.float16).run(pixels)).all()


def test_the_file_passes(report: ExportReport) -> None:
    verdict = report.verdict
    assert verdict.passed
    assert verdict.figures.cosine_min >= 0.9999
    assert "rounded to float16" in verdict.backend
    assert verdict.torch.finite


def test_what_was_done_is_said(report: ExportReport) -> None:
    manifest = Artifact.open(report.artifact.path, verify=True).manifest
    plan = manifest.fp16
    assert plan.float32 == (ISLAND,)
    assert plan.exponents[3] < 0 and not any(plan.exponents[:3]) and plan.exponents[4] == 0
    assert max(plan.peaks.values()) > 65504
    (notice,) = (text for text in report.notices if "FP16" in text)
    assert f"stage 4 by 2^{plan.exponents[3]}" in notice
    assert f"{ISLAND} kept in float32" in notice
    assert max(plan.peaks, key=plan.peaks.get) in notice
    assert BLOCK_SCALES_FILE in manifest.files
    assert (report.artifact.path / BLOCK_SCALES_FILE).stat().st_mode & 0o044 == (
        report.artifact.path / MANIFEST_FILE
    ).stat().st_mode & 0o044


def test_the_graph(report: ExportReport) -> None:
    graph = onnx.load(report.artifact.model_path, load_external_data=False).graph
    wide = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    assert wide and all(name.startswith(f"{ISLAND}.module.") for name in wide)
    onnx.checker.check_model(str(report.artifact.model_path), full_check=True)


def test_parity_later(report: ExportReport, large: Checkpoint) -> None:
    """PyTorch's own half precision is made again from the manifest's plan, and blocks are taken back to scale."""
    verdict = check_parity(report.artifact.path, checkpoint=large, layers=True)
    assert verdict.passed and verdict.first_bad_layer is None
    assert verdict.torch.rel_l2 == pytest.approx(report.verdict.torch.rel_l2, rel=1e-6)
    assert all(f.rel_l2 < 0.02 and f.torch_rel_l2 < 0.02 for f in verdict.layers)


def test_a_damaged_plan(report: ExportReport, large: Checkpoint, copied: Any) -> None:
    folder = copied(report.artifact)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    for plan, words in (
        ({"exponents": "x"}, r"\$\.fp16\.exponents: expected array, found str"),
        ({**manifest["fp16"], "float32": ["stages.9.mlp"]}, "of another model"),
    ):
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"fp16": plan}))
        with pytest.raises((ArtifactError, ConfigError), match=words):
            check_parity(folder, checkpoint=large)


def test_int8_keeps_inside_fp16_too(large: Checkpoint, tiny: Checkpoint, tmp_path: Path) -> None:
    """Equalized, scaled and quantized: eight bits lose what they lose of the harmless model."""
    options = ExportOptions(height=128, width=128, precision="int8", target="tensorrt")
    found = export_onnx(large, tmp_path / "a", options=options, calibration=CalibrationOptions(samples=4))
    manifest = found.artifact.manifest
    assert manifest.fp16 is not None and manifest.fp16.exponents[3] < 0
    assert f"{ISLAND}.fc1" not in manifest.quantization.quantized
    assert found.verdict.figures.sqnr_db > 25
    assert found.verdict.figures.cosine_min > 0.99
    assert {"stages.3.pos_emb", "stages.3.blocks.0"} == set(_scales(found.artifact))
    later = check_parity(found.artifact.path, checkpoint=large, layers=True)
    assert later.passed and later.first_bad_layer is None


def _scales(artifact: Artifact) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(artifact.path / BLOCK_SCALES_FILE)


# --- harmless models ---------------------------------------------------------------------------


def test_a_harmless_model_stays_as_it_is(exported: Any, tiny: Checkpoint) -> None:
    artifact = exported(precision="fp16")
    assert artifact.manifest.fp16 is None and artifact.manifest.quantization is None
    assert BLOCK_SCALES_FILE not in artifact.manifest.files
    plain = reparameterize(tiny.encoder)
    graph, _ = simplified(trace(ExportModule(plain, None, HALF), HALF), HALF, tiny.encoder.config)
    written = onnx.load(artifact.model_path)
    nodes = [(n.op_type, list(n.input), list(n.output)) for n in written.graph.node]
    assert nodes == [
        (n.op_type, [v.name if v else "" for v in n.inputs], [v.name for v in n.outputs]) for n in graph.graph
    ]
    weights = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    checked = 0
    for name, value in plain.half().state_dict().items():
        if name in weights:
            np.testing.assert_array_equal(weights[name], value.numpy())
            checked += 1
    assert checked > 60


def test_other_precisions_are_not_looked_at(
    tiny: Checkpoint, large: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 and bfloat16 have the range."""
    monkeypatch.setattr(preparing, "observe_peaks", None)
    for checkpoint in (tiny, large):
        for precision in ("fp32", "bf16"):
            options = ExportOptions(height=128, width=128, precision=precision)
            found = prepare(checkpoint, options, CalibrationOptions(), {}, silent)
            assert not found.changed and found.notices == [] and found.block_scales == {}


# --- where peaks come from ---------------------------------------------------------------------


def test_peaks_of_ranges(large: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration's file is enough: nothing is shown to the model again."""
    out = tmp_path / "ranges.json"
    calibrate(large, out, height=128, width=128, options=CalibrationOptions(samples=4), cache=tmp_path / "cache")
    shown = prepare(large, HALF, CalibrationOptions(), {}, silent)
    monkeypatch.setattr(preparing, "observe_peaks", None)
    found = prepare(large, HALF, CalibrationOptions(ranges=out), {}, silent)
    assert found.fp16.exponents == shown.fp16.exponents
    assert found.fp16.float32 == shown.fp16.float32
    # Memory layouts differ, and so does the last digit of the peak.
    told = [[re.sub(r"\d{5,} of", "peak of", text) for text in notices if "FP16" in text] for notices in (
        found.notices, shown.notices,
    )]  # fmt: skip
    assert len(found.notices) == 1 and told[0] == told[1]
    other = replace(large, info=replace(large.info, sha256="0" * 64))
    with pytest.raises(ConfigError, match="another checkpoint"):
        prepare(other, HALF, CalibrationOptions(ranges=out), {}, silent)
    with pytest.raises(ConfigError, match="128x128, the export is at 64x64"):
        prepare(large, ExportOptions(height=64, width=64, precision="fp16"), CalibrationOptions(ranges=out), {}, silent)


def test_pictures_of_the_users(tiny: Checkpoint, tmp_path: Path, photographs: dict[str, Path]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(photographs["coffee"].read_bytes())
    (folder / "b.jpg").write_bytes(b"no picture")
    found = prepare(tiny, HALF, CalibrationOptions(calib=folder, samples=2), {}, silent)
    assert any("b.jpg" in notice for notice in found.notices)
    assert not found.changed


def test_what_cannot_be_kept_inside(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution meets the pixels: found before the graph is traced, and nothing is written."""

    def change(model: FastViTHD) -> None:
        model.first_conv.weight *= 1e6
        model.stem[1].reparam_conv.weight /= 1e6

    monkeypatch.setattr(onnx_export, "trace", None)
    with pytest.raises(ConfigError, match=r"cannot run in FP16: stem\.0.*--bf16"):
        export_onnx(enlarged(tiny, change), tmp_path / "out", options=HALF)
    assert not list(tmp_path.iterdir())
