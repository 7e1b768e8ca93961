"""`fvexport.encoder.image.sample_images`: the photographs of scikit-image."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fvexport.core.errors import UnavailableError
from fvexport.encoder.image import PHOTOGRAPHS, load_image, sample_images


def test_sample_images(photographs):
    assert {"astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field"} <= set(photographs)
    assert set(photographs) <= {Path(name).stem for name in PHOTOGRAPHS}
    for path in photographs.values():
        assert min(load_image(path).size) >= 256


def test_sample_images_without_scikit_image(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match="pip install scikit-image"):
        sample_images()
