"""Clean-up of a traced graph, with its weights standing aside.

Weights become graph inputs while the structure is simplified and come back afterwards: the
work costs megabytes instead of several copies of the model, and no pass can touch a value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from . import onnxsim_process

WEIGHT_BYTES = 256
"""Initializers from this size on are weights; smaller ones are shapes, axes and scalars."""


def tidy(model: ir.Model) -> None:
    """Our own clean-up, in place: constant reshapes, shared subexpressions, no dead nodes."""
    reshapes_to_constants(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def reshapes_to_constants(model: ir.Model) -> None:
    """Replaces computed Reshape targets by constants (0 copies a size, -1 infers one), in place.

    A dynamic graph computes every target from image sizes by chains of Shape, Mul and Concat.
    One unknown size needs none of that; two need the Shape of a tensor that has them already.
    """
    seen: dict[str, ir.Value] = {}
    for index, node in enumerate(list(model.graph)):
        if node.op_type == "Reshape" and not node.inputs[1].is_initializer():  # type: ignore[union-attr]
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            target = _reshape_target(source.shape, result.shape)
            if target is not None:
                value = ir.Value(name=f"{node.name}.shape_{index}", const_value=ir.tensor(np.array(target, np.int64)))
                model.graph.register_initializer(value)
                node.replace_input_with(1, value)
                node.attributes.pop("allowzero", None)  # a 0 copies the size, it is no size
            elif (like := seen.get(_key(result) or "")) is not None:
                shape = ir.node("Shape", [like], name=f"{node.name}.shape_{index}")
                shape.outputs[0].name = f"{like.name}.shape_{index}"
                model.graph.insert_before(node, shape)
                node.replace_input_with(1, shape.outputs[0])
        for output in node.outputs:
            if (key := _key(output)) is not None:
                seen.setdefault(key, output)


def _key(value: ir.Value) -> str | None:
    """Values with equal keys have equal sizes; None where a size has no name, which equals nothing."""
    known = value.shape is not None and all(isinstance(d, int) or d.value is not None for d in value.shape)
    return str(value.shape) if known else None


def _reshape_target(before: ir.Shape | None, after: ir.Shape | None) -> list[int] | None:
    """The constant Reshape target, or None where more than one size would have to be inferred."""
    if before is None or after is None:
        return None
    target = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        elif axis < len(before) and size.value is not None and str(before[axis]) == str(size):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def simplify(model: ir.Model) -> tuple[ir.Model, str | None]:
    """Runs onnxsim on the structure of `model`; returns the new graph and None, or `model` and why.

    Nodes keep their names and weights their values. Source: github.com/daquexian/onnx-simplifier.
    """
    names = {out.name: node.name for node in model.graph for out in node.outputs}
    weights = {n: v.const_value for n, v in model.graph.initializers.items() if _is_weight(v)}
    skeleton = _without_weights(model, weights)
    # It folds constants through onnxruntime and NumPy, which has no bfloat16, and complains aloud.
    halves = any(v.dtype == ir.DataType.BFLOAT16 for v in model.graph.initializers.values())
    try:
        proto = onnxsim_process.simplify(skeleton, fold_constants=not halves)
        with onnxsim_process.taking_answer():
            return _completed(proto, weights, names), None
    except onnxsim_process.OnnxsimError as error:  # the traced graph is as good
        return model, str(error)


def _completed(proto: onnx.ModelProto, weights: dict[str, Any], names: dict[str | None, str | None]) -> ir.Model:
    """What onnxsim returned, with its weights, and with the names of nodes by those of their outputs."""
    result = ir.from_proto(proto)
    inputs = {v.name for v in result.graph.inputs}
    missing = [n for n in weights if n not in inputs]
    if missing:
        raise onnxsim_process.OnnxsimError(f"onnxsim dropped {len(missing)} weights, first {missing[0]}")
    if any(isinstance(v.const_value, ir.ExternalTensor) for v in result.graph.initializers.values()):
        raise ValueError("it refers to a file")
    _weights_back(result, weights)
    for node in result.graph:
        node.name = names.get(node.outputs[0].name) or f"{node.outputs[0].name}/{node.op_type}"
    return result


def structure(model: ir.Model) -> onnx.ModelProto:
    """The graph alone, as a small proto whose weights are graph inputs; `model` stays as it is."""
    return _without_weights(model, [n for n, v in model.graph.initializers.items() if _is_weight(v)])


def _is_weight(value: ir.Value) -> bool:
    """Whatever is large; and whatever is dequantized, however small, or folding would make floats of it."""
    if value.const_value is None:
        return False
    dequantized = any(node.op_type == "DequantizeLinear" and index == 0 for node, index in value.uses())
    return dequantized or value.const_value.nbytes >= WEIGHT_BYTES


def _without_weights(model: ir.Model, weights: Iterable[str]) -> onnx.ModelProto:
    """The model as a small proto whose weights are graph inputs; `model` is as before afterwards."""
    aside: list[tuple[ir.Value, Any]] = []
    for name in weights:
        value = model.graph.initializers[name]
        aside.append((value, value.const_value))
        assert value.const_value is not None
        value.shape = ir.Shape(list(value.const_value.shape.numpy()))
        value.dtype = value.const_value.dtype
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    proto = ir.to_proto(model)
    for value, tensor in aside:
        model.graph.inputs.remove(value)
        value.const_value = tensor
        model.graph.register_initializer(value)
    return proto


def _weights_back(model: ir.Model, weights: dict[str, Any]) -> None:
    for value in [v for v in model.graph.inputs if v.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[value.name]  # type: ignore[index]
        model.graph.register_initializer(value)


def name_dimensions(model: ir.Model) -> None:
    """Dynamic sizes of input and output get their plain names; those in between are left to inference."""
    borders = {*model.graph.inputs, *model.graph.outputs}
    axes = {4: ("batch", "channels", "height", "width"), 3: ("batch", "tokens", "channels")}
    for value in borders:
        assert value.shape is not None
        names = axes[len(value.shape)]
        value.shape = ir.Shape([d if isinstance(d, int) else names[i] for i, d in enumerate(value.shape)])
    if any(not isinstance(d, int) for v in model.graph.inputs for d in v.shape or ()):
        for node in model.graph:
            for output in node.outputs:
                if output not in borders:
                    output.shape = None
