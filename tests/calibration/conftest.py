"""The tiny encoder and what was seen of it, made once for all tests of what follows a calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fvexport.calibration.data import calibration_data
from fvexport.calibration.observe import observe
from fvexport.calibration.stats import Stats
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize

Observe = Callable[[FastViTHD], Stats]
SIDE = 128


@pytest.fixture(scope="session")
def seeded_tiny() -> Checkpoint:
    """In train form."""
    return load_checkpoint(variant="tiny")


@pytest.fixture(scope="session")
def fused_tiny(seeded_tiny: Checkpoint) -> FastViTHD:
    """In float32; not to be changed."""
    return reparameterize(seeded_tiny.encoder)


@pytest.fixture(scope="session")
def observe_tiny(seeded_tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """`observe_tiny(model)`: statistics of any fused model on six photographs."""
    data, frame = calibration_data(None, 6), Preprocessor(SIDE, SIDE)

    def run(model: FastViTHD) -> Stats:
        cache: Path = tmp_path_factory.mktemp("observed")
        return observe(model, seeded_tiny.info, data, frame, cache=cache)

    return run


@pytest.fixture(scope="session")
def stats_tiny(observe_tiny: Observe, fused_tiny: FastViTHD) -> Stats:
    """Of the tiny encoder; not to be changed."""
    return observe_tiny(fused_tiny)


@pytest.fixture(scope="session")
def held_out(photographs: dict[str, Path]) -> Tensor:
    """Two photographs that were not calibrated on, (2, 3, H, W)."""
    frame = Preprocessor(SIDE, SIDE)
    return torch.cat([torch.from_numpy(frame(photographs[name])) for name in ("astronaut", "coffee")])
