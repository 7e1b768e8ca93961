"""Attention as one node: the graph that is written, the same numbers, and what TensorRT's parser makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F  # noqa: N812

from fvexport.core.errors import ConfigError, ExportError, UnavailableError
from fvexport.encoder import FastViTHD, get_variant, load_checkpoint, reparameterize
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.fastvithd import Attention
from fvexport.export.artifact import Artifact
from fvexport.export.attention_plugin import PackedAttention, attention_function, with_attention_plugin
from fvexport.export.export_options import ExportOptions
from fvexport.export.inspection import inspect_artifact
from fvexport.export.onnx_export import ExportReport, export_onnx
from fvexport.export.rules import check_rules
from fvexport.export.runtime.backends import make_backend

TINY = get_variant("tiny")


def load(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(str(artifact.model_path), load_external_data=False)


@pytest.fixture(scope="module")
def any_size(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """An export in FP16 for any batch and resolution, with its verdict."""
    wanted = ExportOptions(height=64, width=128, batch=None, dynamic_res=True, precision="fp16", attention_plugin=True)
    return export_onnx(tiny, tmp_path_factory.mktemp("plugin") / "a", options=wanted)


@pytest.mark.parametrize("options", [
    {}, None, {"precision": "bf16", "batch": None, "dynamic_res": True}, {"height": 64, "width": 64},
])  # fmt: skip
def test_graph(exported: Callable[..., Artifact], any_size: ExportReport, options: dict[str, Any] | None) -> None:
    artifact = any_size.artifact if options is None else exported(attention_plugin=True, **options)
    onnx.checker.check_model(str(artifact.model_path), full_check=True)
    model = load(artifact)
    check_rules(model, TINY, attention_plugin=True)
    ops = Counter((node.domain, node.op_type) for node in model.graph.node)
    assert ops["fvexport", "Attention"] == 2 and ops["", "Softmax"] == 0
    for node in model.graph.node:
        if node.domain:
            assert node.name.startswith("stages.") and node.name.endswith(".token_mixer/Attention")
            values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            assert values == {"plugin_namespace": b"fvexport", "plugin_version": b"1", "aot": 1}
    with pytest.raises(ExportError, match="attention plugin nodes: 2 instead of 0"):
        check_rules(model, TINY)


def test_a_plain_graph_is_not_one_with_the_plugin(exported: Callable[..., Artifact]) -> None:
    with pytest.raises(ExportError, match="attention plugin nodes: 0 instead of 2"):
        check_rules(load(exported()), TINY, attention_plugin=True)


def test_fewer_nodes_and_the_same_work(exported: Callable[..., Artifact]) -> None:
    plain, plugin = inspect_artifact(exported()), inspect_artifact(exported(attention_plugin=True))
    assert plugin.nodes < plain.nodes and plugin.ops["Transpose"] < plain.ops["Transpose"]
    assert plugin.gmacs == pytest.approx(plain.gmacs, rel=1e-12)
    assert plugin.parameters == plain.parameters


def test_parity(any_size: ExportReport) -> None:
    assert any_size.verdict is not None and any_size.verdict.passed
    assert any("experimental" in notice for notice in any_size.notices)
    assert any_size.artifact.manifest.options.attention_plugin is True


def test_openvino_says_why_it_cannot(exported: Callable[..., Artifact]) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(UnavailableError, match="without --attention-plugin"):
        make_backend(exported(attention_plugin=True), "openvino")


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 15, 96), (3, 49, 768)])
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_the_function_is_attention(shape: tuple[int, int, int], opset: int) -> None:
    """In onnxruntime, against PyTorch in float64."""
    import onnxruntime as ort

    b, n, c = shape
    node = helper.make_node("Attention", ["qkv"], ["y"], domain="fvexport")
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("qkv", "y")]
    model = helper.make_model(
        helper.make_graph([node], "g", kinds[:1], kinds[1:]), functions=[attention_function(opset)], ir_version=10,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("fvexport", 1)],
    )  # fmt: skip
    qkv = np.random.default_rng(0).standard_normal((b, n, 3 * c)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"qkv": qkv})
    q, k, v = (t.reshape(b, n, -1, 32).transpose(1, 2) for t in torch.from_numpy(qkv).double().chunk(3, dim=-1))
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(b, n, c)
    assert found.shape == (b, n, c)
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_the_module_computes_the_same_and_shares_its_weights(tiny: Checkpoint) -> None:
    fused = reparameterize(tiny.encoder)
    model = with_attention_plugin(fused)
    assert sum(isinstance(m, PackedAttention) for m in model.modules()) == 2
    assert all(type(m) is not PackedAttention for m in fused.modules())
    assert sum(type(m) is Attention for m in fused.modules()) == 2
    assert {p.data_ptr() for p in model.parameters()} == {p.data_ptr() for p in fused.parameters()}
    x = torch.rand(2, 3, 128, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), fused(x))


def test_refusals(tiny: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="reparameterize"):
        with_attention_plugin(tiny.encoder)
    with torch.device("meta"):
        other = FastViTHD(type(TINY)(depths=TINY.depths, dims=TINY.dims, head_dim=16), form="fused")
    with pytest.raises(ConfigError, match="head_dim 32; this model has 16"):
        with_attention_plugin(other)
    with pytest.raises(ConfigError, match="--target openvino"):
        ExportOptions(precision="int8", target="openvino", attention_plugin=True)
    assert ExportOptions(precision="fp16", attention_plugin=True).default_name("tiny") == "tiny-1024-fp16-plugin"


def test_quantized_for_tensorrt(tmp_path) -> None:
    from fvexport.calibration.calibration_options import CalibrationOptions

    options = ExportOptions(height=64, width=64, precision="int8", attention_plugin=True)
    report = export_onnx(
        load_checkpoint(None, variant="tiny"), tmp_path / "a", options=options, parity=False,
        calibration=CalibrationOptions(samples=1),
    )  # fmt: skip
    ops = Counter(node.op_type for node in load(report.artifact).graph.node)
    assert ops["Attention"] == 2 and ops["QuantizeLinear"] > 0


PARSE = """
import sys
import tensorrt as trt
from fvexport.kernels.tensorrt_plugin import register_attention
if sys.argv[2] == "plugin":
    register_attention("sm_90")
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
network = trt.Builder(logger).create_network(0)
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(sys.argv[1])
print(parsed, [(parser.get_error(i).node_name(), parser.get_error(i).desc()) for i in range(parser.num_errors)])
"""


def test_what_tensorrts_parser_makes_of_it(
    exported: Callable[..., Artifact], tensorrt_folders: dict[str, Path]
) -> None:
    """With the plugin registered the parser asks for that, though the file has a function and ONNX an Attention."""
    file = str(exported(attention_plugin=True).model_path)
    path = {"PYTHONPATH": str(tensorrt_folders["tensorrt"])}

    def parsed(which: str) -> str:
        command = [sys.executable, "-c", PARSE, file, which]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | path)
        return done.stdout.splitlines()[-1]

    found = parsed("plugin")
    # TensorRT itself takes it; TensorRT-RTX finds it and says that it runs only plugins written in C++.
    assert found.startswith("True") or ("IPluginCreatorV3One" in found and "token_mixer/Attention" in found)
    refused = parsed("none")
    assert refused.startswith("False") and "token_mixer/Attention" in refused
