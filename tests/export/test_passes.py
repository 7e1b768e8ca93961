"""Clean-up of a traced graph: what onnxsim gets wrong is not taken over, and reshapes become constants."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export import onnxsim_process
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx
from fvexport.export.passes import WEIGHT_BYTES, name_dimensions, reshapes_to_constants, simplify, tidy

ort = pytest.importorskip("onnxruntime")

SMALL = ExportOptions(height=64, width=64)
FLOAT = TensorProto.FLOAT


@pytest.fixture
def false_onnxsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`false_onnxsim("aborts")` puts that function of false_onnxsim.py in the place of `onnxsim.simplify`."""

    def install(name: str) -> None:
        pytest.importorskip("onnxsim")
        stand_ins = str(Path(__file__).with_name("false_onnxsim.py"))
        (tmp_path / "modules").mkdir()
        text = f"import runpy\nsimplify = runpy.run_path({stand_ins!r})[{name!r}]"
        (tmp_path / "modules" / "onnxsim.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "modules")
        monkeypatch.delitem(sys.modules, "onnxsim", raising=False)

    return install


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("no_text", "onnxsim failed: RuntimeError"),
        ("with_text", "onnxsim failed: cannot fold this"),
        ("not_checked", "own check found other numbers"),
        ("without_a_weight", "dropped 1 weights"),
        ("without_a_gelu", "breaks our rules"),
        ("other_attribute", "changed the numbers"),
        ("other_wiring", "changed the numbers"),
        ("does_not_run", "changed the numbers"),
    ],
)
def test_wrong_simplification_is_not_taken(
    tmp_path: Path, tiny: Checkpoint, false_onnxsim: Callable[[str], None], wrong: str, words: str
) -> None:  # fmt: skip
    false_onnxsim(wrong)
    report = export_onnx(tiny, tmp_path / "a", options=SMALL)
    assert report.verdict is not None and report.verdict.passed
    kept = report.artifact.manifest.graph.kept_unsimplified
    assert words in kept
    assert kept in report.notices
    assert len(kept.splitlines()) == 1


NO_GRAPH = (
    "no_proto", "into_our_pipe", "few_bytes_into_our_pipe", "huge_size_into_our_pipe", "unknown_type_of_a_constant",
    "unknown_type_of_an_input", "value_twice", "input_twice", "without_outputs", "without_the_shape_of_the_output",
    "without_opset", "node_without_outputs", "constant_in_a_file", "constant_without_values",
)  # fmt: skip


@pytest.mark.parametrize("wrong", [*NO_GRAPH, "empty", "text_as_bytes"])
def test_an_answer_that_is_no_graph_loses_no_export(
    tmp_path: Path, tiny: Checkpoint, false_onnxsim: Callable[[str], None], wrong: str
) -> None:
    false_onnxsim(wrong)
    report = export_onnx(tiny, tmp_path / "a", options=SMALL, parity=False)
    kept = report.artifact.manifest.graph.kept_unsimplified
    start = "onnxsim returned an invalid graph (" if wrong in NO_GRAPH else "onnxsim "
    assert kept.startswith(f"the graph was not simplified: {start}")
    assert kept in report.notices
    assert len(kept.splitlines()) == 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_fault_of_an_answer_passes_on(error: type[BaseException]) -> None:
    with pytest.raises(error), onnxsim_process.taking_answer():
        raise error


@pytest.mark.parametrize(
    ("entry", "words"),
    [(None, "onnxsim is not installed; `pip install onnxsim`"), ("broken", "onnxsim does not import: no libonnx.so")],
)
def test_without_onnxsim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, entry: str | None, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    if entry is not None:
        (tmp_path / "onnxsim.py").write_text("raise OSError('no libonnx.so')")
        monkeypatch.delitem(sys.modules, "onnxsim")
        monkeypatch.syspath_prepend(tmp_path)
    report = export_onnx(tiny, tmp_path / "a", options=SMALL)
    assert report.verdict is not None and report.verdict.passed
    assert report.artifact.manifest.graph.kept_unsimplified == f"the graph was not simplified: {words}"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_right_simplification_is_taken(exported: Callable[..., Any], precision: Any) -> None:
    pytest.importorskip("onnxsim")
    assert exported(precision=precision).manifest.graph.kept_unsimplified is None


def chain(shape: list[Any], steps: list[list[Any]]) -> ir.Model:
    """A graph of Reshapes whose targets are all computed at run time (here: read from inputs)."""
    nodes, values = [], [helper.make_tensor_value_info("x", FLOAT, shape)]
    inputs = values[:]
    for index, after in enumerate(steps):
        target = f"target_{index}"
        inputs.append(helper.make_tensor_value_info(target, TensorProto.INT64, [len(after)]))
        nodes.append(helper.make_node("Reshape", [values[-1].name, target], [f"y{index}"], f"r{index}", allowzero=1))
        values.append(helper.make_tensor_value_info(f"y{index}", FLOAT, after))
    graph = helper.make_graph(nodes, "chain", inputs, [values[-1]], value_info=values[1:-1])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model)
    proto.ir_version = 10
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    return session.run(None, {name: value for name, value in feed.items() if name in wanted})[0]


def targets(model: ir.Model) -> list[Any]:
    found = []
    for node in model.graph:
        if node.op_type == "Reshape":
            value = node.inputs[1]
            found.append(value.const_value.numpy().tolist() if value.is_initializer() else value.name)
    return found


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (["b", 6, "n"], ["b", 2, 3, "n"], [0, 2, 3, -1]),
        (["b", 6, 4, 4], ["b", 6, 16], [0, 6, 16]),
        ([2, 6, 4], [2, 24], [2, 24]),
        (["b", "h", "w"], ["b", "h*w"], [0, -1]),
        (["b", "n"], ["n", "b"], "target_0"),
        (["b", "n"], [None, None], "target_0"),
        ([None, 4], [None, 2, 2], [-1, 2, 2]),
    ],
)
def test_reshape_targets(before: list[Any], after: list[Any], target: Any) -> None:
    model = chain(before, [after])
    reshapes_to_constants(model)
    assert targets(model) == [target]


def test_two_unknown_sizes_come_from_a_tensor_that_has_them() -> None:
    model = chain(["b", "h", "w"], [["b", "hw"], ["b", "h", "w"]])
    reshapes_to_constants(model)
    assert [node.op_type for node in model.graph] == ["Reshape", "Reshape"]  # inputs are no node's output: left alone
    model = chain(["hw", "b"], [["b", "h", "w"], ["b", "hw"], ["b", "h", "w"]])
    reshapes_to_constants(model)
    assert [node.op_type for node in model.graph] == ["Reshape", "Reshape", "Shape", "Reshape"]
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    feed = {"x": x, "target_0": np.array([2, 3, 4]), "target_1": np.array([2, 12]), "target_2": np.array([2, 3, 4])}
    np.testing.assert_array_equal(run(model, feed), x.reshape(2, 3, 4))


def test_sizes_without_a_name_equal_nothing() -> None:
    """Two tensors of unknown sizes need not have the same ones."""
    model = chain(["a", "b", "c"], [[None, None], [None, None, "c"], [None, None]])
    reshapes_to_constants(model)
    assert targets(model) == ["target_0", "target_1", "target_2"]
    model = chain(["a", "b", "c"], [["d", "e"], ["f", "g"], ["h", "i"]])
    for node in model.graph:
        node.outputs[0].shape = None
    reshapes_to_constants(model)
    assert targets(model) == ["target_0", "target_1", "target_2"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.permutations(["b", "h", "w"]))
def test_reshapes_keep_their_results(b: int, h: int, w: int, order: list[str]) -> None:
    sizes = {"b": b, "h": h, "w": w}
    steps = [["b*h", 2, "w"], [*order, 2], ["b", "h*w", 2], [*order, 2], ["b", 2, "h*w"]]
    concrete = [[int(eval(str(d), {}, sizes)) for d in step] for step in steps]
    x = np.arange(b * h * w * 2, dtype=np.float32).reshape(b, h, 2, w)
    model = chain(["b", "h", 2, "w"], steps)
    feed = {"x": x, **{f"target_{i}": np.array(shape) for i, shape in enumerate(concrete)}}
    wanted = run(model, feed)
    tidy(model)
    np.testing.assert_array_equal(run(model, feed), wanted)


def convolution() -> ir.Model:
    weight = np.arange(4 * 3 * 9, dtype=np.float32).reshape(4, 3, 3, 3)
    assert weight.nbytes >= WEIGHT_BYTES
    nodes = [
        helper.make_node("Conv", ["pixel_values", "w"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Identity", ["a"], ["b"], "useless"),
        helper.make_node("Relu", ["b"], ["image_features"], "last"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixel_values", FLOAT, ["s0", 3, 8, 8])],
        [helper.make_tensor_value_info("image_features", FLOAT, ["s0", 4, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def test_weights_stand_aside_and_come_back() -> None:
    pytest.importorskip("onnxsim")
    model = convolution()
    wanted = model.graph.initializers["w"].const_value.numpy()
    before = len(model.graph)
    result, why_not = simplify(model)
    assert (before, len(result.graph), why_not) == (3, 2, None)
    assert [node.name for node in result.graph] == ["first", "last"]
    for after in (model, result):  # the graph given is as it was
        assert [value.name for value in after.graph.inputs] == ["pixel_values"]
        np.testing.assert_array_equal(after.graph.initializers["w"].const_value.numpy(), wanted)


def test_dimensions_get_plain_names() -> None:
    model = convolution()
    name_dimensions(model)
    assert [str(d) for d in model.graph.inputs[0].shape] == ["batch", "3", "8", "8"]
    assert [str(d) for d in model.graph.outputs[0].shape] == ["batch", "4", "8", "8"]
    assert model.graph.node("first").outputs[0].shape is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("aborts", "onnxsim was ended by SIGABRT"),
        ("exits", "onnxsim ended with exit code 3"),
        ("hangs", "no answer in 4 s"),
    ],
)
def test_the_traced_graph_is_kept_where_onnxsim_dies(
    false_onnxsim: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    false_onnxsim(fault)
    monkeypatch.setattr(onnxsim_process, "LIMIT_S", 4.0)
    model = convolution()
    result, why_not = simplify(model)
    assert result is model and why_not is not None and words in why_not


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize("fault", ["forks_and_exits", "forks_a_daemon_and_exits", "forks_and_works"])
def test_nothing_waits_for_what_onnxsim_forked(false_onnxsim: Callable[[str], None], fault: str) -> None:
    """It holds the pipes of the process that it was forked from."""
    false_onnxsim(fault)
    model = convolution()
    started = time.monotonic()
    _, why_not = simplify(model)
    onnxsim_process._end()
    assert time.monotonic() - started < 12
    assert why_not == (None if "works" in fault else "onnxsim ended with exit code 3")


def test_a_long_request_ends_with_a_process_that_does_not_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxsim.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxsim", raising=False)
    monkeypatch.setattr(onnxsim_process, "LIMIT_S", 1.0)
    model = ir.to_proto(convolution())
    model.doc_string = "x" * (1 << 20)  # more than a pipe holds
    with pytest.raises(onnxsim_process.OnnxsimError, match="no answer in 1 s"):
        onnxsim_process.simplify(model, fold_constants=True)


def test_onnxsim_runs_elsewhere_without_torch() -> None:
    """It dies alone, is started anew, and its process ends with the parent."""
    pytest.importorskip("onnxsim")
    proto = ir.to_proto(convolution())
    first = onnxsim_process.simplify(proto, fold_constants=True)
    child = onnxsim_process._child
    assert child is not None and child.pid != os.getpid() and len(first.graph.node) == 2
    if sys.platform == "linux":
        assert "libtorch" not in Path(f"/proc/{child.pid}/maps").read_text()
    assert onnxsim_process.simplify(proto, fold_constants=True) == first and onnxsim_process._child is child
    child.kill()
    child.wait()
    assert onnxsim_process.simplify(proto, fold_constants=True) == first
    onnxsim_process._end()
    assert onnxsim_process._child is None
