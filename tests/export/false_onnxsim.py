"""Stand-ins for `onnxsim.simplify`, each with a fault; read in the process that serves onnxsim."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def no_text(*_: Any, **__: Any) -> Any:
    raise RuntimeError


def with_text(*_: Any, **__: Any) -> Any:
    raise ValueError("cannot fold this\nand more")


def not_checked(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    return model, False


def without_a_weight(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.input[-1]
    return result, True


def without_a_gelu(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    gelu = next(n for n in result.graph.node if n.op_type == "Gelu")
    for node in result.graph.node:
        node.input[:] = [gelu.input[0] if name == gelu.output[0] else name for name in node.input]
    result.graph.node.remove(gelu)
    return result, True


def other_attribute(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    """The same operators and names, and yet other numbers."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                attribute.f = 0.5
    return result, True


def other_wiring(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    add = [n for n in result.graph.node if n.op_type == "Add"][-1]
    add.input[1] = add.input[0]
    return result, True


def does_not_run(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    """Loads, and fails on the first image."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    bad = helper.make_node("Gather", ["pixel_values", "far"], ["gone"], name="bad", axis=0)
    result.graph.initializer.append(numpy_helper.from_array(np.array([99]), "far"))
    result.graph.node.insert(0, bad)
    conv = next(n for n in result.graph.node if n.op_type == "Conv")
    conv.input[0] = "gone"
    return result, True


def aborts(*_: Any, **__: Any) -> Any:
    os.abort()


def exits(*_: Any, **__: Any) -> Any:
    os._exit(3)


def hangs(*_: Any, **__: Any) -> Any:
    time.sleep(60)
