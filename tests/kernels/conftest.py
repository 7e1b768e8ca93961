"""What the kernels' tests share. Imports no kernel: whether they are interpreted is `interpreted/`'s to say first."""

from __future__ import annotations

import pytest

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.reparameterize import reparameterize


@pytest.fixture(autouse=True)
def _all_on(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.delenv("FVEXPORT_KERNELS", raising=False)


@pytest.fixture(scope="session")
def fused() -> FastViTHD:
    """The fused tiny model with seeded weights."""
    return reparameterize(load_checkpoint(variant="tiny").encoder)
