"""The module of an FP8 artifact, read from its ONNX file: the weights and scales that stand there, and no others.

A quantized artifact holds what its checkpoint does not: equalized weights, rounded weights, and scales. Nodes are named
after the modules that made them (`tracing.name_after_modules`), so each layer finds its own; initializers are not
looked up by name, because equal ones are stored once.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from ..calibration.fp16 import fit_fp16
from ..calibration.qdq import FP8, QuantizedConv, QuantizedLinear, Quantizer
from ..core.errors import ArtifactError
from ..encoder.fastvithd import AttentionBlock, FastViTHD
from .artifact import Artifact
from .model_file import read_model

ONNX_EPS = 1e-5
"""What LayerNormalization takes where a file names no epsilon."""


def quantized_module(artifact: Artifact) -> FastViTHD:
    """The fused, quantized encoder of an FP8 artifact, in float32, which holds each number of the file exactly.

    Raises:
        ArtifactError: the file lacks a layer, or holds it in another form than fvexport writes.
    """
    manifest = artifact.manifest
    mean = manifest.preprocessor.config.mean
    model = FastViTHD(manifest.architecture, form="fused", uint8_input=manifest.input.dtype == "uint8", mean=mean)
    for module in model.modules():
        if isinstance(module, AttentionBlock):  # equalization gave it an affine
            module.norm = nn.LayerNorm(module.norm.normalized_shape, module.norm.eps)
    if manifest.fp16:
        model = fit_fp16(model, manifest.fp16)
    file = _File(artifact)
    found = set()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.LayerNorm):
            read = _read(file, name, layer)
            if read is not layer:
                model.set_submodule(name, read)
                found.add(name)
    wanted = set(manifest.quantization.quantized if manifest.quantization else ())
    if found != wanted:
        odd = sorted(found ^ wanted)
        raise ArtifactError(f"{file.where} quantizes other layers than its manifest says ({odd[0]}); export it again")
    return model.eval().requires_grad_(False)


def _read(file: _File, name: str, layer: nn.Conv2d | nn.Linear | nn.LayerNorm) -> nn.Module:
    """The layer with the file's numbers, or a quantized one in its place."""
    if isinstance(layer, nn.LayerNorm):
        node = file.node(f"{name}/LayerNormalization")
        layer.eps = next((a.f for a in node.attribute if a.name == "epsilon"), ONNX_EPS)
        return _filled(file, name, layer, file.input(node, 1), file.input(node, 2))
    if isinstance(layer, nn.Conv2d):
        node = file.node(f"{name}/Conv")
        bias = file.input(node, 2)
    else:
        node = file.node(f"{name}/MatMul")
        constants = [t for t in map(file.constant, file.node(f"{name}/Add").input) if t is not None]
        if len(constants) != 1:
            raise file.damaged(f"{name} has {len(constants)} biases")
        bias = constants[0]
    quantized = file.producers.get(node.input[1]) if len(node.input) > 1 else None
    if quantized is None or quantized.op_type != "DequantizeLinear":
        weight = file.input(node, 1)
        return _filled(file, name, layer, weight if isinstance(layer, nn.Conv2d) else weight.T, bias)
    weight, scale = file.input(quantized, 0), file.input(quantized, 1)
    expected = layer.weight.shape if isinstance(layer, nn.Conv2d) else layer.weight.T.shape
    if weight.dtype != FP8 or weight.shape != expected:
        raise file.damaged(f"{name} has a weight {tuple(weight.shape)} in {weight.dtype}")
    outputs = len(layer.weight)
    if bias.shape != (outputs,) or scale.numel() not in (1, outputs):
        raise file.damaged(f"{name} has a bias {tuple(bias.shape)} and scales {tuple(scale.shape)}")
    step = file.input(file.node(f"{name}.input_quantizer/QuantizeLinear"), 1)
    if step.numel() != 1 or not 0 < float(step) < float("inf"):
        raise file.damaged(f"{name} quantizes its input by {step.flatten()[:3].tolist()}")
    quantizer = Quantizer(float(step), 0, FP8)
    kind = QuantizedConv if isinstance(layer, nn.Conv2d) else QuantizedLinear
    return kind(weight, scale.float(), bias.float(), quantizer)


def _filled(
    file: _File, name: str, layer: nn.Conv2d | nn.Linear | nn.LayerNorm, weight: Tensor, bias: Tensor
) -> nn.Module:
    assert layer.bias is not None
    if weight.shape != layer.weight.shape or bias.shape != layer.bias.shape:
        raise file.damaged(f"{name} has a weight {tuple(weight.shape)}, not {tuple(layer.weight.shape)}")
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


class _File:
    """An ONNX file's nodes by name and tensors by value."""

    def __init__(self, artifact: Artifact) -> None:
        self.where = artifact.model_path
        graph = read_model(artifact).graph
        self.nodes = {node.name: node for node in graph.node}
        self.producers = {output: node for node in graph.node for output in node.output}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}

    def node(self, name: str) -> NodeProto:
        """The node of that name."""
        if name not in self.nodes:
            raise self.damaged(f"no node {name}")
        return self.nodes[name]

    def tensor(self, value: str) -> Tensor:
        """The constant of that name; raises ArtifactError if it is none."""
        found = self.constant(value)
        if found is None:
            raise self.damaged(f"{value} is not a constant")
        return found

    def input(self, node: NodeProto, index: int) -> Tensor:
        """The constant that a node reads; raises ArtifactError if there is none."""
        if index >= len(node.input):
            raise self.damaged(f"{node.name} has {len(node.input)} inputs")
        return self.tensor(node.input[index])

    def constant(self, value: str) -> Tensor | None:
        """The constant of that name, through a Transpose if there is one; None for what is computed."""
        producer = self.producers.get(value)
        if producer is not None and producer.op_type == "Transpose":
            source = self.constant(producer.input[0])
            return None if source is None else source.T
        return _tensor(self.initializers[value]) if value in self.initializers else None

    def damaged(self, problem: str) -> ArtifactError:
        """The error that says so."""
        return ArtifactError(f"{self.where} is not a file that fvexport wrote ({problem}); export it again")


def _tensor(proto: TensorProto) -> Tensor:
    array = np.ascontiguousarray(numpy_helper.to_array(proto))
    if proto.data_type == TensorProto.FLOAT8E4M3FN:
        return torch.from_numpy(array.view(np.uint8).copy()).view(FP8)
    return torch.from_numpy(array.copy())
