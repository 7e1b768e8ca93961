"""Half precision where the hardware has none: every operator in float32, every stored value rounded.

That is what a GPU does (products are accumulated in float32, results stored in half), and what
CPU runtimes do not: onnxruntime keeps float32 between fp16 operators, which hides overflow,
and has no bf16 convolution at all. The graph, its weights and its types are the file's own.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ...core.dtypes import DTYPES

MOVES_ONLY = {"Reshape", "Transpose", "Slice", "Squeeze", "Split", "Identity", "Flatten"}
"""Operators whose outputs are values of their input, rounded already."""


def with_rounding(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy of a half-precision `model` that computes in float32 and rounds what it stores.

    Inputs and outputs of the half type become float32. Weights need not be loaded.
    """
    half = TensorProto.DataType.Value(DTYPES[precision].upper())
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    types = _types(model)
    nodes: list[onnx.NodeProto] = []

    def cast(source: str, to: int, name: str) -> str:
        nodes.append(helper.make_node("Cast", [source], [name], name=name, to=to))
        return name

    wide = {t.name: cast(t.name, TensorProto.FLOAT, f"{t.name}/wide") for t in graph.initializer if t.data_type == half}
    for tensor_spec in (*graph.input, *graph.output):
        if tensor_spec.type.tensor_type.elem_type == half:
            tensor_spec.type.tensor_type.elem_type = TensorProto.FLOAT
            if tensor_spec in graph.input:
                rounded = cast(tensor_spec.name, half, f"{tensor_spec.name}/half")
                wide[tensor_spec.name] = cast(rounded, TensorProto.FLOAT, f"{tensor_spec.name}/wide")
    for node in graph.node:
        new = nodes.append
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [wide.get(name, name) for name in node.input]
        halves = [i for i, name in enumerate(node.output) if types.get(name) == half]
        if node.op_type == "Cast" and halves:
            copy.attribute[0].i = TensorProto.FLOAT
        if not halves or node.op_type in MOVES_ONLY:
            new(copy)
            continue
        for i in halves:
            copy.output[i] = f"{node.output[i]}/float"
        new(copy)
        for i in halves:
            cast(cast(f"{node.output[i]}/float", half, f"{node.output[i]}/half"), TensorProto.FLOAT, node.output[i])
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return known | {t.name: t.data_type for t in graph.initializer}
