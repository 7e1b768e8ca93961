"""INT8 and FP8 files: which nodes carry Q/DQ, that they compute what PyTorch does, and what a later check finds."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file

from fvexport.calibration.options import CalibrationOptions
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.errors import ArtifactError, ConfigError, ExportError
from fvexport.export import onnx as onnx_export
from fvexport.export.artifact import DATA_FILE, MANIFEST_FILE, MODEL_FILE, Artifact
from fvexport.export.figures import Figures, compare
from fvexport.export.inspect import inspect_artifact
from fvexport.export.manifest import Manifest
from fvexport.export.onnx import ExportReport, export_onnx
from fvexport.export.options import ExportOptions
from fvexport.export.parity import BLOCK_SCALES_FILE, THRESHOLDS, check_parity
from fvexport.export.prepare import prepare
from fvexport.export.rules import check_quantized, check_rules
from fvexport.export.runtime import Encoder, OnnxRuntimeBackend, OpenVinoBackend
from fvexport.export.simplification import _output
from fvexport.progress import silent

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCKS = [f"stages.{s}.blocks.{i}" for s, depth in enumerate((1, 1, 2, 1, 1)) for i in range(depth)]
CONVOLUTIONS = [f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")]
PRODUCTS = [f"{block}.token_mixer.{layer}" for block in BLOCKS[-2:] for layer in ("qkv", "proj")]
LAYERS = {*CONVOLUTIONS, *PRODUCTS}
FEW = CalibrationOptions(samples=4)

CASES: dict[str, dict[str, Any]] = {
    "tensorrt": {"precision": "int8"},
    "onnxruntime-cpu": {"precision": "int8", "target": "onnxruntime-cpu"},
    "openvino, as traced": {"precision": "int8", "target": "openvino", "simplify": False},
    "fp8, projector": {"precision": "fp8", "projector": True},
    "any size, uint8": {
        "precision": "int8", "target": "onnxruntime-cpu", "batch": None, "dynamic_res": True, "input": "uint8",
    },
}  # fmt: skip
CASE_NAMES = list(CASES)
Made = Callable[[str], ExportReport]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint) -> Made:
    """`made(case)`: the report of an export with its verdict, made once. Not to be written to."""
    reports: dict[str, ExportReport] = {}

    def export(case: str) -> ExportReport:
        if case not in reports:
            source: Any = GOLDEN / "llava_tiny" if "projector" in case else tiny
            out = tmp_path_factory.mktemp("quantized") / "made"
            options = ExportOptions(height=128, width=128, **CASES[case])
            reports[case] = export_onnx(source, out, options=options, calibration=FEW)
        return reports[case]

    return export


@pytest.fixture
def again(made: Made, tmp_path: Path) -> Callable[[str], Path]:
    """`again(case)`: a copy to damage."""
    return lambda case: Path(shutil.copytree(made(case).artifact.path, tmp_path / "copy"))


def load(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.model_path)


def source_of(case: str, tiny: Checkpoint) -> Checkpoint:
    return load_checkpoint(GOLDEN / "llava_tiny") if "projector" in case else tiny


# --- the graph ---------------------------------------------------------------------------------


class Graph:
    """A file's nodes, by what they make and who takes it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.values = {t.name: t for t in model.graph.initializer}
        self.maker = {out: node for node in self.nodes for out in node.output}

    def takers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def of(self, kind: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == kind]

    def makes(self, name: str) -> str:
        """The operator that makes a tensor; nothing for weights and the input."""
        return self.maker[name].op_type if name in self.maker else ""

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.values[name])


def layer_of(node: onnx.NodeProto) -> str:
    return node.name.rpartition("/")[0]


@pytest.mark.parametrize("case", CASE_NAMES)
def test_valid_and_within_the_rules(made: Made, tiny: Checkpoint, case: str) -> None:
    artifact = made(case).artifact
    onnx.checker.check_model(str(artifact.model_path), full_check=True)
    model = onnx.load(artifact.model_path, load_external_data=False)
    check_rules(model, tiny.encoder.config, projector="projector" in case)
    check_quantized(model, LAYERS)
    assert artifact.manifest.opset == 20
    assert made(case).artifact.manifest.graph["kept_unsimplified"] is None
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert len(inferred.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("case", CASE_NAMES)
def test_weights_are_eight_bits_wide(made: Made, case: str) -> None:
    """Those of the policy's layers and no others: one scale per output channel, on the axis of the output."""
    graph = Graph(load(made(case).artifact))
    fp8, half = case.startswith("fp8"), made(case).artifact.manifest.float_precision == "fp16"
    eight = TensorProto.FLOAT8E4M3FN if fp8 else TensorProto.INT8
    real = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    stored = {n: t for n, t in graph.values.items() if t.data_type == eight and not n.endswith("zero_point")}
    assert set(stored) == {f"{name}.weight" for name in LAYERS}
    for name, tensor in stored.items():
        (dequantize,) = graph.takers(name)
        (product,) = graph.takers(dequantize.output[0])
        assert layer_of(product) == name.removesuffix(".weight")
        convolution = name.removesuffix(".weight") in CONVOLUTIONS
        assert product.op_type == ("Conv" if convolution else "MatMul")
        assert list(product.input).index(dequantize.output[0]) == 1
        (axis,) = (a.i for a in dequantize.attribute if a.name == "axis")
        assert axis == (0 if convolution else 1)
        scale = graph.values[dequantize.input[1]]
        assert scale.data_type == real and list(scale.dims) == [tensor.dims[axis]]
        zero = graph.values[dequantize.input[2]]
        assert zero.data_type == eight and not graph.array(zero.name).astype(np.float32).any()
        assert np.abs(graph.array(name).astype(np.float32)).max() <= (448 if fp8 else 127)
    others = {t.data_type for n, t in graph.values.items() if n.endswith(".weight") and n not in stored}
    assert others == {real}


@pytest.mark.parametrize("case", CASE_NAMES)
def test_activations_are_quantized_where_the_policy_says(made: Made, case: str) -> None:
    graph, quantization = Graph(load(made(case).artifact)), made(case).artifact.manifest.quantization
    target, fp8 = quantization["target"], case.startswith("fp8")
    both_ends = target == "onnxruntime-cpu"
    entries, leavings = set(), set()
    for quantize in graph.of("QuantizeLinear"):
        (dequantize,) = graph.takers(quantize.output[0])
        assert dequantize.op_type == "DequantizeLinear" and dequantize.input[1:] == quantize.input[1:]
        scale, zero = graph.values[quantize.input[1]], graph.values[quantize.input[2]]
        assert not scale.dims and not zero.dims
        assert float(graph.array(scale.name)) >= 2.0**-14
        if target == "tensorrt":
            assert scale.data_type == TensorProto.FLOAT16
            assert zero.data_type == (TensorProto.FLOAT8E4M3FN if fp8 else TensorProto.INT8)
            assert float(graph.array(zero.name)) == 0
        else:
            assert (scale.data_type, zero.data_type) == (TensorProto.FLOAT, TensorProto.UINT8)
        takers = graph.takers(dequantize.output[0])
        assert len(takers) == 1
        if layer_of(takers[0]) in LAYERS and takers[0].input[0] == dequantize.output[0]:
            entries.add(layer_of(takers[0]))
        else:
            leavings.add(layer_of(graph.maker[quantize.input[0]]))
    assert entries == LAYERS
    assert leavings == (set(CONVOLUTIONS) if both_ends else set())
    assert len(graph.of("QuantizeLinear")) == len(entries) + len(leavings)
    biases = len(PRODUCTS) if both_ends else 0
    assert len(graph.of("DequantizeLinear")) == len(graph.of("QuantizeLinear")) + len(LAYERS) + biases


@pytest.mark.parametrize("case", CASE_NAMES)
def test_what_stays_float(made: Made, case: str) -> None:
    """GELU, softmax, LayerNorm and the skip branch take no quantized value, but what onnxruntime must have."""
    graph = Graph(load(made(case).artifact))
    both_ends = made(case).artifact.manifest.quantization["target"] == "onnxruntime-cpu"
    for kind in ("Softmax", "LayerNormalization", "Sigmoid", "Relu", "Split", "Mul", "ReduceMean"):
        nodes = graph.of(kind)
        assert nodes
        assert not [n.name for n in nodes for name in n.input if graph.makes(name) == "DequantizeLinear"]
    for gelu in graph.of("Gelu"):
        inside = any(gelu.name.startswith(f"{block}.mlp") for block in BLOCKS)
        assert (graph.makes(gelu.input[0]) == "DequantizeLinear") == (both_ends and inside)
    residual = [n for n in graph.of("Add") if layer_of(n) in BLOCKS]
    assert len(residual) == len(BLOCKS) + 2  # attention has one more
    quantized = [sum(graph.makes(name) == "DequantizeLinear" for name in n.input) for n in residual]
    assert sorted(quantized) == ([0, 0] + [1] * len(BLOCKS) if both_ends else [0] * len(residual))
    for node, count in zip(residual, quantized, strict=True):
        if count:
            branch = next(graph.maker[name] for name in node.input if graph.makes(name) == "DequantizeLinear")
            quantize = graph.maker[branch.input[0]]
            assert layer_of(graph.maker[quantize.input[0]]) == f"{layer_of(node)}.mlp.fc2"
    biases = [n for n in graph.of("Add") if layer_of(n) in PRODUCTS]
    kinds = {graph.makes(name) for n in biases for name in n.input if graph.makes(name) != "MatMul"}
    assert kinds == ({"DequantizeLinear"} if both_ends else {""})


@pytest.mark.parametrize("case", CASE_NAMES)
def test_file_size(made: Made, case: str) -> None:
    """One byte for each weight that was quantized, two or four for each other."""
    artifact = made(case).artifact
    graph = onnx.load(artifact.model_path, load_external_data=False).graph
    weights = {t.name: t for t in graph.initializer}
    eight = sum(int(np.prod(weights[f"{name}.weight"].dims)) for name in LAYERS)
    half = artifact.manifest.float_precision == "fp16"
    rest = sum(int(np.prod(t.dims)) * (2 if half else 4) for t in graph.initializer if t.data_type in (1, 10))
    size = (artifact.path / DATA_FILE).stat().st_size
    assert eight > 0.7 * sum(int(np.prod(t.dims)) for t in graph.initializer)
    assert size <= 1.05 * (eight + rest) + 4096 * 4
    external = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    assert external == {DATA_FILE}


def test_simplified_and_traced_carry_the_same(made: Made) -> None:
    """onnxsim takes no Q/DQ away; what it is not asked for is counted."""
    for case, simplified in (("tensorrt", True), ("openvino, as traced", False)):
        manifest = made(case).artifact.manifest
        assert manifest.options["simplify"] == simplified
        assert manifest.graph["nodes"] == len(load(made(case).artifact).graph.node)
    ops = [{n.op_type for n in load(made(c).artifact).graph.node} for c in ("tensorrt", "openvino, as traced")]
    assert ops[0] - {"Cast"} == ops[1] - {"Cast"}


def test_inspect(made: Made, static: Artifact) -> None:
    """The same multiply-adds and, but for scales, the same parameters as the float32 file."""
    plain = inspect_artifact(static.path)
    for case in ("tensorrt", "onnxruntime-cpu"):
        found = inspect_artifact(made(case).artifact.path)
        assert found.gmacs == pytest.approx(plain.gmacs)
        assert plain.parameters < found.parameters < 1.02 * plain.parameters


# --- what it computes --------------------------------------------------------------------------


def eager(case: str, tiny: Checkpoint) -> FastViTHD:
    """The very module that was exported: calibration and rounding give the same every time."""
    options = ExportOptions(height=128, width=128, **CASES[case])
    return prepare(source_of(case, tiny), options, FEW, {}, silent).encoder


def as_written(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    """Without graph optimizations, which multiply integers and so round sums elsewhere."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": feed})[0]


@pytest.mark.parametrize("case", ["onnxruntime-cpu", "openvino, as traced", "any size, uint8"])
def test_the_file_is_the_eager_model(
    made: Made, tiny: Checkpoint, photographs: dict[str, Path], distance: Any, case: str
) -> None:
    levels = Preprocessor(128, 128).pixels(photographs["coffee"])[None]
    feed = levels if "uint8" in case else levels.astype(np.float32) / 255
    with torch.inference_mode():
        wanted = eager(case, tiny)(torch.from_numpy(feed))
    assert distance(as_written(load(made(case).artifact), feed), wanted) < 2e-4  # 1e-6, but for a rare tie


@pytest.mark.parametrize("case", ["tensorrt", "fp8, projector"])
def test_the_file_holds_the_eager_models_weights(made: Made, tiny: Checkpoint, case: str) -> None:
    wanted = eager(case, tiny).half().state_dict()
    graph = Graph(load(made(case).artifact))
    checked = 0
    for name, value in wanted.items():
        if name in graph.values and value.numel() > 1 and not name.endswith("zero_point"):
            np.testing.assert_array_equal(graph.array(name).astype(np.float32), value.float().numpy())
            checked += 1
    assert checked > 70


@pytest.mark.parametrize("case", CASE_NAMES)
def test_verdict(made: Made, case: str) -> None:
    report = made(case)
    verdict, manifest = report.verdict, report.artifact.manifest
    assert verdict.status == "pass"
    assert verdict.figures.sqnr_db > (18 if case.startswith("fp8") else 25)
    assert verdict.figures.rel_l2 <= 1.41 * verdict.torch.rel_l2
    judge = "openvino" if case.startswith("openvino") else "onnxruntime-cpu"
    assert verdict.backend.startswith(judge)
    assert verdict.first_bad_layer is None
    assert [f.name for f in verdict.layers][0] == "stem.0" and len(verdict.layers) == 16
    assert manifest.parity == json.loads(json.dumps(verdict.to_dict()))
    assert manifest.quantization["predicted"] == verdict.torch.to_dict()
    assert manifest.quantization["blocks"] == {layer.name: layer.torch_rel_l2 for layer in verdict.layers}
    assert any("scikit-image ships" in notice for notice in report.notices)


def test_other_sizes_and_batches(made: Made, tiny: Checkpoint, distance: Any) -> None:
    """Calibrated and traced at 128 x 128, run at others, several at once, as uint8."""
    backend = OnnxRuntimeBackend(made("any size, uint8").artifact)
    photo = np.random.default_rng(0).integers(0, 256, (3, 4, 6)).astype(np.uint8)
    for batch, height, width in ((1, 64, 64), (3, 192, 128), (2, 64, 256)):
        smooth = np.kron(photo, np.ones((1, height // 4, width // 6 + 1), np.uint8))[:, :, :width]
        levels = np.stack([np.roll(smooth, 16 * i, 2) for i in range(batch)])
        found = backend.run(levels)
        assert found.shape == (batch, height * width // 64**2, 256)
        with torch.inference_mode():
            wanted = tiny.encoder(torch.from_numpy(levels).float() / 255)
        assert distance(found, wanted) < 0.25
        assert distance(found[-1:], backend.run(levels[-1:])) < 0.05
    assert made("any size, uint8").verdict.resolutions == ["128x128", "64x64"]


def test_projector(made: Made, photographs: dict[str, Path]) -> None:
    """The connector stands behind the encoder, in float, and the features keep their direction."""
    artifact = made("fp8, projector").artifact
    checkpoint = load_checkpoint(GOLDEN / "llava_tiny")
    pixels = Preprocessor(128, 128)(photographs["astronaut"])
    with torch.inference_mode():
        wanted = checkpoint.connector(checkpoint.encoder(torch.from_numpy(pixels))).numpy()
    found = OnnxRuntimeBackend(artifact).run(pixels)
    assert found.shape == wanted.shape == (1, 4, 64)
    assert compare(wanted, found).sqnr_db > 15
    names = {t.name for t in load(artifact).graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN}
    assert not [n for n in names if n.startswith("connector")]


# --- runtimes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["onnxruntime-cpu", "openvino, as traced", "tensorrt"])
def test_openvino_runs_int8(made: Made, tiny: Checkpoint, photographs: dict[str, Path], case: str) -> None:
    backend = OpenVinoBackend(made(case).artifact)
    assert backend.computes.startswith("int8, all else in ")
    pixels = Preprocessor(128, 128)(photographs["coffee"])
    with torch.inference_mode():
        wanted = tiny.encoder(torch.from_numpy(pixels)).numpy()
    assert compare(wanted, backend.run(pixels)).sqnr_db > 22


@pytest.mark.parametrize("stored_half", [False, True])
def test_onnxruntime_runs_fp8(made: Made, photographs: dict[str, Path], stored_half: bool) -> None:
    """Left to itself its optimizer puts FP8 where its own operators refuse it."""
    artifact = made("fp8, projector").artifact
    backend = OnnxRuntimeBackend(artifact, stored_half=stored_half, taps=["stages.3.blocks.0"])
    features, inner = backend.run_taps(Preprocessor(128, 128)(photographs["coffee"]))
    assert np.isfinite(features).all() and np.isfinite(inner["stages.3.blocks.0"]).all()
    assert Encoder(artifact)(photographs["coffee"]).shape == (1, 4, 64)


def test_simplification_can_run_fp8(made: Made) -> None:
    artifact = made("fp8, projector").artifact
    options = ExportOptions(height=128, width=128, **CASES["fp8, projector"])
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128)).astype(np.uint8)
    wanted = OnnxRuntimeBackend(artifact, stored_half=True).run(levels.astype(np.float32) / 255)
    assert compare(wanted, _output(ir.load(artifact.model_path), options)).rel_l2 < 1e-6


# --- the manifest, and parity later ------------------------------------------------------------


@pytest.mark.parametrize("case", CASE_NAMES)
def test_manifest_round_trip(made: Made, case: str) -> None:
    report = made(case)
    opened = Artifact.open(report.artifact.path, verify=True)
    manifest = opened.manifest
    assert manifest.to_json() == report.artifact.manifest.to_json()
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
    embedded = json.loads({p.key: p.value for p in load(opened).metadata_props}["fvexport"])
    assert embedded["quantization"] == manifest.quantization
    record = manifest.quantization
    assert manifest.precision == record["format"] == CASES[case]["precision"]
    assert record["target"] == CASES[case].get("target", "tensorrt")
    assert manifest.float_precision == ("fp16" if record["target"] == "tensorrt" else "fp32")
    assert set(record["quantized"]) == LAYERS and record["float"] == [] and record["sensitivity"] == []
    assert record["bound_db"] is None
    assert record["data"]["samples"] == 4 and record["data"]["source"] == "sample"
    assert len(record["data"]["fingerprint"]) == 64
    assert record["method"] == ("minmax" if record["format"] == "fp8" else "weighted")
    streams = ["stream"] if record["target"] == "onnxruntime-cpu" else []
    assert record["equalization"] == ["ffn", "norm", "values", *streams]
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
    again: Callable[[str], Path], tiny: Checkpoint, case: str, name: str, factor: float
) -> None:
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
    assert verdict.passed and "within 2.0e-01" in verdict.reason
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
    backend = OnnxRuntimeBackend(artifact, taps=convolutional)
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
    manifest["quantization"]["bound_db"] = made("tensorrt").verdict.figures.sqnr_db + 1
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    verdict = check_parity(folder, checkpoint=tiny)
    assert verdict.status == "fail" and "asked for" in verdict.reason


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
        assert found["predicted"] is None or math.isfinite(sum(asdict(Figures(**found["predicted"])).values()))
        assert all(THRESHOLDS["int8"].bound(value) > 0 for value in found["blocks"].values())


@pytest.mark.parametrize(
    ("precision", "quantization"), [("fp32", {"float_precision": "fp16"}), ("int8", None), ("fp8", {})]
)
def test_precision_and_quantization_agree(made: Made, precision: str, quantization: Any) -> None:
    document = json.loads(made("tensorrt").artifact.manifest.to_json())
    document |= {"precision": precision, "quantization": quantization}
    with pytest.raises(ArtifactError, match="quantization"):
        Manifest.from_json(json.dumps(document), "here")


# --- refusals ----------------------------------------------------------------------------------


def test_the_graph_is_checked_against_the_policy(made: Made) -> None:
    model = onnx.load(made("tensorrt").artifact.model_path, load_external_data=False)
    with pytest.raises(ExportError, match=r"other layers than the policy: without \['final_conv'\]"):
        check_quantized(model, {*LAYERS, "final_conv"})
    with pytest.raises(ExportError, match=f"with \\['{CONVOLUTIONS[0]}'\\]"):
        check_quantized(model, LAYERS - {CONVOLUTIONS[0]})


def test_a_quantized_file_that_fails_is_not_written(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that is not what was prepared: found although eight bits lose much more than float32 does."""
    trace = onnx_export.trace

    def wrong(module: Any, options: ExportOptions) -> Any:
        model = trace(module, options)
        name = "stages.2.blocks.0.mlp.fc1.weight_scale"
        scale = model.graph.initializers[name]
        scale.const_value = ir.tensor(3 * scale.const_value.numpy(), name=name)
        return model

    monkeypatch.setattr(onnx_export, "trace", wrong)
    options = ExportOptions(height=64, width=64, precision="int8")
    with pytest.raises(ExportError, match="parity failed, nothing written"):
        export_onnx(tiny, tmp_path / "out", options=options, calibration=FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "calibration",
    [CalibrationOptions(calib="nowhere"), CalibrationOptions(ranges="nowhere.json")],
    ids=["pictures", "ranges"],
)
def test_nothing_to_calibrate_on(tmp_path: Path, tiny: Checkpoint, calibration: CalibrationOptions) -> None:
    with pytest.raises(Exception, match="nowhere") as caught:
        export_onnx(tiny, tmp_path / "out", options=ExportOptions(64, 64, precision="int8"), calibration=calibration)
    assert type(caught.value).__name__ in ("ConfigError", "ImageError")
    assert not list(tmp_path.iterdir())


def test_a_bound_out_of_reach_is_found_before_the_trace(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace", None)
    calibration = CalibrationOptions(samples=2, min_sqnr=150)
    with pytest.raises(ConfigError, match=r"no quantized model reaches 150\.0 dB.*--min-sqnr"):
        export_onnx(tiny, tmp_path / "out", options=ExportOptions(64, 64, precision="int8"), calibration=calibration)
    assert not list(tmp_path.iterdir())
