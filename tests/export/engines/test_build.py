"""Builds by the real library: every precision, static and dynamic; what is refused, cancelled or cannot be."""

from __future__ import annotations

import _thread
import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from fvexport.core.errors import ExportError
from fvexport.core.progress import silent
from fvexport.export.engines.api import Api
from fvexport.export.engines.build import Log, _cancellable, build_plan
from fvexport.export.engines.engine_options import EngineOptions, Profile

STATIC = Profile(batch=(1, 1, 1), height=(128, 128, 128), width=(128, 128, 128))
RANGE = Profile(batch=(1, 2, 4), height=(64, 128, 192), width=(64, 128, 256))
HALF = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "HALF", "fp8": "HALF"}
PRECISIONS = list(HALF)
BLOCKS = ["stages.3.blocks.0.token_mixer", "stages.4.blocks.0.token_mixer"]


def build(api: Api, artifact: Any, profile: Profile = STATIC, progress: Any = silent, **options: Any) -> Any:
    return build_plan(api, artifact.model_path, profile, EngineOptions(**options), None, progress)


def network(api: Api, artifact: Any) -> tuple[Any, ...]:
    trt = api.trt
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    made = api.create_network(builder)
    parser = trt.OnnxParser(made, logger)
    assert parser.parse_from_file(str(artifact.model_path))
    return made, parser, builder, logger  # all of them live as long as the network is looked at


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_builds_for_a_range(rtx: Api, onnx_artifact, precision: str) -> None:
    done: list[str] = []
    artifact = onnx_artifact(precision=precision, batch=None, dynamic_res=True)
    made = build(rtx, artifact, RANGE, lambda task, *_: done.append(task))
    assert len(made.plan) > 100_000
    assert made.memory["weights"] > 100_000 and made.memory["activations"] > 0
    assert made.layers and made.cache is None
    assert done[0] == "parse" and "Building engine" in done
    check_notices(made.notices)


def check_notices(notices: list[str]) -> None:
    """Warnings are told once."""
    assert len(notices) == len(set(notices))
    assert all(notice.startswith("TensorRT: ") for notice in notices)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_stand_in_the_graph(rtx: Api, onnx_artifact, precision: str) -> None:
    """Strongly typed: the parsed network has the types and the Q/DQ that the policy says, and no others."""
    artifact = onnx_artifact(precision=precision)
    made, *_alive = network(rtx, artifact)
    layers = [made.get_layer(i) for i in range(made.num_layers)]
    kinds = Counter(layer.type.name for layer in layers)
    typed = {layer.name: layer.get_output(0).dtype.name for layer in layers}
    quantization = artifact.manifest.quantization
    names = quantization.quantized if quantization else ()
    assert kinds["QUANTIZE"] == len(names)
    assert kinds["DEQUANTIZE"] == 2 * len(names)
    eight = {"int8": "INT8", "fp8": "FP8"}.get(precision)
    for layer in layers:
        if layer.type.name == "QUANTIZE":
            assert layer.get_output(0).dtype.name == eight
            assert layer.name.removesuffix(".input_quantizer/QuantizeLinear") in names
        elif layer.type.name in ("CONVOLUTION", "MATRIX_MULTIPLY", "SOFTMAX", "NORMALIZATION"):
            assert layer.get_output(0).dtype.name == HALF[precision], layer.name
    assert made.get_input(0).dtype.name == made.get_output(0).dtype.name == "FLOAT"
    assert len(typed) == made.num_layers


def test_options_of_the_builder(rtx: Api, onnx_artifact) -> None:
    assert build(rtx, onnx_artifact(), opt_level=0, workspace=2**30).plan


def test_too_little_workspace(rtx: Api, onnx_artifact) -> None:
    with pytest.raises(ExportError, match=r"no tactics .* within workspace limit.*; --workspace 1024 may be too small"):
        build(rtx, onnx_artifact(), workspace=1024)


def test_a_dynamic_file_without_its_sizes(rtx: Api, onnx_artifact) -> None:
    """A profile of one shape on a dynamic file is an engine for that shape."""
    made = build(rtx, onnx_artifact(precision="fp16", batch=None, dynamic_res=True), STATIC)
    assert made.plan


def test_an_operator_that_the_parser_refuses(rtx: Api, onnx_artifact, tmp_path: Path) -> None:
    source = onnx_artifact()
    model = onnx.load(source.model_path, load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "stages.2.blocks.1.mlp.act/Gelu")
    node.op_type = "GeluOfTomorrow"
    onnx.save(model, tmp_path / "encoder.onnx")
    shutil.copy(source.path / "encoder.onnx.data", tmp_path)
    with pytest.raises(ExportError) as caught:
        build_plan(rtx, tmp_path / "encoder.onnx", STATIC, EngineOptions(), None, silent)
    message = str(caught.value)
    assert "node stages.2.blocks.1.mlp.act/Gelu (GeluOfTomorrow), in block stages.2.blocks.1.mlp.act:" in message
    assert message.count("GeluOfTomorrow") <= 3 and "\n" not in message


def test_weights_that_are_gone(rtx: Api, onnx_artifact, tmp_path: Path) -> None:
    shutil.copy(onnx_artifact().model_path, tmp_path)
    with pytest.raises(ExportError, match=r"TensorRT-RTX .* refuses .*encoder\.onnx"):
        build_plan(rtx, tmp_path / "encoder.onnx", STATIC, EngineOptions(), None, silent)


def test_ctrl_c_ends_the_build(rtx: Api, onnx_artifact) -> None:
    steps = 0

    def progress(task: str, done: int, total: int | None) -> None:
        nonlocal steps
        steps += 1
        if steps == 20:
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        build(rtx, onnx_artifact(), progress=progress)
    seen = steps
    assert build(rtx, onnx_artifact(), progress=silent).plan  # the next one is not harmed
    assert steps == seen


def test_ctrl_c_at_the_first_instant_ends_the_build_too() -> None:
    for _ in range(20):
        cancelled, steps = threading.Event(), []

        def work(cancelled: threading.Event = cancelled, steps: list[int] = steps) -> None:
            _thread.interrupt_main()
            while not cancelled.wait(0.001):
                steps.append(1)
                assert len(steps) < 5000

        with pytest.raises(KeyboardInterrupt):
            _cancellable(work, cancelled)
        seen = len(steps)
        time.sleep(0.005)
        assert cancelled.is_set() and len(steps) == seen


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_real_build_tells_its_layers(built, tasks: dict[Path, list[str]], precision: str) -> None:
    report = built(precision=precision)
    engine, done = report.artifact.manifest.engine, tasks[report.artifact.path]
    assert (report.artifact.path / "encoder.plan").stat().st_size > 100_000
    assert engine.memory["weights"] > 100_000 and engine.memory["activations"] > 0 and engine.timing_cache is None
    assert "parse" in done and done.index("parse") < done.index("Building engine")
    check_notices([notice for notice in report.notices if notice.startswith("TensorRT: ")])
    told, layers = report.summary, json.loads((report.artifact.path / "encoder.layers.json").read_text())
    assert told is not None and told.layers == len(layers) > 40
    assert sum(told.products.values()) + sum(told.others.values()) == told.layers
    multiplied = {node for layer in layers for node in layer["nodes"] if node.endswith(("/Conv", "/MatMul"))}
    convolutions = 3 + 4 * 2 + 2 + 6 * 3 + 4 + 3  # stem, embeddings, position, ConvFFNs, RepMixers, the last's three
    assert sum(node.endswith("/Conv") for node in multiplied) == convolutions
    assert [state.block for state in told.attention] == BLOCKS
    assert told.largest[0][3] >= told.largest[-1][3] > 0
    kinds = {"int8": {"int8", "fp16"}, "fp8": {"fp8", "fp16"}}.get(precision, {precision})
    assert set(told.products) == kinds


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_attention_is_one_kernel_and_nothing_falls_back(built, precision: str) -> None:
    """Of INT8 the qkv product above all: it is multiplied in integers since heads are parted after channels."""
    told = built(precision=precision).summary
    assert [state.fused for state in told.attention] == [True, True]
    assert told.fallbacks == []


def test_what_a_log_keeps() -> None:
    log = Log()
    for severity, text in (
        ("WARNING", "a"), ("WARNING", "a"), ("VERBOSE", "chatter"), ("ERROR", "first\nmore"), ("ERROR", "second"),
        ("INFO", "Total Weights Memory: 717700 bytes"), ("WARNING", "Failed to deserialize timing cache."),
    ):  # fmt: skip
        log.add(severity, text)
    assert log.memory == {"weights": 717700}
    assert log.reason() == "first"
    assert log.refused_cache() and not log.refused_cache()
    assert log.notices() == ["TensorRT: a (2 times)"]
    assert Log().reason() == "TensorRT gives no reason"
