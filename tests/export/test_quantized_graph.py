"""INT8 and FP8 files, node by node: which carry Q/DQ, and in which types."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export.artifact import DATA_FILE, Artifact
from fvexport.export.inspection import inspect_artifact
from fvexport.export.onnx_export import ExportReport
from fvexport.export.rules import check_quantized, check_rules

BLOCKS = [f"stages.{s}.blocks.{i}" for s, depth in enumerate((1, 1, 2, 1, 1)) for i in range(depth)]
CONVOLUTIONS = [f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")]
PRODUCTS = [f"{block}.token_mixer.{layer}" for block in BLOCKS[-2:] for layer in ("qkv", "proj")]
LAYERS = {*CONVOLUTIONS, *PRODUCTS}
CASES = ["tensorrt", "onnxruntime-cpu", "openvino, as traced", "fp8, projector", "any size, uint8"]
Made = Callable[[str], ExportReport]


def load(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.model_path)


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


@pytest.mark.parametrize("case", CASES)
def test_valid_and_within_the_rules(made: Made, tiny: Checkpoint, case: str) -> None:
    artifact = made(case).artifact
    onnx.checker.check_model(str(artifact.model_path), full_check=True)
    model = onnx.load(artifact.model_path, load_external_data=False)
    check_rules(model, tiny.encoder.config, projector="projector" in case)
    check_quantized(model, LAYERS)
    assert artifact.manifest.opset == 20
    kept = made(case).artifact.manifest.graph.kept_unsimplified
    assert kept is None or (importlib.util.find_spec("onnxsim") is None and "onnxsim is not installed" in kept)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert len(inferred.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("case", CASES)
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


@pytest.mark.parametrize("case", CASES)
def test_activations_are_quantized_where_the_policy_says(made: Made, case: str) -> None:
    graph, quantization = Graph(load(made(case).artifact)), made(case).artifact.manifest.quantization
    target, fp8 = quantization.target, case.startswith("fp8")
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


@pytest.mark.parametrize("case", CASES)
def test_what_stays_float(made: Made, case: str) -> None:
    """GELU, softmax, LayerNorm and the skip branch take no quantized value, but what onnxruntime must have."""
    graph = Graph(load(made(case).artifact))
    both_ends = made(case).artifact.manifest.quantization.target == "onnxruntime-cpu"
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


@pytest.mark.parametrize("case", CASES)
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
        assert manifest.options.simplify == simplified
        assert manifest.graph.nodes == len(load(made(case).artifact).graph.node)
    ops = [{n.op_type for n in load(made(c).artifact).graph.node} for c in ("tensorrt", "openvino, as traced")]
    assert ops[0] - {"Cast"} == ops[1] - {"Cast"}


def test_inspect(made: Made, static: Artifact) -> None:
    """The same multiply-adds and, but for scales, the same parameters as the float32 file."""
    plain = inspect_artifact(static.path)
    for case in ("tensorrt", "onnxruntime-cpu"):
        found = inspect_artifact(made(case).artifact.path)
        assert found.gmacs == pytest.approx(plain.gmacs)
        assert plain.parameters < found.parameters < 1.02 * plain.parameters
