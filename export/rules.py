"""What every graph we write must look like. A graph that breaks a rule is not written.

Each rule is a promise about speed on some runtime; together they are what distinguishes our
files from a plain export of the same model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx

from ..core.errors import ExportError
from ..encoder.config import MIXERS, FastViTHDConfig
from .tensor_names import PLUGIN_DOMAIN

GELU_OPSET = 20
EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN)


def check_rules(
    model: onnx.ModelProto, config: FastViTHDConfig, *, projector: bool = False, attention_plugin: bool = False
) -> None:
    """Raises ExportError naming every rule that `model` breaks.

    Args:
        model: the graph; its weights need not be loaded.
        config: the architecture it must hold.
        projector: whether a connector follows the encoder (its layers may differ).
        attention_plugin: whether attention is one node, which TensorRT's plugin runs.
    """
    broken = list(_broken(model, config, projector, attention_plugin))
    if broken:
        raise ExportError(f"the exported graph breaks our rules: {'; '.join(broken)}; please report this")


def check_quantized(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Raises ExportError unless the layers named, and they alone, multiply what was quantized.

    Args:
        model: the graph; its weights need not be loaded.
        layers: module names, as the policy has them.
    """
    producers = _producers(model.graph)
    stored = {t.name: t.data_type for t in model.graph.initializer}

    def dequantized(name: str) -> bool:
        return name in producers and producers[name].op_type == "DequantizeLinear"

    found = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul") or not all(dequantized(name) for name in node.input[:2]):
            continue
        if stored.get(producers[node.input[1]].input[0]) in EIGHT_BITS:  # not a product of two activations
            found.add(node.name.rpartition("/")[0])
    if found != set(layers):
        lost, more = sorted(set(layers) - found), sorted(found - set(layers))
        raise ExportError(
            f"the exported graph quantizes other layers than the policy: without {lost[:3]}, with {more[:3]}; "
            "please report this"
        )


def _broken(model: onnx.ModelProto, config: FastViTHDConfig, projector: bool, attention_plugin: bool) -> list[str]:
    graph, found = model.graph, []
    ops = Counter(node.op_type for node in graph.node)
    attention = sum(d for d, mixer in zip(config.depths, MIXERS, strict=True) if mixer == "attention")
    convolutional = sum(config.depths) - attention
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))

    # The softmax over one token is 1: at the smallest resolution stage 5's attention may fold away.
    sides = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[2:]]
    lone = config.depths[-1] if sides == [config.stride, config.stride] else 0

    def expect(what: str, actual: int, wanted: int, fewer: int = 0) -> None:
        if actual not in (wanted, wanted - fewer):
            found.append(f"{what}: {actual} instead of {wanted}")

    expect("BatchNormalization nodes", ops["BatchNormalization"], 0)
    expect("LayerNormalization nodes", ops["LayerNormalization"], attention)
    plugins = attention if attention_plugin else 0
    expect("attention plugin nodes", sum(n.domain == PLUGIN_DOMAIN for n in graph.node), plugins)
    expect("functions", len(model.functions), min(plugins, 1))
    expect("Softmax nodes", ops["Softmax"], attention - plugins, 0 if plugins else lone)
    # Squeeze-excite gates the last convolution: the one Mul that cannot fold.
    expect("Mul nodes", ops["Mul"] - (0 if opset >= GELU_OPSET else 2 * ops["Erf"]), 1)
    expect("attention MatMul nodes", _plain_attentions(graph), attention - plugins, 0 if plugins else lone)
    mixers = [n for n in graph.node if n.op_type == "Conv" and ".token_mixer" in n.name]
    expect("convolutions in RepMixers", len(mixers), convolutional)
    # Stem 3, patch embeddings 2 each, CPEs, mixers, ConvFFN 3 each, final conv and its gate's 2.
    embeddings, encodings = len(config.depths) - 1, MIXERS.count("attention")
    expect("convolutions", ops["Conv"], 3 + 2 * embeddings + encodings + convolutional + 3 * sum(config.depths) + 1 + 2)
    if opset >= GELU_OPSET:
        expect("Erf nodes (Gelu must be one)", ops["Erf"], 0)
        if not projector:
            expect("Gelu nodes", ops["Gelu"], 3 + 2 * embeddings + sum(config.depths) + 1)
    found += [f"Transpose pair {a} -> {b} cancels" for a, b in _transpose_pairs(graph)]
    return found


def _producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {out: node for node in graph.node for out in node.output}


def _plain_attentions(graph: onnx.GraphProto) -> int:
    """Counts MatMul -> Softmax -> MatMul chains with nothing between."""
    producers, count = _producers(graph), 0
    for node in graph.node:
        if node.op_type == "MatMul" and (softmax := producers.get(node.input[0])) and softmax.op_type == "Softmax":
            scores = producers.get(softmax.input[0])
            count += scores is not None and scores.op_type == "MatMul"
    return count


def _transpose_pairs(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    producers, pairs = _producers(graph), []
    for node in graph.node:
        before = producers.get(node.input[0]) if node.op_type == "Transpose" else None
        if before is not None and before.op_type == "Transpose":
            first, second = (
                next((list(a.ints) for a in n.attribute if a.name == "perm"), None) for n in (before, node)
            )
            # Without a perm a Transpose reverses the axes, and two reversals cancel.
            if first == second is None or (first and second and [first[axis] for axis in second] == sorted(first)):
                pairs.append((before.name, node.name))
    return pairs
