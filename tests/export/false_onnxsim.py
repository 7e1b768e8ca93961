"""Stand-ins for `onnxsim.simplify`, each with a fault; read in the process that serves onnxsim."""

from __future__ import annotations

import contextlib
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


# --- answers that are no graph ----------------------------------------------------------------------


def no_proto(model: onnx.ModelProto, **_: Any) -> tuple[Any, bool]:
    class Garbage:
        def SerializeToString(self) -> bytes:  # noqa: N802
            return b"\xff\x07 no proto"

    return Garbage(), True


def text_as_bytes(model: onnx.ModelProto, **_: Any) -> tuple[Any, bool]:
    class Text:
        def SerializeToString(self) -> str:  # noqa: N802
            return "text"

    return Text(), True


def into_our_pipe(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    for descriptor in range(3, 20):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"warning: \xff" * 4)
    return model, True


def few_bytes_into_our_pipe(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    for descriptor in range(3, 20):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\n")
    return model, True


def huge_size_into_our_pipe(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    for descriptor in range(3, 20):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"fvexport" + b"\xff" * 8)
    return model, True


def unknown_type_of_a_constant(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    if not model.graph.initializer:
        model.graph.initializer.append(numpy_helper.from_array(np.array([99]), "one"))
    model.graph.initializer[0].data_type = 99
    return model, True


def unknown_type_of_an_input(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    model.graph.input[0].type.tensor_type.elem_type = 77
    return model, True


def value_twice(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    model.graph.node.append(model.graph.node[0])
    return model, True


def input_twice(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    model.graph.input.append(model.graph.input[-1])
    return model, True


def without_outputs(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    del model.graph.output[:]
    return model, True


def without_the_shape_of_the_output(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model, True


def without_opset(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    del model.opset_import[:]
    return model, True


def empty(*_: Any, **__: Any) -> tuple[onnx.ModelProto, bool]:
    return onnx.ModelProto(), True


def node_without_outputs(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    model.graph.node.append(helper.make_node("Identity", [model.graph.node[0].output[0]], []))
    return model, True


def constant_in_a_file(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    tensor = numpy_helper.from_array(np.array([1.0]), "afar")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="missing")
    model.graph.initializer.append(tensor)
    return model, True


def constant_without_values(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    tensor = numpy_helper.from_array(np.array([1.0, 2.0]), "short")
    tensor.raw_data = b"\0"
    model.graph.initializer.append(tensor)
    return model, True


def forks_and_exits(*_: Any, **__: Any) -> Any:
    """What it forked holds the pipes."""
    if os.fork() == 0:
        time.sleep(40)
        os._exit(0)
    os._exit(3)


def forks_a_daemon_and_exits(*_: Any, **__: Any) -> Any:
    """As above, and out of reach of a signal to the process group."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(15)
        os._exit(0)
    os._exit(3)


def forks_and_works(model: onnx.ModelProto, **_: Any) -> tuple[onnx.ModelProto, bool]:
    if os.fork() == 0:
        time.sleep(40)
        os._exit(0)
    return model, True
