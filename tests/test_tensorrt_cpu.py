"""The TensorRT that other tests use is real: it parses, builds, and keeps its own ideas of what is allowed."""

from __future__ import annotations

import platform
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.helper as h
import pytest

Module = Callable[[], dict[str, Any]]


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def trt(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def _parsed(trt: Any, op: str) -> tuple[Any, Any, Any, bool]:
    tensor_specs = [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [1, 8, 16, 16]) for name in "xy"]
    graph = h.make_graph([h.make_node(op, ["x"], ["y"], name="only")], "one", tensor_specs[:1], tensor_specs[1:])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    return builder, network, parser, parser.parse(model.SerializeToString())


def test_it_parses_and_builds(trt: Any) -> None:
    builder, network, _parser, parsed = _parsed(trt, "Gelu")
    assert parsed
    assert network.get_output(0).dtype == trt.DataType.HALF
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None and plan.nbytes > 1000


def test_it_refuses_an_unknown_operator_by_name(trt: Any) -> None:
    _builder, _network, parser, parsed = _parsed(trt, "NoSuchOp")
    assert not parsed
    assert (parser.get_error(0).node_name(), parser.get_error(0).node_operator()) == ("only", "NoSuchOp")


def test_a_process_finds_it_through_pythonpath(tensorrt_folders: dict[str, Path]) -> None:
    for name, folder in tensorrt_folders.items():
        module = "tensorrt_rtx" if name == "tensorrt_rtx" else "tensorrt"
        code = f"import {module}; print({module}.__version__)"
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == (name if name[0].isdigit() else {"tensorrt": "11.4.0.106"}.get(name, "1.7.1.116"))


def test_elsewhere_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runpy.run_path(str(Path(__file__).parent / "tensorrt_cpu.py"))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64 alone" in made["why_not"]()
