"""What a quantized artifact says of itself, and what a later check finds with no more than that."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.numpy import load_file

from fvexport.core.errors import ArtifactError
from fvexport.core.records import plain
from fvexport.core.verdict.figures import Figures
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.preprocess import Preprocessor
from fvexport.export.artifact import BLOCK_SCALES_FILE, MANIFEST_FILE, MODEL_FILE, Artifact
from fvexport.export.manifest import Manifest
from fvexport.export.onnx_export import ExportReport
from fvexport.export.parity import THRESHOLDS, check_parity
from fvexport.export.parity_backends import ParityOnnxRuntime

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCKS = [f"stages.{s}.blocks.{i}" for s, depth in enumerate((1, 1, 2, 1, 1)) for i in range(depth)]
CONVOLUTIONS = [f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")]
PRODUCTS = [f"{block}.token_mixer.{layer}" for block in BLOCKS[-2:] for layer in ("qkv", "proj")]
LAYERS = {*CONVOLUTIONS, *PRODUCTS}
CASES = ["tensorrt", "onnxruntime-cpu", "openvino, as traced", "fp8, projector", "any size, uint8"]
Made = Callable[[str], ExportReport]
BACKENDS = {
    "onnxruntime-cpu": "onnxruntime-cpu", "any size, uint8": "onnxruntime-cpu", "openvino, as traced": "openvino",
}  # fmt: skip


def load(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.model_path)


@pytest.fixture
def again(made: Made, tmp_path: Path) -> Callable[[str], Path]:
    """`again(case)`: a copy to damage."""
    return lambda case: Path(shutil.copytree(made(case).artifact.path, tmp_path / "copy"))


def source_of(case: str, tiny: Checkpoint) -> Checkpoint:
    return load_checkpoint(GOLDEN / "llava_tiny") if "projector" in case else tiny


@pytest.mark.parametrize("case", CASES)
def test_manifest_round_trip(made: Made, case: str) -> None:
    report = made(case)
    opened = Artifact.open(report.artifact.path, verify=True)
    manifest = opened.manifest
    assert manifest.to_json() == report.artifact.manifest.to_json()
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
    embedded = json.loads({p.key: p.value for p in load(opened).metadata_props}["fvexport"])
    assert embedded["quantization"] == manifest.to_dict()["quantization"]
    record = manifest.quantization
    assert manifest.precision == record.format == ("fp8" if case.startswith("fp8") else "int8")
    assert record.target == BACKENDS.get(case, "tensorrt")
    assert manifest.float_precision == ("fp16" if record.target == "tensorrt" else "fp32")
    assert set(record.quantized) == LAYERS and record.kept_float == () and record.sensitivity == ()
    assert record.bound_db is None and record.bound_figure == "stricter"
    assert record.data.samples == 4 and record.data.source == "sample"
    assert len(record.data.fingerprint) == 64
    assert record.method == ("minmax" if record.format == "fp8" else "weighted")
    streams = ["stream"] if record.target == "onnxruntime-cpu" else []
    assert record.equalization == ("ffn", "norm", "values", *streams)
    assert (BLOCK_SCALES_FILE in manifest.files) == bool(streams)
    assert manifest.fp16 is None


@pytest.mark.parametrize("case", ["tensorrt", "any size, uint8", "fp8, projector", "openvino, as traced"])
def test_parity_later(made: Made, case: str) -> None:
    """Without the module that was exported, against the manifest's record of what PyTorch lost."""
    report = made(case)
    backend = "openvino" if case.startswith("openvino") else "onnxruntime-cpu"
    verdict = check_parity(report.artifact.path, backend=backend, layers=True)
    assert verdict.passed and verdict.first_bad_layer is None
    assert verdict.torch == report.verdict.torch
    assert verdict.figures.rel_l2 == pytest.approx(report.verdict.figures.rel_l2, rel=0.05)
    assert [f.torch_rel_l2 for f in verdict.layers] == [f.torch_rel_l2 for f in report.verdict.layers]


def rescaled(folder: Path, name: str, factor: float) -> None:
    """Multiplies one scale in the file, and makes the manifest agree."""
    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    assert not tensor.external_data
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), name))
    content = model.SerializeToString()
    (folder / MODEL_FILE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][MODEL_FILE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    Artifact.open(folder, verify=True)


@pytest.mark.parametrize(
    ("case", "name", "factor"),
    [
        ("tensorrt", "stages.2.blocks.1.mlp.fc2.weight_scale", 4.0),
        ("onnxruntime-cpu", "stages.1.blocks.0.mlp.fc1.weight_scale", 4.0),
        ("fp8, projector", "stages.3.blocks.0.token_mixer.proj.weight_scale", 4.0),
        ("onnxruntime-cpu", "stages.4.blocks.0.mlp.fc1.input_quantizer.scale", 0.125),
    ],
)
def test_a_damaged_scale_is_found(
    again: Callable[[str], Path], made: Made, tiny: Checkpoint, case: str, name: str, factor: float
) -> None:
    made(case)
    folder = again(case)
    rescaled(folder, name, factor)
    block = next(block for block in BLOCKS if name.startswith(block))
    verdict = check_parity(folder, checkpoint=source_of(case, tiny), layers=True)
    assert (verdict.status, verdict.first_bad_layer) == ("fail", block)
    assert "over the bound" in verdict.reason


def test_unmeasured_files_have_the_widest_bound(tmp_path: Path, tiny: Checkpoint, made: Made) -> None:
    """Exported without parity there is no record; what is never allowed still is not."""
    folder = Path(shutil.copytree(made("tensorrt").artifact.path, tmp_path / "copy"))
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["quantization"] |= {"predicted": None, "blocks": {}}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    verdict = check_parity(folder, checkpoint=tiny, layers=True)
    assert verdict.passed and "within 2.0e-01" in verdict.reason and "within 3.2e-01" in verdict.reason
    assert all(f.torch_rel_l2 is None for f in verdict.layers)
    rescaled(folder, "stages.3.blocks.0.mlp.fc2.weight_scale", 4.0)
    assert check_parity(folder, checkpoint=tiny).status == "fail"


def test_blocks_at_another_scale(made: Made, tiny: Checkpoint, photographs: dict[str, Path], distance: Any) -> None:
    """Streams that were equalized: their factors stand in a file, and take each block back to the checkpoint's."""
    report = made("onnxruntime-cpu")
    artifact = report.artifact
    scales = load_file(artifact.path / BLOCK_SCALES_FILE)
    convolutional = [b for b in BLOCKS if b < "stages.3"]
    assert list(scales) == convolutional
    backend = ParityOnnxRuntime(artifact, taps=convolutional)
    pixels = Preprocessor(128, 128)(photographs["coffee"])
    _, inner = backend.run_taps(pixels)
    wanted: dict[str, np.ndarray] = {}
    for name in convolutional:
        tiny.encoder.get_submodule(name).register_forward_hook(
            lambda _m, _x, y, name=name: wanted.__setitem__(name, y.numpy())
        )
    with torch.inference_mode():
        tiny.encoder(torch.from_numpy(pixels))
    for name in convolutional:
        tiny.encoder.get_submodule(name)._forward_hooks.clear()
        assert distance(inner[name] / scales[name][:, None, None], wanted[name]) < 0.03
        assert distance(inner[name], wanted[name]) > 0.1
    assert all(f.rel_l2 < 0.05 for f in report.verdict.layers)


def test_a_bound_is_kept_in_the_manifest(made: Made, again: Callable[[str], Path], tiny: Checkpoint) -> None:
    folder = again("tensorrt")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    figures = made("tensorrt").verdict.figures
    assert figures.centred_sqnr_db < figures.sqnr_db - 2
    manifest["quantization"]["bound_db"] = (figures.centred_sqnr_db + figures.sqnr_db) / 2
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    verdict = check_parity(folder, checkpoint=tiny)
    assert verdict.status == "fail" and "asked for" in verdict.reason
    del manifest["quantization"]["bound_figure"]  # a file of an earlier version was asked for the plain one
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert check_parity(folder, checkpoint=tiny).passed


def test_records_of_earlier_versions(made: Made, again: Callable[[str], Path], tiny: Checkpoint) -> None:
    """Without centred figures: PyTorch's own follow from its plain ones and from the reference."""
    report, folder = made("tensorrt"), again("tensorrt")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    record = manifest["quantization"]
    del record["bound_figure"]
    record["predicted"] = {k: v for k, v in record["predicted"].items() if not k.startswith("centred")}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    verdict = check_parity(folder, checkpoint=tiny)
    assert verdict.passed
    assert verdict.torch.centred_rel_l2 == pytest.approx(report.verdict.torch.centred_rel_l2, rel=0.15)
    assert replace(verdict.torch, centred_rel_l2=None, centred_sqnr_db=None) == Figures(**record["predicted"])
    rescaled(folder, "stages.3.blocks.0.mlp.fc2.weight_scale", 4.0)
    assert check_parity(folder, checkpoint=tiny).status == "fail"


def test_figures_recorded_on_other_photographs(made: Made, tiny: Checkpoint, photographs: dict[str, Path]) -> None:
    """How much features vary depends on the photographs: PyTorch's centred error is that of these."""
    artifact = made("tensorrt").artifact
    verdict = check_parity(artifact, checkpoint=tiny, images=photographs["coffee"])
    assert verdict.passed
    ratio = verdict.torch.centred_rel_l2 / verdict.torch.rel_l2
    assert ratio == pytest.approx(verdict.figures.centred_rel_l2 / verdict.figures.rel_l2, rel=1e-6)


JSON = st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_mutated_quantization_is_read_or_refused(made: Made, data: st.DataObject) -> None:
    """What is read can be used where a later check needs it."""
    document = json.loads(made("tensorrt").artifact.manifest.to_json())
    record = document["quantization"]
    if data.draw(st.booleans()):
        record = data.draw(st.sampled_from([record["predicted"], record["blocks"], record["data"]]))
    key = data.draw(st.sampled_from(list(record)))
    if data.draw(st.booleans()):
        del record[key]
    else:
        record[key] = data.draw(JSON | st.dictionaries(st.text(max_size=3), JSON, max_size=2))
    try:
        manifest = Manifest.from_json(json.dumps(document), "here")
    except ArtifactError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert manifest.float_precision in ("fp32", "fp16", "bf16")
        found = manifest.quantization
        if found.predicted is not None:
            figures = Figures.from_dict(plain(found.predicted))
            assert math.isfinite(sum(value for value in asdict(figures).values() if value is not None))
            assert all(THRESHOLDS["int8"].bounds(figures))
        assert found.bound_figure in ("plain", "stricter")
        assert all(THRESHOLDS["int8"].bound(value) > 0 for value in found.blocks.values())


@pytest.mark.parametrize(
    ("precision", "quantization"), [("fp32", {"float_precision": "fp16"}), ("int8", None), ("fp8", {})]
)
def test_precision_and_quantization_agree(made: Made, precision: str, quantization: Any) -> None:
    document = json.loads(made("tensorrt").artifact.manifest.to_json())
    document |= {"precision": precision, "quantization": quantization}
    with pytest.raises(ArtifactError, match="quantization"):
        Manifest.from_json(json.dumps(document), "here")
