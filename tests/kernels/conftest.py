"""What the kernels' tests share; nothing here interprets a kernel (see `interpreted/`)."""

from __future__ import annotations

import pytest

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.reparameterize import reparameterize
from fvexport.kernels.dispatch import SWITCH


@pytest.fixture(autouse=True)
def _all_on(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture(scope="session")
def fused() -> FastViTHD:
    """The fused tiny model with seeded weights."""
    return reparameterize(load_checkpoint(variant="tiny").encoder)
