"""The trained tiny model: its images are what they claim, it is as good as its README says, and all of it counts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from fvexport.benchmarks.studies.trained import trained_tiny as task
from fvexport.core.errors import ArtifactError, ConfigError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint, load_encoder
from fvexport.encoder.fastvithd import FastViTHD, LayerScale
from fvexport.encoder.image import PHOTOGRAPHS
from fvexport.encoder.preprocess_config import PreprocessConfig
from fvexport.encoder.reparameterize import reparameterize

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 2000


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(task.TRAINED / task.ENCODER_FILE, variant="tiny")


@pytest.fixture(scope="module")
def told(checkpoint: Checkpoint) -> np.ndarray:
    return task.right(task.eager(checkpoint.encoder), IMAGES)


def test_an_image_depends_on_its_split_seed_and_index_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    labels, pixels = task.labels_and_pixels("test", 4, start=7)
    np.random.seed(4)  # noqa: NPY002
    for i in reversed(range(4)):
        image, label = task.example("test", 7 + i)
        assert image.dtype == np.uint8 and image.shape == (task.RESOLUTION, task.RESOLUTION, 3)
        assert label == labels[i] and np.array_equal(image.transpose(2, 0, 1), pixels[i])
    others = [task.example("test", 8), task.example("train", 7), task.example("test", 7, seed=1)]
    assert len({image.tobytes() for image, _ in [*others, task.example("test", 7)]}) == 4


def test_no_photograph_is_in_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(sum(task.PHOTOGRAPHS.values(), ())) == sorted(Path(name).stem for name in PHOTOGRAPHS)
    assert sum("motorcycle_left" in names for names in task.PHOTOGRAPHS.values()) == 1
    used: set[str] = set()
    monkeypatch.setattr(task, "_photograph", lambda name: used.add(name) or Image.new("RGB", (300, 300)))
    for split, names in task.PHOTOGRAPHS.items():
        used.clear()
        task.labels_and_pixels(split, 150)
        assert used == set(names)


def test_the_character_drawn_is_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    glyph = task._glyph
    monkeypatch.setattr(task, "_photograph", lambda name: Image.new("RGB", (300, 300)))
    monkeypatch.setattr(task, "_glyph", lambda character, size: drawn.append(character) or glyph(character, size))
    labels = [task.example("train", i)[1] for i in range(400)]  # the first ones, which have hardly any grain
    assert drawn == [task.CLASSES[label] for label in labels] and set(drawn) == set(task.CLASSES)
    image, _ = task.example("train", 0)  # no grain at all
    assert 50 < (image.max(2) > 100).sum() < 53 * 53


@pytest.mark.parametrize("size", [28, 52])
def test_characters_are_whole(size: int) -> None:
    for character in task.CLASSES:
        wide = Image.new("L", (200, 200))
        ImageDraw.Draw(wide).text((50, 50), character, fill=255, font=ImageFont.load_default(size))
        assert np.asarray(task._glyph(character, size), int).sum() == np.asarray(wide, int).sum() > 0


def test_frames_of_another_size() -> None:
    _, pixels = task.labels_and_pixels("train", 300, 10**6, resolution=64)  # the largest characters, fully turned, fit
    assert pixels.shape == (300, 3, 64, 64)


def test_errors_say_what_mends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for split, index, seed in (("val", 0, 0), ("test", -1, 0), ("test", 0, -1)):
        with pytest.raises(ConfigError, match="train or test"):
            task.example(split, index, seed=seed)
    with pytest.raises(ArtifactError, match="give its path"):
        task.load_head(tmp_path / "none.safetensors")
    monkeypatch.setattr(task, "sample_images", dict)
    with pytest.raises(UnavailableError, match="pip install"):
        task._photograph.__wrapped__("chelsea")


def test_committed_files_are_small_and_load_as_a_timm_checkpoint(checkpoint: Checkpoint) -> None:
    assert sum(file.stat().st_size for file in task.TRAINED.iterdir()) < 2_000_000
    assert (checkpoint.info.form, checkpoint.info.variant, checkpoint.info.trained) == ("timm", "tiny", True)
    assert checkpoint.encoder.form == "train"
    assert load_checkpoint(task.TRAINED).info.sha256 == checkpoint.info.sha256  # by its folder as well
    assert checkpoint.info.preprocessing == PreprocessConfig("shortest", rounding="even")
    weight, bias = task.load_head()
    assert weight.shape == (len(task.CLASSES), checkpoint.encoder.config.out_channels)
    assert bias.shape == (len(task.CLASSES),)


def test_reaches_the_accuracy_of_the_readme(told: np.ndarray) -> None:
    readme = (task.TRAINED / "README.md").read_text(encoding="utf-8")
    stated = float(re.search(r"\*\*([\d.]+) %\*\* of (?:the first )?4000 test images", readme)[1]) / 100
    assert 0.90 <= stated <= 0.98
    # Half of the 4000 images are drawn from them without replacement: four standard errors.
    assert abs(told.mean() - stated) < 4 * (stated * (1 - stated) / IMAGES * 0.5) ** 0.5


def test_fusion_changes_no_answer(checkpoint: Checkpoint, told: np.ndarray) -> None:
    fused = reparameterize(checkpoint.encoder, uint8_input=True)
    assert (task.right(task.eager(fused), 500, batch=33) != told[:500]).sum() <= 1
    assert task.accuracy(task.eager(fused), 100, start=400) == pytest.approx(told[400:500].mean(), abs=0.011)


def test_answers_are_those_of_float64(told: np.ndarray) -> None:
    """`right` against the head as PyTorch computes it in float64."""
    weight, bias = (torch.from_numpy(t).double() for t in task.load_head())
    labels, pixels = task.labels_and_pixels("test", 100)
    encoder = load_encoder(task.TRAINED).double()
    with torch.inference_mode():
        logits = nn.functional.linear(encoder(torch.from_numpy(pixels).double() / 255).mean(1), weight, bias)
    assert ((logits.argmax(1).numpy() == labels) != told[:100]).sum() <= 1


def test_every_layer_scale_counts() -> None:
    encoder = load_encoder(task.TRAINED)
    _, pixels = task.labels_and_pixels("test", 64)
    whole = task.eager(encoder)(pixels)
    scales = {name: module for name, module in encoder.named_modules() if isinstance(module, LayerScale)}
    assert len(scales) == 12
    changes: dict[str, float] = {}
    for name, module in scales.items():
        gamma = module.gamma.detach().clone()
        with torch.no_grad():
            module.gamma.zero_()
        changes[name] = float(np.linalg.norm(task.eager(encoder)(pixels) - whole) / np.linalg.norm(whole))
        with torch.no_grad():
            module.gamma.copy_(gamma)
    assert min(changes.values()) > 0.02, changes


@pytest.mark.parametrize("name", ["stages.0.blocks.0", "stages.2.blocks.1", "stages.3.blocks.0", "stages.4.blocks.0"])
def test_answers_suffer_without_a_block(told: np.ndarray, name: str) -> None:
    encoder = load_encoder(task.TRAINED)
    with torch.no_grad():
        for module in encoder.get_submodule(name).modules():
            if isinstance(module, LayerScale):
                module.gamma.zero_()
    without = task.right(task.eager(encoder), 1000)
    assert without.mean() < told[:1000].mean() and (without != told[:1000]).mean() > 0.01


def test_half_a_point_shows_in_a_paired_comparison(told: np.ndarray) -> None:
    """Answers that 8-bit weights change, one scale per channel: few enough for 4000 images to tell 0.5 points."""
    encoder = load_encoder(task.TRAINED)
    _round_weights(encoder)
    changed = float((task.right(task.eager(encoder), IMAGES) != told).mean())
    assert 2 * (changed / 4000) ** 0.5 < 0.005, changed


def _round_weights(encoder: FastViTHD) -> None:
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                scale = module.weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (module.weight.ndim - 1)) / 127
                module.weight.copy_((module.weight / scale).round() * scale)


def test_phases_that_are_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(task.main, ["--out", str(tmp_path / "m.safetensors"), "--phases", "64-2"])
    assert result.exit_code == 2 and "RES:BATCHES" in result.output


def test_training_is_repeatable_and_writes_what_loads(tmp_path: Path) -> None:
    plan = ["--phases", "64:2,128:1", "--images", "8", "--seed", "5"]
    for run in ("a", "b"):
        result = CliRunner().invoke(task.main, ["--out", str(tmp_path / run / "model.safetensors"), *plan])
        assert result.exit_code == 0, result.output
        assert re.search(r"% of 8 test images", result.output)
    first, second = (load_checkpoint(tmp_path / run).info for run in ("a", "b"))
    assert first.sha256 == second.sha256
    heads = [task.load_head(tmp_path / run / task.HEAD_FILE) for run in ("a", "b")]
    assert all(np.array_equal(a, b) for a, b in zip(*heads, strict=True))
    told: list[int] = []
    encoder, _ = task.train(phases=((64, 1),), seed=6, progress=lambda _, done, total: told.append(done))
    assert told == [1]
    assert not any(module.training for module in encoder.modules())
    assert int(encoder.state_dict()["stem.0.conv_kxk.0.bn.num_batches_tracked"]) == 1  # BatchNorm did learn
