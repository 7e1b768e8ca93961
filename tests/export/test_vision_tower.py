"""An artifact in the place of FastVLM's vision tower: the same tokens, and refused where it is of other weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fvexport.core.errors import ArtifactError, ConfigError, UnavailableError
from fvexport.encoder.fastvlm import FastVLM, Sampling, Tiling, load_fastvlm
from fvexport.export.artifact import Artifact
from fvexport.export.runtime import ArtifactTower

Export = Callable[..., Artifact]
PICTURES = [np.random.default_rng(i).integers(0, 256, (60 + 40 * i, 90, 3), np.uint8) for i in range(3)]
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def vlm(fastvlm_dir: Path) -> FastVLM:
    return load_fastvlm(fastvlm_dir)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 1},
        {"batch": 2, "projector": True},
        {"batch": None, "dynamic_res": True},
        {"input": "uint8", "batch": 2},
    ],
    ids=str,
)
def test_tokens_are_the_eager_ones(vlm: FastVLM, exported: Export, options: dict[str, object]) -> None:
    tower = ArtifactTower(exported("llava_tiny", **options), vlm.info)
    assert tower.projected == bool(options.get("projector")) and tower.name == "onnxruntime-cpu"
    assert tower.resolution == (None if options.get("dynamic_res") else (128, 128))
    asked = {"tiling": Tiling(((1, 2), (2, 1))), "resolution": (128, 128)}
    wanted = vlm.encode_images(PICTURES, **asked)
    found = vlm.encode_images(PICTURES, tower=tower, **asked)
    assert found.counts == wanted.counts == (12, 12, 12)
    assert (found.connector_ms == 0) == tower.projected
    for ours, theirs in zip(found.tokens, wanted.tokens, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    once = Sampling(4)
    assert (
        vlm.generate(PICTURES[:1], QUESTION, tower=tower, resolution=(128, 128), sampling=once).token_ids
        == vlm.generate(PICTURES[:1], QUESTION, resolution=(128, 128), sampling=once).token_ids
    )


def artifact_of(exported: Export, kind: str) -> Artifact:
    return exported("llava_tiny", batch=1) if kind == "float" else exported("llava_tiny", input="uint8", batch=2)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_floats_and_levels_are_the_same_pixels(vlm: FastVLM, exported: Export, kind: str) -> None:
    """As transformers' processors give them, in any precision."""
    tower = ArtifactTower(artifact_of(exported, kind), vlm.info)
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 128, 128), np.uint8))
    wanted = tower.encode(levels)
    assert wanted.shape == (3, 4, 256)
    assert torch.allclose(tower.encode(levels.float() / 255), wanted, atol=1e-5)
    assert tower.encode((levels.float() / 255).bfloat16()).shape == wanted.shape
    if kind == "uint8":
        assert torch.equal(tower.encode((levels.float() / 255).half()), wanted)


def test_torch_backends_take_floats_too(vlm: FastVLM, exported: Export) -> None:
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 128, 128), np.uint8))
    for kind in ("float", "uint8"):
        tower = ArtifactTower(artifact_of(exported, kind), vlm.info, backend="eager")
        assert torch.allclose(tower.encode(levels.float() / 255), tower.encode(levels), atol=1e-5)
        assert tower.name == "eager"


def test_resolutions(vlm: FastVLM, exported: Export) -> None:
    fixed = ArtifactTower(exported("llava_tiny", batch=1), vlm.info)
    with pytest.raises(ConfigError, match="onnxruntime-cpu takes 128x128 alone; found --res 256x256"):
        vlm.encode_images(PICTURES, tower=fixed, resolution=(256, 256))
    with pytest.raises(ConfigError, match="takes 128x128 alone; found pixels of 64x64"):
        fixed.encode(torch.zeros(1, 3, 64, 64))
    assert vlm.encode_images(PICTURES[:1], tower=fixed).counts == (4,)  # its own where none is asked for
    dynamic = exported("llava_tiny", batch=None, dynamic_res=True)
    assert vlm.encode_images(PICTURES[:1], tower=ArtifactTower(dynamic, vlm.info), resolution=(64, 192)).counts == (3,)
    narrowed = ArtifactTower(dynamic, vlm.info, resolution=(64, 128))
    assert vlm.encode_images(PICTURES[:1], tower=narrowed).counts == (2,)
    with pytest.raises(ConfigError, match="not a multiple of 64"):
        ArtifactTower(dynamic, vlm.info).encode(torch.zeros(1, 3, 100, 64))


def test_other_weights_are_refused(vlm: FastVLM, exported: Export) -> None:
    other = replace(vlm.info, source="theirs", sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"other weights .*llava_tiny.* than those of theirs \(0{12}…\); .*--force"):
        ArtifactTower(exported("llava_tiny", batch=1), other)
    forced = ArtifactTower(exported("llava_tiny", batch=1), other, force=True)
    assert vlm.generate(PICTURES[:1], QUESTION, tower=forced, sampling=Sampling(1)).visual_tokens == 4
    other = replace(vlm.info, connector_sha256="0" * 64)
    ArtifactTower(exported("llava_tiny", batch=1), other)  # its connector is not in the file
    with pytest.raises(ArtifactError, match="ends with another connector"):
        ArtifactTower(exported("llava_tiny", batch=2, projector=True), other)


def test_what_else_is_refused(vlm: FastVLM, exported: Export, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact at"):
        ArtifactTower(tmp_path / "nothing", vlm.info)
    with pytest.raises(UnavailableError, match="unknown backend 'cudda'"):
        ArtifactTower(exported("llava_tiny", batch=1), vlm.info, backend="cudda")
