"""The accelerated tiny model in FP8, its kernels interpreted, against the quantized eager one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fvexport.encoder.fastvithd import FastViTHD
from fvexport.kernels import policy
from fvexport.kernels.accelerate import accelerate
from fvexport.kernels.dispatch import DEFAULTS, FP8_OPS
from fvexport.kernels.fp8_layers import count_fp8_layers

Quantized = Callable[..., FastViTHD]
PRODUCTS = (*FP8_OPS, "attention", "linear", "fast_gelu")


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("kernels", [PRODUCTS, pytest.param(tuple(DEFAULTS), marks=pytest.mark.long)])
def test_as_near_to_the_float_model_as_the_quantized_one(
    quantized: Quantized, fused: FastViTHD, monkeypatch: pytest.MonkeyPatch, kernels: tuple[str, ...]
) -> None:
    """Every quantized layer in FP8. Where one value rounds otherwise the rest follows, so that errors are compared."""
    monkeypatch.setattr(policy, "ROWS", tuple(replace(row, min_channels=0) for row in policy.ROWS))
    model, x = quantized().half(), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = accelerate(model, kernels=kernels, precision="fp8")
    assert count_fp8_layers(found) == 16
    with torch.inference_mode():
        wanted, own = fused(x), copy.deepcopy(model).float()(x)
        features = found(x.half())
        assert relative(features, wanted) < 1.41 * relative(own, wanted)
        assert relative(features, own) < 1.41 * relative(own, wanted)
        plain = accelerate(model, kernels=(), precision="fp8")(x.half())
        assert relative(plain, wanted) < 1.41 * relative(own, wanted)


def test_one_block_alone(quantized: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one quantized block nothing follows: half precision's rounding, and few values that round otherwise."""
    monkeypatch.setattr(policy, "ROWS", tuple(replace(row, min_channels=0) for row in policy.ROWS))
    names = [name for name, _ in quantized().named_modules() if name.endswith((".fc1", ".fc2", ".qkv", ".proj"))]
    keep = [name for name in names if not name.startswith("stages.4.")]
    model, x = quantized(keep).half(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = accelerate(model, kernels=PRODUCTS, precision="fp8")
    assert count_fp8_layers(found) == 4
    with torch.inference_mode():
        assert relative(found(x.half()), copy.deepcopy(model).float()(x)) < 3e-2
