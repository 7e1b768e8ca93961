"""Weights whose 8-bit products saturate on x86 processors without VNNI.

There, one instruction (VPMADDUBSW) multiplies two neighbours along K by uint8 activations and adds the products in 16
bits: with activations up to 255, two weights of one sign whose absolute values add up to more than 128 can be cut off.
Runtimes then return other numbers than the file describes. Source: VPMADDUBSW in Intel's "Software Developer's Manual",
volume 2, and "Int8 computation considerations" in oneDNN's developer guide.
"""

from __future__ import annotations

import numpy as np
import onnx
from msgspec import UNSET
from onnx import numpy_helper

from .artifact import Artifact
from .manifest import Saturation
from .model_file import read_model

MAX_PAIR = 128
"""255 * 128 = 32640 fits 16 bits, 255 * 129 = 32895 does not."""


def saturating_pairs(weight: np.ndarray) -> int:
    """Pairs of neighbours along K that can saturate, of an int8 weight (N, K); an odd last column has no neighbour."""
    pairs = weight[:, : weight.shape[1] // 2 * 2].astype(np.int16).reshape(len(weight), -1, 2)
    return int((np.abs(pairs.sum(-1)) > MAX_PAIR).sum())  # of different signs, two int8 add up to 127 at most


def count_saturating(model: onnx.ModelProto) -> Saturation:
    """Which pairs of weights can saturate.

    Args:
        model: a quantized graph with its weights.
    """
    weights = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    readers = {name: node for node in model.graph.node for name in node.input}
    total, layers = 0, dict[str, int]()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in weights:
            continue
        weight, reader = numpy_helper.to_array(weights[node.input[0]]), readers.get(node.output[0])
        if reader is None:
            continue  # nothing computes with it
        if weight.ndim == 4 and weight.shape[1] > 1:
            matrix = weight.reshape(len(weight), -1)
        elif weight.ndim == 2:
            matrix = weight.T if reader.op_type == "MatMul" else weight
        else:
            continue  # depthwise: not multiplied in pairs
        total += matrix.shape[0] * (matrix.shape[1] // 2)
        if affected := saturating_pairs(matrix):
            layers[reader.name.rpartition("/")[0] or reader.name] = affected
    return Saturation(pairs=total, affected=sum(layers.values()), layers=layers)


def saturation_of(artifact: Artifact) -> Saturation:
    """`count_saturating` of an artifact: as recorded, or counted for one that has no record of it."""
    quantization = artifact.manifest.quantization
    if quantization is not None and quantization.saturation is not UNSET:
        return quantization.saturation
    return count_saturating(read_model(artifact))
