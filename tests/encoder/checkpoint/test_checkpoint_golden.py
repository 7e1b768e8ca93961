"""The loaded models give what the reference implementations gave for the same weights and pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvexport.encoder import reparameterize
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD

TOLERANCE = 1e-5
Golden = Callable[[str], dict[str, Any]]


def relative_l2(found: torch.Tensor, wanted: np.ndarray) -> float:
    reference = torch.from_numpy(wanted).double()
    assert found.shape == reference.shape
    return float((found.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("fused", [False, True], ids=["loaded", "fused"])
@pytest.mark.parametrize("name", ["llava_tiny", "timm_tiny", "transformers_tiny"])
def test_tokens_and_projection(golden_dir: Path, load_golden: Golden, name: str, fused: bool) -> None:
    checkpoint = load_checkpoint(golden_dir / name)
    encoder = reparameterize(checkpoint.encoder) if fused else checkpoint.encoder
    golden = load_golden(name)
    sizes = [key.removeprefix("pixels_") for key in golden if key.startswith("pixels_")]
    assert "256x256" in sizes
    for size in sizes:
        tokens = encoder(torch.from_numpy(golden[f"pixels_{size}"]))
        assert relative_l2(tokens, golden[f"tokens_{size}"]) < TOLERANCE
        if f"projected_{size}" in golden:
            assert checkpoint.connector is not None
            assert relative_l2(checkpoint.connector(tokens), golden[f"projected_{size}"]) < TOLERANCE
    assert (checkpoint.connector is None) == (name == "timm_tiny")


@pytest.mark.parametrize("fused", [False, True], ids=["loaded", "fused"])
def test_every_layer(golden_dir: Path, load_golden: Golden, golden_taps: dict[str, str], fused: bool) -> None:
    encoder: FastViTHD = load_checkpoint(golden_dir / "llava_tiny").encoder
    if fused:
        encoder = reparameterize(encoder)
    golden = load_golden("llava_tiny")
    outputs: dict[str, torch.Tensor] = {}
    for name, module in encoder.named_blocks():
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.__setitem__(name, out))
    encoder(torch.from_numpy(golden["pixels_256x256"]))
    taps = [key.removeprefix("tap_256x256/") for key in golden if key.startswith("tap_256x256/")]
    assert len(taps) >= 12
    errors = {tap: relative_l2(outputs[golden_taps[tap]], golden[f"tap_256x256/{tap}"]) for tap in taps}
    assert max(errors.values()) < TOLERANCE, errors
