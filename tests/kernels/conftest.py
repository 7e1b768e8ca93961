"""What the kernels' tests share. Imports no kernel: whether they are interpreted is `interpreted/`'s to say first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import pytest

from fvexport.calibration.equalize import equalize
from fvexport.calibration.observe import observe
from fvexport.calibration.photos import calibration_data
from fvexport.calibration.policy import Policy
from fvexport.calibration.quantize import quantize
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize


@pytest.fixture(autouse=True)
def _all_on(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.delenv("FVEXPORT_KERNELS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _translations(torchlib_once: None) -> None:
    """For every test of this folder."""


@pytest.fixture(scope="session")
def fused() -> FastViTHD:
    """The fused tiny model with seeded weights."""
    return reparameterize(load_checkpoint(variant="tiny").encoder)


@pytest.fixture(scope="session")
def quantized(fused: FastViTHD, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FastViTHD]:
    """`quantized(keep=…, fmt=…)`: the tiny model quantized but for some layers; the caller may change it."""
    info, data = load_checkpoint(variant="tiny").info, calibration_data(None, 4)
    stats = observe(fused, info, data, Preprocessor(64, 64), cache=tmp_path_factory.mktemp("observed"))
    made: dict[tuple[frozenset[str], str], FastViTHD] = {}

    def make(keep: Collection[str] = (), fmt: str = "fp8") -> FastViTHD:
        key = frozenset(keep), fmt
        if key not in made:
            # As an export does: equalized for all layers, those of a bound then left in float.
            whole = equalize(fused, stats, Policy("tensorrt", fmt))  # type: ignore[arg-type]
            made[key] = quantize(whole.model, whole.stats, Policy("tensorrt", fmt, key[0]))  # type: ignore[arg-type]
        return copy.deepcopy(made[key])

    return make
