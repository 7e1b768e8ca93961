"""What each quantized layer alone costs in the final features, and which stay in float for a bound.

Errors of different layers hardly know of each other, so their powers add up: a layer's own error is measured with every
other layer in float, and the sum predicts what remains once the worst are left out. What is chosen that way is then
measured whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.progress import Progress, silent
from ..core.verdict.figures import compare
from ..encoder.exact import exact_float32
from ..encoder.fastvithd import FastViTHD
from .findings import LayerNoise
from .policy import row_of

MARGIN_DB = 0.2
"""Aimed above a bound: a prediction is one, and a runtime rounds its sums elsewhere than PyTorch."""


def sensitivity(
    model: FastViTHD, quantized: FastViTHD, pixel_values: Tensor, *, progress: Progress = silent
) -> list[LayerNoise]:
    """The effect of each quantized layer on the features, the worst first.

    A layer's run begins at its block, on the block's input from one float run.

    Args:
        model: the float model that `quantized` was made of.
        quantized: from `quantize`.
        pixel_values: (B, 3, H, W), as the model takes them.
        progress: called as `sensitivity` with the layers done.
    """
    model = copy.deepcopy(model)
    layers = [name for name, part in quantized.named_modules() if _is_quantized(part)]
    found: list[LayerNoise] = []
    with torch.inference_mode(), exact_float32():
        inputs, y, work = _float_run(model, pixel_values, layers)
        features = _tokens(y)
        blocks = list(model.named_blocks())
        for number, (block, _) in enumerate(blocks):
            for name in (n for n in layers if n == block or n.startswith(f"{block}.")):
                progress("sensitivity", len(found), len(layers))
                kept = swap(model, {name: quantized.get_submodule(name)})
                y = inputs[number]
                for _, part in blocks[number:]:
                    y = part(y)
                swap(model, kept)
                row, share = row_of(name), work[name] / sum(work.values())
                sqnr_db = compare(features, _tokens(y)).strict_sqnr_db
                found.append(LayerNoise(name, row.kind if row else "", sqnr_db, share))
    progress("sensitivity", len(layers), len(layers))
    return sorted(found, key=lambda layer: layer.sqnr_db)


def choose_float_layers(found: Sequence[LayerNoise], measured_db: float, bound_db: float) -> list[str]:
    """The fewest layers to keep in float for the predicted SQNR to reach `bound_db`; `measured_db` is that of all."""
    rest = sum(layer.noise for layer in found)
    together = 10 ** (-measured_db / 10) / rest  # of what the sum says: 1 where errors are strangers to each other
    allowed = 10 ** (-(bound_db + MARGIN_DB) / 10)
    chosen: list[str] = []
    for layer in sorted(found, key=lambda one: one.sqnr_db):
        if rest * together <= allowed:
            break
        rest -= layer.noise
        chosen.append(layer.name)
    return chosen


@dataclass(frozen=True)
class Bounded:
    """A quantized model that meets a bound.

    Attributes:
        model: the model.
        kept: layers that stayed in float, the most sensitive first.
        sqnr_db: as measured in eager mode.
        layers: what each layer costs; empty where nothing had to be left out.
    """

    model: FastViTHD
    kept: list[str]
    sqnr_db: float
    layers: list[LayerNoise]


def meet_bound(
    model: FastViTHD, quantized: FastViTHD, bound_db: float, measure: Callable[[FastViTHD], float], probe: Tensor, *,
    progress: Progress = silent,
) -> Bounded:  # fmt: skip
    """Puts as few layers back into float as `bound_db` asks for.

    Args:
        model, quantized: the float model and the one made of it.
        bound_db: SQNR of the features to reach, by `measure`.
        measure: SQNR in dB of a model, the stricter of plain and centred, on pictures that were not calibrated on.
        probe: (B, 3, H, W) to find sensitive layers with.
        progress: see `sensitivity`.

    Raises:
        ConfigError: the bound is out of reach while any layer is quantized; says the best that is.
    """
    reached = measure(quantized)
    if reached >= bound_db + MARGIN_DB:
        return Bounded(quantized, [], reached, [])
    found = sensitivity(model, quantized, probe, progress=progress)
    order = [layer.name for layer in found]
    last = len(order) - 1
    count = min(len(choose_float_layers(found, reached, bound_db)), last)
    while True:
        candidate = copy.deepcopy(quantized)
        swap(candidate, {name: model.get_submodule(name) for name in order[:count]})
        best = measure(candidate)
        if best >= bound_db + (MARGIN_DB if count < last else 0):
            return Bounded(candidate, order[:count], best, found)
        if count == last:
            break
        count = min(last, count + max(1, count // 10))
    raise ConfigError(
        f"no quantized model reaches {bound_db:.1f} dB: with {last} of {len(order)} layers in float it is "
        f"{best:.1f} dB; lower --min-sqnr or --min-cosine, or export without quantization"
    )


def swap(model: nn.Module, parts: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Puts other modules in the places named; returns those that stood there."""
    before = {}
    for name, part in parts.items():
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        before[name] = getattr(owner, leaf)
        setattr(owner, leaf, part)
    return before


def _is_quantized(module: nn.Module) -> bool:
    from .qdq import QuantizedConv, QuantizedLinear

    return isinstance(module, QuantizedConv | QuantizedLinear)


def _tokens(features: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, N, C)."""
    return features.float().flatten(2).mT.cpu().numpy()


def _float_run(
    model: FastViTHD, pixel_values: Tensor, layers: Sequence[str]
) -> tuple[list[Tensor], Tensor, dict[str, float]]:
    """Every block's input, the last one's output, and each layer's multiply-adds."""
    work: dict[str, float] = {}

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, _: Any, y: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            channels = y.shape[1] if isinstance(layer, nn.Conv2d) else y.shape[-1]
            work[name] = y.numel() / channels * layer.weight.numel()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(count(name)) for name in layers]
    x, inputs = model._pixels(pixel_values), []
    for _, block in model.named_blocks():
        inputs.append(x)
        x = block(x)
    for handle in handles:
        handle.remove()
    return inputs, x, work
