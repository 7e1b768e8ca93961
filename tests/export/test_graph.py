"""The graph that was made: valid under full shape inference, and as our rules promise; and the rules do catch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fvexport.core.errors import ExportError
from fvexport.encoder.config import get_variant
from fvexport.export.artifact import Artifact
from fvexport.export.rules import check_rules

TINY = get_variant("tiny")
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
KINDS: dict[str, dict[str, Any]] = {
    "static": {}, "batch": {"batch": None}, "resolution": {"dynamic_res": True},
    "all": {"batch": None, "dynamic_res": True}, "batch 3": {"batch": 3},
}  # fmt: skip
# Every precision with every kind, every opset, and each opset with a dynamic kind or a half at least once.
CASES = [
    ("fp32", "static", 20), ("fp32", "batch", 18), ("fp32", "resolution", 19), ("fp32", "all", 20),
    ("fp16", "static", 20), ("fp16", "batch", 21), ("fp16", "resolution", 23), ("fp16", "all", 18),
    ("fp16", "static", 19),
    ("bf16", "static", 22), ("bf16", "batch", 23), ("bf16", "resolution", 22), ("bf16", "all", 22),
    ("fp32", "batch 3", 22),
]  # fmt: skip
LONG = [("fp32", "all", 23)]  # whose opset and whose sizes have cases of their own above


def dimensions(value: onnx.ValueInfoProto) -> list[Any]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def load(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.model_path, load_external_data=False)


@pytest.mark.parametrize(
    ("precision", "kind", "opset"),
    [
        pytest.param(*case, id="-".join(map(str, case)), marks=[pytest.mark.long] if case in LONG else [])
        for case in CASES + LONG
    ],
)
def test_graph(exported: Callable[..., Artifact], precision: str, kind: str, opset: int) -> None:
    options = KINDS[kind]
    artifact = exported(precision=precision, opset=opset, **options)
    onnx.checker.check_model(str(artifact.model_path), full_check=True)
    model = load(artifact)
    check_rules(model, TINY)
    graph, ops = model.graph, Counter(node.op_type for node in model.graph.node)
    assert {o.domain: o.version for o in model.opset_import} == {"": opset}
    assert artifact.manifest.opset == opset

    # Sizes of inputs and outputs, by name where they may change, in the file and in the manifest.
    batch = "batch" if kind in ("batch", "all") else options.get("batch", 1)
    sides = ["height", "width"] if options.get("dynamic_res") else [128, 128]
    tokens = "tokens" if options.get("dynamic_res") else 4
    assert dimensions(graph.input[0]) == list(artifact.manifest.input.shape) == [batch, 3, *sides]
    assert dimensions(graph.output[0]) == list(artifact.manifest.output.shape) == [batch, tokens, 256]
    assert (graph.input[0].name, graph.output[0].name) == ("pixel_values", "image_features")
    assert len(graph.input) == len(graph.output) == 1

    # Casts of input and output alone, weights in the precision asked for, all but small ones beside the graph.
    casts = [n for n in graph.node if n.op_type == "Cast"]
    assert [n.input[0] for n in casts[:1]] == ([] if precision == "fp32" else ["pixel_values"])
    assert [n.output[0] for n in casts[1:]] == ([] if precision == "fp32" else ["image_features"])
    weights = [t for t in graph.initializer if t.data_type != TensorProto.INT64]
    assert {t.data_type for t in weights} == {TYPES[precision]}
    assert all(t.data_location == TensorProto.EXTERNAL for t in weights if np.prod(t.dims) >= 1024)

    # Nothing that should have folded, and nothing computed at run time that could be constant.
    assert not {"BatchNormalization", "Dropout", "Identity", "Constant", "Einsum", "Sqrt", "Pow"} & set(ops)
    assert ops["LayerNormalization"] == ops["Softmax"] == 2
    assert ops["Gelu"] == (18 if opset >= 20 else 0)  # stem 3, embeddings 2 each, ConvFFNs 6, the last convolution
    assert ops["Erf"] == (0 if opset >= 20 else 18)
    assert ops["Conv"] == 3 + 8 + 2 + 4 + 18 + 3
    assert ops["MatMul"] + ops["Gemm"] == 2 * 4
    assert ops["Shape"] + ops["Gather"] <= (4 if options.get("dynamic_res") else 0)
    assert artifact.manifest.graph.nodes == len(graph.node)
    assert len(graph.node) <= (120 if opset >= 20 else 200)

    # Names speak of modules.
    assert len({n.name for n in graph.node}) == len(graph.node)
    made = {out for node in graph.node for out in node.output}
    assert {"stem.2", "stages.0.blocks.0", "stages.3.pos_emb", "stages.4.blocks.0", "final_conv"} <= made
    depthwise = [n for n in graph.node if n.op_type == "Conv" and ".token_mixer" in n.name]
    groups = [a.i for n in depthwise for a in n.attribute if a.name == "group"]
    assert groups == [8, 16, 32, 32]


def test_smallest_resolution(exported: Callable[..., Artifact]) -> None:
    """One token in the last stage: its softmax is 1, and may fold."""
    check_rules(load(exported(height=64, width=64)), TINY)


def test_plain_and_simplified_obey_the_same_rules(exported: Callable[..., Artifact], static: Artifact) -> None:
    plain = exported(simplify=False)
    check_rules(load(plain), TINY)
    assert len(load(static).graph.node) <= len(load(plain).graph.node)


# --- each rule, broken --------------------------------------------------------------------------


def find(model: onnx.ModelProto, kind: str, part: str = "") -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind and part in n.name)


def after(model: onnx.ModelProto, node: onnx.NodeProto, kind: str, *more: str, **attributes: Any) -> onnx.NodeProto:
    """Puts a node behind `node`, which keeps its output's name for those that read it."""
    index = list(model.graph.node).index(node) + 1
    inner = f"{node.output[0]}/before"
    new = helper.make_node(kind, [inner, *more], [node.output[0]], name=f"{node.name}/{kind}", **attributes)
    node.output[0] = inner
    model.graph.node.insert(index, new)
    return new


def scalar(model: onnx.ModelProto, name: str = "two") -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2), name))
    return name


def batch_norm(model: onnx.ModelProto) -> None:
    after(model, find(model, "Conv", "mlp"), "BatchNormalization", "s", "b", "m", "v")


def layer_scale(model: onnx.ModelProto) -> None:
    after(model, find(model, "Conv", "mlp.fc2"), "Mul", scalar(model))


def scaled_scores(model: onnx.ModelProto) -> None:
    scores = next(
        n for n in model.graph.node if n.op_type == "MatMul" and "token_mixer" in n.name and "qkv" not in n.name
    )
    after(model, scores, "Div", scalar(model))


def masked_scores(model: onnx.ModelProto) -> None:
    after(model, find(model, "Softmax"), "Relu")


def second_norm(model: onnx.ModelProto) -> None:
    node = find(model, "LayerNormalization")
    after(model, node, "LayerNormalization", *node.input[1:])


def two_mixer_convolutions(model: onnx.ModelProto) -> None:
    node = find(model, "Conv", "token_mixer")
    after(model, node, "Conv", *node.input[1:])


def lost_convolution(model: onnx.ModelProto) -> None:
    node = find(model, "Conv", "mlp.fc1")
    node.op_type = "Identity"


def plain_gelu(model: onnx.ModelProto) -> None:
    find(model, "Gelu").op_type = "Relu"


def erf_gelu(model: onnx.ModelProto) -> None:
    after(model, find(model, "Gelu"), "Erf")


def transposes(model: onnx.ModelProto) -> None:
    after(model, find(model, "Conv", "stem.0"), "Transpose", perm=[0, 2, 3, 1])
    after(model, find(model, "Transpose", "stem.0"), "Transpose", perm=[0, 3, 1, 2])


def bare_transposes(model: onnx.ModelProto) -> None:
    after(model, find(model, "Conv", "stem.0"), "Transpose")
    after(model, find(model, "Transpose", "stem.0"), "Transpose")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (batch_norm, "BatchNormalization nodes: 1 instead of 0"),
        (layer_scale, "Mul nodes: 2 instead of 1"),
        (scaled_scores, "attention MatMul nodes: 1 instead of 2"),
        (masked_scores, "attention MatMul nodes: 1 instead of 2"),
        (second_norm, "LayerNormalization nodes: 3 instead of 2"),
        (two_mixer_convolutions, "convolutions in RepMixers: 5 instead of 4"),
        (lost_convolution, "convolutions: 37 instead of 38"),
        (plain_gelu, "Gelu nodes: 17 instead of 18"),
        (erf_gelu, "Erf nodes (Gelu must be one): 1 instead of 0"),
        (transposes, "Transpose pair"),
        (bare_transposes, "Transpose pair"),
    ],
)
def test_rules_catch(static: Artifact, damage: Callable[[onnx.ModelProto], None], words: str) -> None:
    model = copy.deepcopy(load(static))
    check_rules(model, TINY)
    damage(model)
    with pytest.raises(ExportError) as caught:
        check_rules(model, TINY)
    assert words in str(caught.value)


def test_all_broken_rules_are_named(static: Artifact) -> None:
    model = copy.deepcopy(load(static))
    batch_norm(model)
    transposes(model)
    with pytest.raises(ExportError, match=r"BatchNormalization.*; Transpose pair"):
        check_rules(model, TINY)


def test_transposes_that_do_something_are_allowed(static: Artifact) -> None:
    model = copy.deepcopy(load(static))
    after(model, find(model, "Conv", "stem.0"), "Transpose", perm=[0, 2, 3, 1])
    after(model, find(model, "Transpose", "stem.0"), "Transpose", perm=[0, 2, 3, 1])
    check_rules(model, TINY)
