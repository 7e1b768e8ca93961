"""Reading an artifact's ONNX file, which somebody else may have made or changed.

Runtimes trust a graph: one with wrong sizes makes them crash, and one whose weights lie elsewhere makes them read other
files, or memory. So `read_graph` accepts only what fvexport writes: these fields, ONNX's operators without graphs in
them, weights that lie in the artifact's files, the manifest's input and output, and shapes that follow from one
another. It reads no weights. What a parser could read in two ways, such as a key that occurs twice, is refused:
runtimes have parsers of their own.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from ..core.errors import ArtifactError, first_line
from ..core.input_file import read_bytes
from ..encoder.config import FastViTHDConfig
from .manifest import AGAIN, Manifest, TensorSpec
from .operators import operators
from .tensor_names import PLUGIN_DOMAIN, PLUGIN_NAME

LIMIT = 256 << 20
"""Most bytes of the graph's file, whose weights lie beside it."""
MAX_NODES = 1 << 12
"""Most nodes, whatever the manifest's architecture: ten times those of the largest released export."""
NODES_PER_OPERATOR, MORE_NODES = 8, 256
"""Most nodes for each of the architecture's operators, and besides: four times what exports have.

OpenVINO took half a minute to compile a chain of 1000 Erf, and over ten for one of 20000.
"""
MAX_NUMBERS = 16
"""Most numbers of an attribute."""
SLACK = 8
"""How many times larger than the architecture's largest tensor a tensor may be: packed or padded, never more."""

FIELDS = {
    "ModelProto": {
        "ir_version", "opset_import", "producer_name", "producer_version", "domain", "model_version", "doc_string",
        "graph", "metadata_props", "functions",
    },
    "GraphProto": {"node", "name", "initializer", "doc_string", "input", "output", "value_info", "metadata_props"},
    "NodeProto": {"input", "output", "name", "op_type", "domain", "attribute", "doc_string", "metadata_props"},
    "AttributeProto": {"name", "type", "f", "i", "s", "t", "floats", "ints", "doc_string"},
    "TensorProto": {
        "dims", "data_type", "name", "raw_data", "float_data", "int32_data", "int64_data", "external_data",
        "data_location", "doc_string",
    },
    "FunctionProto": {"name", "input", "output", "attribute", "node", "doc_string", "opset_import", "domain"},
    "TypeProto": {"tensor_type", "denotation"},
    "Dimension": {"dim_value", "dim_param", "denotation"},
}  # fmt: skip
"""Fields that may be set, by message; of messages that are not named here all."""

TYPES: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float32", 4), TensorProto.FLOAT16: ("float16", 2), TensorProto.BFLOAT16: ("bfloat16", 2),
    TensorProto.UINT8: ("uint8", 1), TensorProto.INT8: ("int8", 1), TensorProto.INT32: ("int32", 4),
    TensorProto.INT64: ("int64", 8), TensorProto.BOOL: ("bool", 1), TensorProto.FLOAT8E4M3FN: ("float8_e4m3fn", 1),
}  # fmt: skip
"""Types of values: the manifest's name, and bytes of one value."""

_AXIS, _FLAG, _SIZE = (-8, 8), (0, 1), (1, 1 << 15)
REFUSED = re.compile(
    "Gather(Elements|ND)|(Scatter|TensorScatter|String|Regex|Sequence|Optional|Random|SplitToSequence|ConcatFromSequence"
    "|Adagrad|Adam|Momentum|Gradient|Max(Unpool|RoiPool)|RoiAlign|GridSample|AffineGrid|SoftmaxCrossEntropyLoss"
    "|NegativeLogLikelihoodLoss|Bernoulli|Multinomial|Dropout).*|OneHot|ReverseSequence|Compress|NonZero|Unique|TopK"
    "|NonMaxSuppression|TfIdfVectorizer|LabelEncoder|ImageDecoder"
)
"""Operators whose result depends on indices that are computed, on chance or on texts: an encoder needs none.

Runtimes differ in what they do with an index that is out of range.
"""
BOUNDS: dict[str, dict[str, tuple[int, int]]] = {
    "Cast": {"to": (1, max(TYPES)), "saturate": _FLAG},
    "Conv": {
        "dilations": _SIZE, "group": _SIZE, "kernel_shape": _SIZE, "pads": (0, 1 << 10), "strides": _SIZE,
    },
    "DequantizeLinear": {"axis": _AXIS, "block_size": (0, 0), "output_dtype": (0, max(TYPES))},
    "Gemm": {"alpha": (-1, 1), "beta": (-1, 1), "transA": _FLAG, "transB": _FLAG},
    "LayerNormalization": {"axis": _AXIS, "epsilon": (0, 1 << 31), "stash_type": (1, max(TYPES))},
    "QuantizeLinear": {
        "axis": _AXIS, "saturate": _FLAG, "block_size": (0, 0), "output_dtype": (0, max(TYPES)),
        "precision": (0, max(TYPES)),
    },
    "Split": {"axis": _AXIS, "num_outputs": (1, 64)},
    "Transpose": {"perm": (0, 7)},
}  # fmt: skip
"""Bounds of numbers among attributes, by operator: runtimes crash beyond some of them."""
ANY_NUMBER = (-(1 << 31), 1 << 31)
PLUGIN = f"{PLUGIN_DOMAIN}::{PLUGIN_NAME}"
PLUGIN_ATTRIBUTES = ("aot", "plugin_namespace", "plugin_version")


@dataclass(frozen=True)
class TensorInfo:
    """Type (of `onnx.TensorProto`) and shape of a tensor."""

    kind: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * TYPES[self.kind][1]


class _RefusedError(Exception):
    """What a file of fvexport has not."""


def read_graph(path: Path, manifest: Manifest) -> onnx.ModelProto:
    """The graph of an artifact's ONNX file, without its weights, checked.

    Args:
        path: the file; the manifest's other files lie beside it.
        manifest: of the artifact, whose files have the sizes that it says.

    Raises ArtifactError for a file that cannot be read, and for one that fvexport would not have written.
    """
    try:
        content = read_bytes(path, LIMIT)
        model = onnx.ModelProto.FromString(content)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}; {AGAIN}") from None
    except MemoryError:
        raise
    except Exception as error:  # protobuf's DecodeError
        raise ArtifactError(f"{path} is not a readable ONNX file ({first_line(error)}); {AGAIN}") from None
    try:
        _check_messages(model)
        _check_tensors(model.graph.initializer, path.parent, manifest)
        _check_interface(model, manifest)
        _check_nodes(model, manifest)
        _check_shapes(model, manifest)
    except _RefusedError as problem:
        raise ArtifactError(f"{path} is not a file that fvexport wrote: {str(problem)[:400]}; {AGAIN}") from None
    return model


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, type and shape of an input or output of a graph, as the manifest records them."""
    kind = value.type.tensor_type
    dtype = TYPES.get(kind.elem_type, (f"type {kind.elem_type}",))[0]
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def infer_tensors(model: onnx.ModelProto, input_shape: tuple[int, ...]) -> dict[str, TensorInfo]:
    """Type and shape of every tensor once the input has `input_shape`.

    Raises ValueError where they contradict each other, or one stays unknown.
    """
    fixed = _without_weights(model)
    graph = fixed.graph
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.input[0].type.tensor_type.shape.dim[:]
    graph.input[0].type.tensor_type.shape.dim.extend(
        onnx.TensorShapeProto.Dimension(dim_value=size) for size in input_shape
    )
    try:
        # data_prop: dynamic files copy sizes through Shape, and only its values tell what Reshape makes.
        graph = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    except MemoryError:
        raise
    except Exception as error:  # InferenceError, RuntimeError and others, by the operator
        raise ValueError(first_line(error)) from None
    found = {t.name: TensorInfo(t.data_type, tuple(t.dims)) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if not kind.HasField("shape") or any(not d.HasField("dim_value") for d in kind.shape.dim):
            raise ValueError(f"the shape of {value.name} stays unknown")
        found[value.name] = TensorInfo(kind.elem_type, tuple(d.dim_value for d in kind.shape.dim))
    return found


# --- the parts of a file ----------------------------------------------------------------------------


def _check_messages(model: onnx.ModelProto) -> None:
    """Raises unless every field is one that fvexport writes, and every text is UTF-8."""
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise _RefusedError("it has fields that ONNX does not define")
    for message in _messages(model):
        name = message.DESCRIPTOR.name
        known = FIELDS.get(name)
        for field, value in message.ListFields():
            if known is not None and field.name not in known:
                raise _RefusedError(f"a {name} has the field {field.name}")
            if field.type == field.TYPE_STRING:
                texts = (value,) if isinstance(value, str | bytes) else value
                if any(isinstance(text, bytes) for text in texts):
                    raise _RefusedError(f"a {name} has a {field.name} that is not UTF-8")


def _messages(message: Any) -> Iterator[Any]:
    """A message, and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if isinstance(value, Iterable) else (value,):
                yield from _messages(inner)


def _check_tensors(tensors: Iterable[TensorProto], folder: Path, manifest: Manifest) -> None:
    """Raises unless each tensor has as many bytes as its type and shape need: in the file, or in another of ours."""
    used: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.data_type not in TYPES:
            raise _RefusedError(f"{tensor.name} has the type {tensor.data_type}")
        if any(size < 0 for size in tensor.dims):
            raise _RefusedError(f"{tensor.name} has the shape {list(tensor.dims)}")
        needed = math.prod(tensor.dims) * TYPES[tensor.data_type][1]
        if tensor.data_location == TensorProto.EXTERNAL:
            used[_external(tensor, needed, folder, manifest)] += needed
        elif tensor.external_data:
            raise _RefusedError(f"{tensor.name} names external data and is not external")
        wanted = 0 if tensor.external_data else needed
        if (found := _stored_bytes(tensor)) != wanted:
            raise _RefusedError(f"{tensor.name} has {found} bytes in the file, and its shape needs {wanted}")
    for location, size in used.items():
        if size > manifest.files[location].bytes:
            raise _RefusedError(f"its weights overlap in {location}")


def _stored_bytes(tensor: TensorProto) -> int:
    """Bytes of the values that the message itself has, -1 if they are in the wrong field, or in two."""
    lists: dict[str, set[int]] = {"float_data": {TensorProto.FLOAT}, "int64_data": {TensorProto.INT64}}
    lists["int32_data"] = TYPES.keys() - {TensorProto.FLOAT, TensorProto.INT64}
    filled = [name for name in lists if len(getattr(tensor, name))]
    if not filled:
        return len(tensor.raw_data)
    if len(filled) > 1 or tensor.raw_data or tensor.data_type not in lists[filled[0]]:
        return -1
    return len(getattr(tensor, filled[0])) * TYPES[tensor.data_type][1]


def _external(tensor: TensorProto, needed: int, folder: Path, manifest: Manifest) -> str:
    """The file that holds a tensor's values, all of them; raises for any other place."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or entries.keys() != {"location", "offset", "length"}:
        keys = ", ".join(entry.key for entry in tensor.external_data)
        raise _RefusedError(f"{tensor.name} has external data with the keys {keys}, not location, offset, length")
    location = entries["location"]
    if Path(location).name != location or "\0" in location:
        raise _RefusedError(f"it looks for weights at {location!r}, outside its folder")
    if location not in manifest.files or location == "":
        raise _RefusedError(f"it looks for weights in {location!r}, which the manifest does not name")
    if not all(re.fullmatch("0|[1-9][0-9]{0,17}", entries[key]) for key in ("offset", "length")):
        raise _RefusedError(f"{tensor.name} has external data at {entries['offset']!r}, {entries['length']!r} bytes")
    offset, length = int(entries["offset"]), int(entries["length"])
    if length != needed:
        raise _RefusedError(f"{tensor.name} has {length} bytes, and its shape needs {needed}")
    if offset + length > manifest.files[location].bytes:
        raise _RefusedError(f"{tensor.name} ends at byte {offset + length}, after the end of {folder / location}")
    return location


def _check_interface(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Raises unless the graph has the manifest's input, output and operator set, and no others."""
    graph = model.graph
    for name, values, spec in (("input", graph.input, manifest.input), ("output", graph.output, manifest.output)):
        if len(values) != 1:
            raise _RefusedError(f"it has {len(values)} {name}s")
        if (found := tensor_spec(values[0])) != spec.current:
            raise _RefusedError(f"its {name} is {_described(found)}, and the manifest's {_described(spec)}")
    sets = [(entry.domain, entry.version) for entry in model.opset_import]
    own = [entry for entry in sets if entry[0] != PLUGIN_DOMAIN]
    if own != [("", manifest.opset)] or len(sets) - len(own) > 1:
        raise _RefusedError(f"its operator sets are {sets}, and the manifest's is {manifest.opset}")


def _described(spec: TensorSpec) -> str:
    return f"{spec.name!r} {spec.dtype} {list(spec.shape)}"


def _check_nodes(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Raises unless the operators and attributes are allowed, and ONNX's own checker finds the graph sound."""
    graph = model.graph
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    inlined = sum(len(f.node) for f in model.functions) * sum(bool(node.domain) for node in graph.node)
    count, most = len(nodes) + inlined, max_nodes(manifest)
    if count > most:
        raise _RefusedError(f"it has {count} nodes, and its model needs {most} at most")
    for node in nodes:
        _check_node(node)
    _check_gathers(model)
    if len(model.functions) > 1 or any((f.domain, f.name) != (PLUGIN_DOMAIN, PLUGIN_NAME) for f in model.functions):
        raise _RefusedError("it has functions other than the attention plugin's")
    made = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
    made += [name for node in graph.node for name in node.output if name]
    if len(set(made)) != len(made):
        raise _RefusedError("two of its tensors have the same name")
    try:
        onnx.checker.check_model(_without_weights(model))
    except MemoryError:
        raise
    except Exception as error:  # ValidationError and others
        raise _RefusedError(first_line(error)) from None


def max_nodes(manifest: Manifest) -> int:
    """Most nodes that a graph of the manifest's architecture has."""
    sizes = manifest.preprocessor.height, manifest.preprocessor.width
    needed = sum(block.count * len(block.operators) for block in operators(manifest.architecture, *sizes))
    return min(MAX_NODES, NODES_PER_OPERATOR * needed + MORE_NODES)


def _check_node(node: onnx.NodeProto) -> None:
    """Raises unless a node is one of ONNX's operators or the plugin, without graphs inside, its numbers in bounds.

    Which of ONNX's operators an export has depends on the versions of PyTorch and onnxsim that made it.
    """
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if kind != PLUGIN and (node.domain or not _is_plain(node.op_type)):
        raise _RefusedError(f"it has the operator {kind}")
    if not node.output or not node.output[0]:
        raise _RefusedError(f"{node.name} makes nothing")
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names) or (kind == PLUGIN and not set(names) <= set(PLUGIN_ATTRIBUTES)):
        raise _RefusedError(f"{node.name} ({kind}) has the attributes {', '.join(names)}")
    for attribute in node.attribute:
        found = _numbers(attribute)
        if found is None or len(found) > MAX_NUMBERS:
            raise _RefusedError(f"{node.name} ({kind}) has the attribute {attribute.name} in another form")
        low, high = BOUNDS.get(kind, {}).get(attribute.name, ANY_NUMBER)
        if not all(low <= value <= high for value in found):
            raise _RefusedError(f"{node.name} ({kind}) has {attribute.name} {found}")


def _check_gathers(model: onnx.ModelProto) -> None:
    """Raises unless every index of a Gather is a number of the file."""
    for part in (model.graph, *model.functions):
        known = {name for node in part.node if node.op_type == "Constant" for name in node.output}
        if part is model.graph:
            known |= {tensor.name for tensor in model.graph.initializer}
        for node in part.node:
            if node.op_type == "Gather" and (len(node.input) != 2 or node.input[1] not in known):
                raise _RefusedError(f"{node.name} (Gather) has indices that are computed")


def _is_plain(op_type: str) -> bool:
    """Whether ONNX has an operator of that name, and it takes no graphs, as loops do."""
    if not onnx.defs.has(op_type) or REFUSED.fullmatch(op_type):
        return False
    graphs = (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)
    return not any(known.type in graphs for known in onnx.defs.get_schema(op_type).attributes.values())


def _numbers(attribute: onnx.AttributeProto) -> list[float] | None:
    """The numbers of an attribute, none of a text; None for other kinds, and for a tensor that lies elsewhere."""
    kinds = onnx.AttributeProto
    if attribute.type == kinds.TENSOR:
        tensor = attribute.t
        count = math.prod(tensor.dims)
        if tensor.data_type not in TYPES or tensor.external_data or not 0 <= count <= MAX_NUMBERS:
            return None
        if _stored_bytes(tensor) != count * TYPES[tensor.data_type][1]:
            return None
        return [] if tensor.data_type == TensorProto.FLOAT8E4M3FN else numpy_helper.to_array(tensor).ravel().tolist()
    values: Mapping[int, list[float]] = {
        kinds.INT: [attribute.i], kinds.INTS: list(attribute.ints), kinds.FLOAT: [attribute.f],
        kinds.FLOATS: list(attribute.floats), kinds.STRING: [],
    }  # fmt: skip
    return values.get(attribute.type)


def _check_shapes(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Raises unless every tensor has a shape, no larger than the architecture needs, and the output the manifest's."""
    images = manifest.input.shape[0]
    batch = images if isinstance(images, int) else 1
    height, width = manifest.preprocessor.height, manifest.preprocessor.width
    try:
        tensors = infer_tensors(model, (batch, 3, height, width))
    except ValueError as error:
        raise _RefusedError(f"its shapes cannot be inferred ({error})") from None
    most = SLACK * batch * largest(manifest.architecture, height, width)
    weights = {tensor.name for tensor in model.graph.initializer}
    for name, tensor in tensors.items():
        if tensor.kind not in TYPES or min(tensor.shape, default=1) < 0:
            raise _RefusedError(f"{name} has the type {tensor.kind} and the shape {list(tensor.shape)}")
        if name not in weights and tensor.elements > most:
            raise _RefusedError(f"{name} has the shape {list(tensor.shape)}, larger than any tensor of its model")
    _check_indices(model, tensors)
    wanted = (batch, manifest.architecture.tokens(height, width), manifest.output.shape[-1])
    if (found := tensors[manifest.output.name].shape) != wanted:
        raise _RefusedError(f"it makes features of the shape {list(found)}, not {list(wanted)}")


def _check_indices(model: onnx.ModelProto, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises unless each Gather of the graph has indices within its axis; `_check_gathers` refuses computed ones."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = {node.output[0]: node.attribute[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type != "Gather":
            continue
        name = node.input[1]
        if name in weights and weights[name].data_location == TensorProto.EXTERNAL:
            raise _RefusedError(f"{node.name} (Gather) has indices outside the graph's file")
        found = numpy_helper.to_array(weights[name]).ravel() if name in weights else _numbers(constants[name]) or []
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        size = tensors[node.input[0]].shape[axis]
        if not all(-size <= index < size for index in found):
            raise _RefusedError(f"{node.name} (Gather) has an index outside its axis of {size}")


def largest(config: FastViTHDConfig, height: int, width: int) -> int:
    """Elements of the encoder's largest tensor, for one image."""
    return max(op.size for op in itertools.chain.from_iterable(b.operators for b in operators(config, height, width)))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose external tensors are inputs of the graph."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inner = [tensor for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(inner)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy
