"""Every option that can be refused is refused before any work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fvexport.core.errors import ConfigError
from fvexport.core.records import plain
from fvexport.encoder.config import FastViTHDConfig
from fvexport.export import backend_table, export_options
from fvexport.export.backend_table import QuantChoice
from fvexport.export.export_options import ExportOptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp7"}, "unknown precision 'fp7'; known are fp32, fp16, bf16, int8, fp8"),
        ({"input": "int8"}, "unknown input 'int8'; known are float, uint8"),
        ({"io": "fp16"}, "unknown io 'fp16'; known are fp32, model"),
        ({"batch": 0}, "found 0"),
        ({"batch": -1}, "found -1"),
        ({"opset": 17}, "--opset goes from 18 to 23; found 17"),
        ({"opset": 24}, "found 24"),
        ({"opset": 0}, "found 0"),
        ({"opset": 21, "precision": "bf16"}, "need opset 22 or later; found --opset 21"),
        ({"opset": 18, "precision": "int8"}, "Q/DQ needs opset 19 or later; found --opset 18"),
        ({"opset": 18, "precision": "fp8"}, "Q/DQ needs opset 19 or later; found --opset 18"),
        ({"reduce_range": False}, "--reduce-range is for --int8; leave it out with --fp32"),
        ({"reduce_range": True, "precision": "fp8"}, "--reduce-range is for INT8 on CPUs"),
        ({"reduce_range": True, "precision": "int8", "target": "tensorrt"}, "found --target tensorrt"),
        ({"target": "tensorrt"}, "--target is for --int8 and --fp8; leave it out with --fp32"),
        ({"target": "openvino", "precision": "fp16"}, "leave it out with --fp16"),
        ({"target": "tensort", "precision": "int8"}, "did you mean 'tensorrt'?"),
        ({"target": "openvino", "precision": "fp8"}, "FP8 runs on TensorRT alone; found --target openvino"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExportOptions(**options)
    assert words in str(caught.value)


def test_resolution_is_the_architectures_matter() -> None:
    ExportOptions(height=1024, width=64).check(FastViTHDConfig())
    with pytest.raises(ConfigError, match="--res 1024"):
        ExportOptions(height=1000, width=1000).check(FastViTHDConfig())


@pytest.mark.parametrize(
    ("options", "opset"),
    [
        ({}, 20), ({"precision": "fp16"}, 20), ({"precision": "bf16"}, 22), ({"opset": 18}, 18),
        ({"precision": "int8"}, 20), ({"precision": "int8", "opset": 19}, 19), ({"precision": "fp8"}, 20),
    ],
)  # fmt: skip
def test_effective_opset(options: dict[str, Any], opset: int) -> None:
    assert ExportOptions(**options).effective_opset == opset


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "tiny-1024-fp32"),
        ({"height": 512, "width": 384, "precision": "fp16"}, "tiny-512x384-fp16"),
        ({"batch": 4}, "tiny-1024-fp32-b4"),
        ({"batch": None, "dynamic_res": True}, "tiny-dynamic-fp32-batch"),
        ({"projector": True, "input": "uint8"}, "tiny-1024-fp32-projector-uint8"),
        ({"precision": "int8", "target": "tensorrt"}, "tiny-1024-int8-tensorrt"),
        ({"precision": "fp8"}, "tiny-1024-fp8-tensorrt"),
        ({"precision": "int8", "attention_plugin": True}, "tiny-1024-int8-tensorrt-plugin"),
        (
            {"precision": "int8", "target": "openvino", "batch": 2, "reduce_range": False},
            "tiny-1024-int8-openvino-b2",
        ),
        (
            {"precision": "int8", "target": "onnxruntime-cpu", "reduce_range": True},
            "tiny-1024-int8-onnxruntime-cpu-reduced",
        ),
    ],
)
def test_default_name(options: dict[str, Any], name: str) -> None:
    assert ExportOptions(**options).default_name("tiny") == name


@pytest.mark.parametrize(
    ("options", "around"),
    [
        ({"precision": "int8", "target": "tensorrt"}, "fp16"),
        ({"precision": "fp8"}, "fp16"),
        ({"precision": "int8", "target": "onnxruntime-cpu"}, "fp32"),
        ({"precision": "int8", "target": "openvino"}, "fp32"),
        ({"precision": "bf16"}, "bf16"),
    ],
)
def test_precision_around_what_is_quantized(options: dict[str, Any], around: str) -> None:
    found = ExportOptions(**options)
    assert found.float_precision == around
    assert found.quantized == (options["precision"] != "bf16")
    if found.quantized:
        assert (found.policy.target, found.policy.fmt) == (options.get("target", "tensorrt"), options["precision"])


def test_to_dict_holds_every_option() -> None:
    options = ExportOptions(batch=None, opset=21, io="model", precision="int8", target="openvino", reduce_range=True)
    assert ExportOptions(**json.loads(json.dumps(plain(options)))) == options


@pytest.mark.parametrize(
    ("fastest", "saturates", "asked", "target", "reduced"),
    [
        ("openvino", True, {}, "openvino", True),
        ("openvino", True, {"target": "auto"}, "openvino", True),
        ("onnxruntime-cpu", False, {}, "onnxruntime-cpu", False),
        ("tensorrt", True, {}, "tensorrt", False),
        ("tensorrt", True, {"target": "openvino"}, "openvino", True),
        ("tensorrt", True, {"target": "openvino", "reduce_range": False}, "openvino", False),
        ("openvino", False, {"target": "onnxruntime-cpu", "reduce_range": True}, "onnxruntime-cpu", True),
        ("openvino", True, {"precision": "fp8"}, "tensorrt", False),
        ("openvino", True, {"attention_plugin": True}, "tensorrt", False),
    ],
)
def test_what_is_left_open_is_chosen_for_the_machine(
    monkeypatch: pytest.MonkeyPatch, fastest: Any, saturates: bool, asked: dict[str, Any], target: str, reduced: bool
) -> None:
    monkeypatch.setattr(backend_table, "fastest_quant_target", lambda **_: QuantChoice(fastest, "it is fast"))
    monkeypatch.setattr(export_options, "products_saturate", lambda: saturates)
    options = ExportOptions(**{"precision": "int8", **asked}).resolved()
    assert (options.target, options.reduce_range) == (target, reduced)
    assert (options.policy.target, options.policy.reduce_range) == (target, reduced)
    assert options.resolved() is options


def test_nothing_is_chosen_for_other_precisions() -> None:
    options = ExportOptions(precision="fp16")
    assert options.resolved() is options and options.target is options.reduce_range is None
