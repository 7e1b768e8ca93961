"""Attention as one node, `fvexport::Attention`, that TensorRT gives to our kernel and onnxruntime computes.

The node reads packed qkv (B, N, 3C) as the qkv product writes it, so the transposes around attention go too. The model
carries the node's meaning as an ONNX function of the same name, MatMul-Softmax-MatMul: onnxruntime computes that
(OpenVINO reads no functions). TensorRT's parser takes the plugin where one of that name, version and namespace is
registered (`fvexport.kernels.tensorrt_plugin`), before the function and before ONNX's own Attention, as tried with the
parser of TensorRT 11.4. Without the plugin it refuses the node.

Attributes of the node are what TensorRT's parser asks for: `plugin_namespace`, `plugin_version`, and `aot` (the kernel
stands compiled in the engine). The number of heads follows from C, head_dim being 32.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..encoder.fastvithd import Attention, FastViTHD
from ..kernels.attention import HEAD_DIM, attention_reference
from .tensor_names import PLUGIN_DOMAIN, PLUGIN_NAME

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, NAME, VERSION = PLUGIN_DOMAIN, PLUGIN_NAME, "1"


class PackedAttention(Attention):
    """The same attention, with its products and softmax as one node while exporting."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        b, n, c = x.shape
        qkv = self.qkv(x)
        if not torch.compiler.is_exporting():
            return self.proj(attention_reference(qkv, c // self.head_dim))
        attributes: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": VERSION, "aot": 1}
        y = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}", (qkv,), attrs=attributes, dtype=qkv.dtype, shape=(b, n, c), version=int(VERSION)
        )
        return self.proj(y)


def with_attention_plugin(model: FastViTHD) -> FastViTHD:
    """The fused model with each attention as one node; it shares its weights with `model`.

    Raises ConfigError for another form, or another head_dim than the kernel's 32.
    """
    if model.form != "fused":
        raise ConfigError("the attention plugin takes q scaled already; call reparameterize(model) first")
    if model.config.head_dim != HEAD_DIM:
        raise ConfigError(f"the attention plugin is for head_dim {HEAD_DIM}; this model has {model.config.head_dim}")
    return cast("FastViTHD", _replaced(model))


def _replaced(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    clone._modules = {name: child and _replaced(child) for name, child in module._modules.items()}
    if type(module) is Attention:
        clone.__class__ = PackedAttention
    return clone


def add_function(model: ir.Model, opset: int) -> None:
    """Gives the model what the node means, for onnxruntime."""
    from onnx_ir import serde

    function = serde.deserialize_function(attention_function(opset))
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = int(VERSION)


def attention_function(opset: int) -> onnx.FunctionProto:
    """softmax(q k^T) v on packed qkv (B, N, 3C) -> (B, N, C), of any floating type."""

    def constant(name: str, *values: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value_ints=list(values))

    nodes = [
        constant("packed", 0, 0, 3, -1, HEAD_DIM),
        constant("merged", 0, 0, -1),
        helper.make_node("Reshape", ["qkv", "packed"], ["split"]),  # (B, N, 3, H, 32)
        helper.make_node("Transpose", ["split"], ["parts"], perm=[2, 0, 3, 1, 4]),
        helper.make_node("Split", ["parts"], ["q", "k", "v"], axis=0, num_outputs=3),  # (1, B, H, N, 32)
        helper.make_node("Transpose", ["k"], ["k_t"], perm=[0, 1, 2, 4, 3]),
        helper.make_node("MatMul", ["q", "k_t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["heads_first"]),
        helper.make_node("Transpose", ["heads_first"], ["tokens_first"], perm=[1, 3, 0, 2, 4]),  # (B, N, 1, H, 32)
        helper.make_node("Reshape", ["tokens_first", "merged"], ["y"]),
    ]
    return helper.make_function(
        DOMAIN, NAME, ["qkv"], ["y"], nodes, [helper.make_opsetid("", opset)],
        attributes=["plugin_namespace", "plugin_version", "aot"],
    )  # fmt: skip
