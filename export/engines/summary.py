"""What an engine's layers say: types, attention in one kernel or several, products that fell back, data moved about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...core.dtypes import BITS
from .layers import EngineLayer

LARGEST = 5
"""Tensors listed by size."""
ATTENTION = re.compile(r"^(stages\.\d+\.blocks\.\d+\.token_mixer)/(MatMul|Softmax)(_\d+)?$")
PLUGIN = re.compile(r"^(stages\.\d+\.blocks\.\d+\.token_mixer)/Attention$")


@dataclass(frozen=True)
class AttentionState:
    """One block's attention: the layers that its two products and softmax became; one is a fused kernel."""

    block: str
    layers: tuple[str, ...]

    @property
    def fused(self) -> bool:
        return len(self.layers) == 1


@dataclass(frozen=True)
class Fallback:
    """A product that was asked for in one type and is computed in a wider one."""

    node: str
    wanted: str
    found: str
    layer: str


@dataclass(frozen=True)
class EngineSummary:
    """What a report shows of an engine.

    Attributes:
        layers: how many.
        products: type -> layers that hold a convolution or matrix product, computed in it.
        others: type -> layers that hold none.
        moves: layers that only lay values out anew or change their type.
        moved_bytes: that those read and write for one run, where sizes are fixed.
        attention: of each block that has it.
        fallbacks: products wider than the file asks for.
        largest: (layer, type, shape, bytes) of the largest outputs.
    """

    layers: int
    products: dict[str, int]
    others: dict[str, int]
    moves: int
    moved_bytes: int
    attention: list[AttentionState]
    fallbacks: list[Fallback]
    largest: list[tuple[str, str, list[int], int]]


def summarize(
    layers: Sequence[EngineLayer], precision: str, quantized: Mapping[str, str] | None = None
) -> EngineSummary:
    """Counts and findings over an engine's layers.

    Args:
        layers: see `layers`.
        precision: of the file outside its quantized layers.
        quantized: module -> `int8` or `fp8`, of those that carry Q/DQ.
    """
    moves = [layer for layer in layers if layer.moves_only and not layer.products]
    outputs = sorted(((t, layer) for layer in layers for t in layer.outputs), key=lambda pair: -pair[0].bytes)
    return EngineSummary(
        layers=len(layers),
        products=_by_type(layer for layer in layers if layer.products),
        others=_by_type(layer for layer in layers if not layer.products),
        moves=len(moves),
        moved_bytes=sum(t.bytes for layer in moves for t in (*layer.inputs, *layer.outputs)),
        attention=_attention(layers),
        fallbacks=_fallbacks(layers, precision, quantized or {}),
        largest=[(_where(layer), t.dtype, list(t.shape), t.bytes) for t, layer in outputs[:LARGEST] if t.bytes],
    )


def _by_type(layers: Iterable[EngineLayer]) -> dict[str, int]:
    return dict(Counter(layer.precision for layer in layers).most_common())


def _attention(layers: Sequence[EngineLayer]) -> list[AttentionState]:
    found: dict[str, list[str]] = {}
    for layer in layers:
        for node in layer.nodes:
            match = ATTENTION.match(node) or PLUGIN.match(node)
            if match and layer.name not in found.setdefault(match[1], []):
                found[match[1]].append(layer.name)
    return [AttentionState(block, tuple(names)) for block, names in found.items()]


def _fallbacks(layers: Sequence[EngineLayer], precision: str, quantized: Mapping[str, str]) -> list[Fallback]:
    found = []
    for layer in layers:
        for node in layer.products:
            module = node.rpartition("/")[0]
            wanted = quantized.get(module, precision)
            # fp16 and bf16 files keep what FP16 could not hold in float32 on purpose: those modules end in `.module`.
            kept = module.endswith(".module") or ".module." in module
            if BITS.get(layer.precision, 0) > BITS[wanted] and not kept:
                found.append(Fallback(node, wanted, layer.precision, layer.name))
    return found


def _where(layer: EngineLayer) -> str:
    """The part of the model that a layer belongs to: its last node's module, or its own name."""
    named = [node for node in layer.nodes if "/" in node]
    return named[-1].rpartition("/")[0] if named else layer.name
