"""Pixels on their way to a GPU: the same to the bit, and no buffer overwritten before it was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.preprocessing import PUBLISHED
from fvexport.encoder.preprocess_config import RELEASED
from fvexport.export.artifact import Artifact
from fvexport.export.runtime import Encoder
from fvexport.export.runtime import encoder as module
from fvexport.export.runtime.upload import Upload

CPU = torch.device("cpu")


@pytest.mark.gpu
def test_levels_become_the_pixel_values_of_numpy_on_a_gpu() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, 0)
    for config in (RELEASED, PUBLISHED["timm"]):
        found = config.normalize_tensor(torch.from_numpy(levels).cuda()).cpu().numpy()
        np.testing.assert_array_equal(found, config.normalize(levels))


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu)])
def test_arrays_arrive_and_are_the_callers_to_keep(device: torch.device) -> None:
    upload = Upload(device)
    generator = np.random.default_rng(0)
    arrays: list[np.ndarray] = [
        generator.integers(0, 256, (2, 3, 64, 64), np.uint8),
        generator.random((1, 3, 8, 8), np.float32),  # smaller: the same buffer
        generator.integers(0, 256, (4, 3, 64, 96), np.uint8)[:, ::-1, :, ::2],  # larger, and not contiguous
        np.zeros((0, 3, 8, 8), np.uint8),
    ]
    uploaded = [upload(array) for array in arrays]
    for array, tensor in zip(arrays, uploaded, strict=True):
        assert tensor.device == device
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


@pytest.fixture
def gpu_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders take their backend's CPU for a GPU."""
    monkeypatch.setattr(module, "_gpu_of", lambda backend: CPU)


class Seen:
    """A backend with what it was given, in place of the features."""

    name, computes, device = "seen", "nothing", CPU

    def __init__(self) -> None:
        self.pixels: list[torch.Tensor] = []

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.run_tensor(torch.from_numpy(pixel_values)).numpy()

    def run_tensor(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.pixels.append(pixel_values.clone())
        tokens, channels = 4, 256  # of tiny at 128 x 128
        return pixel_values.float().mean((1, 2, 3))[:, None, None].expand(-1, tokens, channels)


def encoded(artifact: Artifact, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, torch.Tensor]:
    backend = Seen()
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_backend", lambda *_, **__: backend)
        encoder = Encoder(artifact, backend="eager")
        features = encoder.run(pixels)
    return features, torch.cat(backend.pixels)


@pytest.mark.parametrize("input", ["float", "uint8"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("batch", [2, None])
def test_a_gpu_sees_what_a_cpu_sees(
    exported: Callable[..., Artifact], input: str, kind: type, batch: int | None, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    artifact = exported(**({"input": "uint8"} if input == "uint8" else {}), batch=batch)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 128, 128), np.uint8)
    given = pixels if kind is np.uint8 else (pixels / 255).astype(kind)
    features, seen = encoded(artifact, given, monkeypatch)
    request.getfixturevalue("gpu_of_the_cpu")
    found, uploaded = encoded(artifact, given, monkeypatch)
    assert seen.dtype == uploaded.dtype == (torch.uint8 if input == "uint8" else torch.float32)
    assert torch.equal(seen, uploaded)
    np.testing.assert_array_equal(found, features)


@pytest.mark.usefixtures("gpu_of_the_cpu")
def test_levels_are_uploaded_as_bytes(exported: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[Any] = []
    upload = Upload.__call__

    def watched(self: Upload, array: np.ndarray) -> torch.Tensor:
        uploads.append(array.dtype)
        return upload(self, array)

    monkeypatch.setattr(Upload, "__call__", watched)
    encoder = Encoder(exported(), backend="eager", checkpoint=load_checkpoint(variant="tiny"))
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), np.uint8)
    assert encoder.run(levels).shape == (2, 4, 256)
    assert uploads == [np.uint8, np.uint8]  # a file with batch 1, run twice


def test_backends_on_the_cpu_get_no_upload(exported: Callable[..., Artifact]) -> None:
    artifact = exported()
    for backend in ("eager", "onnxruntime-cpu"):
        checkpoint = load_checkpoint(variant="tiny") if backend == "eager" else None
        assert module._gpu_of(Encoder(artifact, backend=backend, checkpoint=checkpoint).backend) is None
