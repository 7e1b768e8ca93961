"""Float32 means float32: TensorRT may not round the inputs of a product to TF32, as it does unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as h
import onnx.numpy_helper as nh
import pytest

from fvexport.core.progress import silent
from fvexport.export.engines.api import Api
from fvexport.export.engines.build import build_plan
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.trtexec_command import command_line

STATIC = Profile(batch=(1, 1, 1), height=(64, 64, 64), width=(64, 64, 64))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One convolution in float32."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 1, 1)).astype(np.float32)
    node = h.make_node("Conv", ["pixel_values", "w"], ["image_features"], kernel_shape=[1, 1])
    borders = [
        h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 64, 64])
        for name, channels in (("pixel_values", 3), ("image_features", 8))
    ]
    graph = h.make_graph([node], "one", borders[:1], borders[1:], [nh.from_array(weight, "w")])
    path = tmp_path / "encoder.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_the_plan_says_so(model: Path, tensorrt_rtx: Any) -> None:
    trt = tensorrt_rtx
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(model))
    untold = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    ours = build_plan(Api(trt, "tensorrt-rtx", trt.__version__), model, STATIC, EngineOptions(), None, silent).plan
    assert (b"tf32=1" in untold, b"tf32=0" in untold) == (True, False)
    assert (b"tf32=1" in ours, b"tf32=0" in ours) == (False, True)


def test_trtexec_is_told_too() -> None:
    line = command_line("tensorrt", Path("a.onnx"), Path("a.plan"), STATIC, False, EngineOptions())
    assert "--noTF32" in line.split()
