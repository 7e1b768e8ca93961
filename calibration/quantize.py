"""A fused model and its statistics in, a model with quantizers out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.progress import Progress, silent
from ..encoder.fastvithd import FastViTHD
from .calibration_options import Method
from .gptq import INT8_LIMIT, REDUCED_LIMIT, round_weight
from .policy import Policy
from .qdq import FP8, QuantizedConv, QuantizedLinear, Quantizer
from .ranges import choose_range
from .ranges_file import Stats


def quantizable(model: nn.Module, policy: Policy) -> list[str]:
    """Names of the layers that `policy` quantizes, in order of running."""
    return [name for name, _ in model.named_modules() if policy.quantizes(name)]


def quantize(
    model: FastViTHD, stats: Stats, policy: Policy, *, method: Method = "weighted", progress: Progress = silent
) -> FastViTHD:
    """A copy of `model` in which every layer of the policy multiplies eight-bit numbers.

    Weights: one scale per output channel, rounded by `gptq`, from -127 to 127, or with the policy's `reduce_range`
    from -64 to 64. Activations: one scale per tensor, of `method` (FP8: of the largest value).

    Args:
        model: the fused encoder, equalized or not; left alone.
        stats: of this model's activations.
        policy: which layers, and in which format.
        method: how ranges are chosen.
        progress: called as `quantize` with the layers done.

    Raises:
        ConfigError: `stats` lack one of the layers.
    """
    result = copy.deepcopy(model)
    names = quantizable(result, policy)
    modules = dict(result.named_modules())
    with torch.no_grad():
        for done, name in enumerate(names):
            progress("quantize", done, len(names))
            parent = modules[name.rpartition(".")[0]]
            setattr(parent, name.rpartition(".")[2], _quantized(name, modules[name], stats, policy, method))
    progress("quantize", len(names), len(names))
    return result.eval()


def _quantized(name: str, layer: nn.Module, stats: Stats, policy: Policy, method: Method) -> nn.Module:
    assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    moments = stats.moments.get(f"{name}:in")
    if moments is None:
        raise ConfigError(f"the ranges have nothing on {name}; run `fvexport calibrate` again")
    dtype = FP8 if policy.fmt == "fp8" else torch.int8
    matrix = layer.weight.flatten(1)
    limit = REDUCED_LIMIT if policy.reduce_range else INT8_LIMIT
    rounded = round_weight(matrix, layer.bias, moments, dtype, limit)
    entry = _quantizer(f"{name}:in", stats, policy, method)
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(
            rounded.values.T.contiguous(), rounded.scale, rounded.bias, entry,
            integer_bias=policy.scheme.integer_bias and dtype != FP8,
        )  # fmt: skip
    leaving = (
        _quantizer(name, stats, policy, method, before_gelu=name.endswith("fc1"))
        if policy.quantizes_output(name)
        else None
    )
    return QuantizedConv(rounded.values.view(layer.weight.shape), rounded.scale, rounded.bias, entry, leaving)


def _quantizer(tap: str, stats: Stats, policy: Policy, method: Method, *, before_gelu: bool = False) -> Quantizer:
    histogram = stats.histograms.get(tap)
    if histogram is None:
        raise ConfigError(f"the ranges have nothing on {tap}; run `fvexport calibrate` again")
    symmetric = policy.scheme.symmetric
    how: Method = "minmax" if policy.fmt == "fp8" else method
    chosen = choose_range(
        histogram.merged(), how, symmetric=symmetric, before_gelu=before_gelu, samples=_samples(tap, stats)
    )
    dtype = FP8 if policy.fmt == "fp8" else torch.int8 if symmetric else torch.uint8
    return chosen.quantizer(dtype)


def _samples(tap: str, stats: Stats) -> int:
    """Positions at which a tensor was seen."""
    moments = stats.moments.get(f"{tap.removesuffix(':in')}:in")
    return moments.rows if moments else 0
