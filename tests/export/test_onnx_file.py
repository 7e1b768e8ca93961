"""Graphs that others made: what a runtime could be harmed by is refused before it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from fvexport.core.errors import ArtifactError
from fvexport.export.artifact import MODEL_FILE, Artifact
from fvexport.export.inspection import inspect_artifact
from fvexport.export.onnx_file import LIMIT, TYPES, infer_tensors, read_graph, tensor_spec

Change = Callable[[ModelProto], object]


@pytest.fixture
def changed(static: Artifact, tmp_path: Path) -> Callable[[Change], Callable[[], ModelProto]]:
    """`changed(change)` reads the static artifact's graph after `change(model)`."""

    def make(change: Change) -> Callable[[], ModelProto]:
        model = onnx.load(static.model_path, load_external_data=False)
        change(model)
        (tmp_path / MODEL_FILE).write_bytes(model.SerializeToString())
        return lambda: read_graph(tmp_path / MODEL_FILE, static.manifest)

    return make


def external(model: ModelProto, key: str, value: str) -> None:
    next(e for e in first_weight(model).external_data if e.key == key).value = value


def first_weight(model: ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.external_data)


def inner(model: ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.raw_data)


def node(model: ModelProto, op: str) -> Any:
    return next(n for n in model.graph.node if n.op_type == op)


def attribute(model: ModelProto, op: str, name: str, value: Any) -> None:
    found = node(model, op)
    kept = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, helper.make_attribute(name, value)])


def subgraph(model: ModelProto) -> None:
    graph = helper.make_graph([helper.make_node("Constant", [], ["t"], value=secret())], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph))


def secret() -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def inner_reshape(model: ModelProto) -> None:
    target = node(model, "Reshape").input[1]
    tensor = next(t for t in model.graph.initializer if t.name == target)
    tensor.raw_data = (1 << 40).to_bytes(8, "little") * (len(tensor.raw_data) // 8)


EXTERNAL: dict[str, tuple[Change, str]] = {
    **{
        f"location {location}": (lambda m, x=location: external(m, "location", x), words)
        for location, words in (
            ("../weights", "outside its folder"), ("/etc/passwd", "outside its folder"), ("a/b", "outside its"),
            ("*/_ORT_MEM_ADDR_/*", "outside its folder"), ("a\\b", "does not name"), ("..", "does not name"),
            ("absent", "does not name"), ("x" * 300, "does not name"), ("", "does not name|outside"),
        )
    },
    **{
        f"{key} {value}": (lambda m, k=key, v=value: external(m, k, v), "has external data at|bytes, and its shape|end")
        for key in ("offset", "length")
        for value in ("0x10", " 8", "8 ", "+8", "-8", "1e3", "", "08", "9" * 400, str(1 << 59), "\u0664")
    },
    "a second location": (
        lambda m: first_weight(m).external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*"), "with the keys",
    ),
    "a second offset": (lambda m: first_weight(m).external_data.add(key="offset", value="0"), "with the keys"),
    "an unknown key": (lambda m: first_weight(m).external_data.add(key="checksum", value="x"), "with the keys"),
    "no length": (lambda m: first_weight(m).external_data.pop(), "with the keys"),
    "not external": (lambda m: first_weight(m).ClearField("data_location"), "is not external"),
    "both": (lambda m: setattr(first_weight(m), "raw_data", b"1234"), "4 bytes"),
    "weights that overlap": (
        lambda m: m.graph.initializer.extend(
            [TensorProto.FromString(first_weight(m).SerializeToString()) for _ in range(4000)]
        ),
        "overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXTERNAL)
def test_weights_are_where_the_manifest_says(changed: Any, case: str) -> None:
    change, words = EXTERNAL[case]
    with pytest.raises(ArtifactError, match=words):
        changed(change)()


HIDDEN: dict[str, tuple[Change, str]] = {
    "training_info": (lambda m: m.training_info.add().algorithm.initializer.append(secret()), "field training_info"),
    "subgraph": (subgraph, "field g"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(values=secret(), dims=[3]), "field sparse_initializer"),
    "constant": (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["t"], value=secret())), "value in another form",
    ),
    "function": (
        lambda m: m.functions.add(name="f", node=[helper.make_node("Constant", [], ["t"], value=secret())]),
        "another form",
    ),
    "another function": (lambda m: m.functions.add(name="Relu", domain="fvexport"), "functions other than"),
    "float_data": (lambda m: inner(m).float_data.append(1), "-1 bytes in the file"),
    "a part": (lambda m: inner(m).segment.SetInParent(), "field segment"),
    "a sequence": (
        lambda m: m.graph.value_info.add(name="v").type.sequence_type.SetInParent(), "field sequence_type",
    ),
    "a reference": (
        lambda m: node(m, "Transpose").attribute.add(name="x", ref_attr_name="perm", type=AttributeProto.INTS),
        "field ref_attr_name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HIDDEN)
def test_nothing_hides_in_other_fields(changed: Any, case: str) -> None:
    change, words = HIDDEN[case]
    with pytest.raises(ArtifactError, match=words):
        changed(change)()


def chain(model: ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Erf", [f"q{i}"], [f"q{i + 1}"]) for i in range(1000))


def gather(model: ModelProto, index: int | None) -> None:
    """Adds a Gather from a row of the input by a number, or by one that is computed."""
    name = model.graph.input[0].name
    model.graph.initializer.append(helper.make_tensor("index", TensorProto.INT64, [1], [index or 0]))
    source = "index" if index is not None else "computed"
    model.graph.node.append(helper.make_node("Neg", ["index"], ["computed"]))
    model.graph.node.append(helper.make_node("Gather", [name, source], ["picked"], axis=3))


GRAPHS: dict[str, tuple[Change, str]] = {
    "no inputs": (lambda m: m.graph.ClearField("input"), "0 inputs"),
    "two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "2 inputs"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "0 outputs"),
    "another name": (lambda m: setattr(m.graph.input[0], "name", "x\ny"), "its input is"),
    "batch 0": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 0), "its input is"),
    "half": (lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 10), "its output is"),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 7), "operator sets"),
    "two opsets": (lambda m: m.opset_import.add(domain="", version=21), "operator sets"),
    "a foreign set": (lambda m: m.opset_import.add(domain="com.microsoft", version=1), "operator sets"),
    "huge": (lambda m: inner(m).dims.insert(0, 1 << 40), "bytes in the file, and its shape needs"),
    "negative": (lambda m: inner(m).dims.append(-1), "has the shape"),
    "a text": (lambda m: setattr(inner(m), "data_type", TensorProto.STRING), "has the type 8"),
    "a loop": (lambda m: setattr(node(m, "Relu"), "op_type", "Loop"), "has the operator Loop"),
    "a foreign operator": (lambda m: setattr(node(m, "Relu"), "op_type", "Relu7"), "has the operator Relu7"),
    "too many nodes": (chain, "nodes, and its model needs"),
    **{
        name: (lambda m, x=name: setattr(node(m, "Relu"), "op_type", x), f"has the operator {name}")
        for name in ("ScatterND", "TopK", "Dropout", "RandomNormalLike", "NonZero", "GatherElements", "StringConcat")
    },
    "an index that is computed": (lambda m: gather(m, None), "indices that are computed"),
    "an index out of range": (lambda m: gather(m, 10**9), "outside its axis|out of"),
    "a domain": (lambda m: setattr(node(m, "Relu"), "domain", "com.microsoft"), "operator com.microsoft::Relu"),
    "group 0": (lambda m: attribute(m, "Conv", "group", 0), "has group"),
    "stride 0": (lambda m: attribute(m, "Conv", "strides", [0, 0]), "has strides"),
    "pads": (lambda m: attribute(m, "Conv", "pads", [1 << 40] * 4), "has pads"),
    "another type": (lambda m: attribute(m, "Conv", "pads", 1.5), "has pads|another form|Mismatched"),
    "an unknown attribute": (lambda m: attribute(m, "Conv", "path", "x"), "Unrecognized attribute"),
    "an attribute twice": (
        lambda m: node(m, "Conv").attribute.append(node(m, "Conv").attribute[0]), "has the attributes",
    ),
    "a cycle": (lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[-1].output[0]), "."),
    "an unknown input": (lambda m: node(m, "Relu").input.__setitem__(0, "nothing"), "."),
    "one name twice": (lambda m: node(m, "Relu").output.__setitem__(0, m.graph.node[0].output[0]), "same name"),
    "no output": (lambda m: node(m, "Relu").ClearField("output"), "makes nothing"),
    "wrong axes": (lambda m: attribute(m, "Transpose", "perm", [0, 1, 2, 2]), "shapes cannot be inferred|."),
    "other sizes": (inner_reshape, "."),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_the_graph_is_one_of_ours(changed: Any, case: str) -> None:
    change, words = GRAPHS[case]
    with pytest.raises(ArtifactError, match=f"(?s){words}"):
        changed(change)()


def test_running_out_of_memory_is_not_a_damaged_file(static: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fvexport.export.onnx_file.read_bytes", fail)
    with pytest.raises(MemoryError):
        read_graph(static.model_path, static.manifest)


def test_texts_are_utf8_and_fields_known(static: Artifact, tmp_path: Path) -> None:
    content = static.model_path.read_bytes()
    name = onnx.load(static.model_path, load_external_data=False).graph.node[3].name.encode()
    file = tmp_path / MODEL_FILE
    file.write_bytes(content.replace(name, b"\xff" * len(name)))
    with pytest.raises(ArtifactError, match="not UTF-8"):
        read_graph(file, static.manifest)
    file.write_bytes(content + b"\xfa\x7f\x01x")  # field 2047
    with pytest.raises(ArtifactError, match="does not define"):
        read_graph(file, static.manifest)
    for garbage in (b"<html>404</html>", b"\x0a", b"\xff" * 99):
        file.write_bytes(garbage)
        with pytest.raises(ArtifactError, match=r"not a readable ONNX file|not a file that fvexport wrote"):
            read_graph(file, static.manifest)
    with file.open("wb") as stream:
        stream.truncate(LIMIT + 1)
    with pytest.raises(ArtifactError, match="is larger than"):
        read_graph(file, static.manifest)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"batch": 2, "precision": "fp16", "input": "uint8", "io": "model"}, {"batch": None, "dynamic_res": True},
    ],
)  # fmt: skip
def test_our_own_graphs_pass(exported: Callable[..., Artifact], options: dict[str, Any]) -> None:
    artifact = exported(**options)
    model = read_graph(artifact.model_path, artifact.manifest)
    assert model == onnx.load(artifact.model_path, load_external_data=False)
    assert tensor_spec(model.graph.input[0]) == artifact.manifest.input
    batch = artifact.manifest.input.shape[0]
    tensors = infer_tensors(model, (batch if isinstance(batch, int) else 3, 3, 128, 128))
    assert tensors["image_features"].shape == (batch if isinstance(batch, int) else 3, 4, 256)
    assert inspect_artifact(artifact).tokens == 4


def test_sizes_of_types_are_onnx_own() -> None:
    for kind, (name, size) in TYPES.items():
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        assert (str(dtype), dtype.itemsize) == (name, size)
