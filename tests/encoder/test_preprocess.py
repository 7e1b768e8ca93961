"""`fvexport.encoder.preprocess`: the pixel values of the released models, at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import ConfigError, ImageError
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import OPENAI_MEAN, OPENAI_STD, PreprocessConfig

PAD, CROP = PreprocessConfig(), PreprocessConfig(resize="shortest")
MODES = [PAD, CROP]
WITHIN = 1 / 255 + 1e-6


def expand2square(image: Image.Image) -> Image.Image:
    """LLaVA's own padding, with the released models' mean colour."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def released(image: Image.Image, side: int, mode: PreprocessConfig) -> np.ndarray:
    """What the released processor makes of an image: (1, 3, side, side) float32."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    image = image.convert("RGB")
    return processor(expand2square(image) if mode is PAD else image, return_tensors="np")["pixel_values"]


def noise(width: int, height: int) -> Image.Image:
    """The hardest picture to resize: each pixel by itself."""
    rng = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [64, 256, 1024])
@pytest.mark.parametrize("name", ["astronaut", "camera", "chelsea", "hubble_deep_field", "retina", "rocket"])
def test_photographs_as_the_released_processor(photographs, name, side, mode):
    with Image.open(photographs[name]) as photograph:
        for part in ((1, 1), (1 / 3, 1), (1, 1 / 5)):
            image = photograph.crop((0, 0, int(photograph.width * part[0]), int(photograph.height * part[1])))
            ours = Preprocessor(side, side, mode)(image)
            np.testing.assert_allclose(ours, released(image, side, mode), rtol=0, atol=WITHIN)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3000, 2), (2, 3000), (3, 2), (64, 64), (65, 63)])
def test_extreme_sizes_as_the_released_processor(size, mode):
    image = noise(*size)
    np.testing.assert_allclose(Preprocessor(64, 64, mode)(image), released(image, 64, mode), rtol=0, atol=WITHIN)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 96), st.sampled_from(MODES))
def test_any_size_as_the_released_processor(width, height, side, mode):
    image = noise(width, height)
    np.testing.assert_allclose(Preprocessor(side, side, mode)(image), released(image, side, mode), rtol=0, atol=WITHIN)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 96), st.integers(1, 96), st.sampled_from(MODES))
def test_any_target(width, height, rows, columns, mode):
    preprocessor = Preprocessor(rows, columns, mode)
    pixels = preprocessor.pixels(noise(width, height))
    assert pixels.shape == (3, rows, columns)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    values = preprocessor(noise(width, height))
    assert values.shape == (1, 3, rows, columns)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[0], (pixels / 255).astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(8, 96), st.integers(8, 96))
def test_a_white_image_fills_its_share_of_the_frame(width, height, rows, columns):
    white = Image.new("RGB", (width, height), (255, 255, 255))
    assert (Preprocessor(rows, columns, CROP).pixels(white) == 255).all()
    shown = min(rows, columns * height / width) * min(columns, rows * width / height)
    area = Preprocessor(rows, columns, PAD).pixels(white).sum() / (3 * 255)
    assert area == pytest.approx(shown, abs=0.1 * rows * columns)  # a canvas has whole pixels: up to 1/2 of 8


@pytest.mark.parametrize("mode", MODES)
def test_target_of_the_images_own_shape_changes_nothing(mode):
    image = noise(96, 64)
    np.testing.assert_array_equal(Preprocessor(64, 96, mode).pixels(image), np.asarray(image).transpose(2, 0, 1))


def test_target_that_is_not_square():
    """A square on a target twice as wide as high: bars left and right, or the middle half."""
    image = noise(32, 32)
    padded = Preprocessor(32, 64, PAD).pixels(image)
    assert not padded[:, :, :16].any()
    assert not padded[:, :, 48:].any()
    np.testing.assert_array_equal(padded[:, :, 16:48], np.asarray(image).transpose(2, 0, 1))
    padded = Preprocessor(64, 32, PAD).pixels(image)
    assert not padded[:, :16].any()
    assert not padded[:, 48:].any()
    np.testing.assert_array_equal(padded[:, 16:48], np.asarray(image).transpose(2, 0, 1))

    whole = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(Preprocessor(32, 64, CROP).pixels(image), whole[:, 16:48])
    np.testing.assert_array_equal(Preprocessor(64, 32, CROP).pixels(image), whole[:, :, 16:48])


def test_batches(photographs):
    preprocessor = Preprocessor(64, 64)
    images = [photographs["coffee"], str(photographs["rocket"]), Image.new("L", (5, 9)), np.zeros((7, 3, 4))]
    batch = preprocessor(images)
    assert batch.shape == (4, 3, 64, 64)
    assert batch.min() >= 0
    assert batch.max() <= 1
    for one, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(one, preprocessor(image)[0])
    with pytest.raises(ImageError, match="no images"):
        preprocessor([])


@pytest.mark.parametrize(("mode", "shown"), [("pad", 0), ("longest", 1), ("shortest", 64), ("squash", 64)])
def test_a_strip_whose_canvas_would_take_gigabytes(mode, shown):
    pixels = Preprocessor(64, 64, PreprocessConfig(mode)).pixels(Image.new("L", (300_000, 1), 200))
    assert (pixels == 200).all(axis=(0, 2)).sum() == shown  # padded, 64 / 300000 of a row rounds to no level


@pytest.mark.parametrize("mode", ["pad", "shortest", "longest", "squash"])
def test_memory_that_runs_out(monkeypatch, mode):
    def full(*_arguments):
        raise MemoryError

    monkeypatch.setattr("fvexport.encoder.preprocess.resize_window", full)
    with pytest.raises(ImageError, match=r"not enough memory to prepare an image \(96x64\)"):
        Preprocessor(64, 64, PreprocessConfig(mode)).pixels(noise(96, 64))


def test_bad_targets():
    with pytest.raises(ConfigError, match="0x64"):
        Preprocessor(0, 64)
    with pytest.raises(ConfigError, match="'stretch'"):
        PreprocessConfig(resize="stretch")  # type: ignore[arg-type]


CLIP = PreprocessConfig("shortest", "bilinear", 0.9, OPENAI_MEAN, OPENAI_STD, rounding="even")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_normalization_in_float64_and_back(seed):
    levels = np.random.default_rng(seed).integers(0, 256, (2, 3, 4, 5), np.uint8)
    values = CLIP.normalize(levels)
    mean, std = (np.reshape(each, (3, 1, 1)) for each in (OPENAI_MEAN, OPENAI_STD))
    np.testing.assert_allclose(values, (levels / 255 - mean) / std, rtol=0, atol=1e-6)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(CLIP.normalize_tensor(torch.from_numpy(levels)).numpy(), values)
    np.testing.assert_array_equal(CLIP.denormalize(values), levels)
    np.testing.assert_array_equal(CLIP.denormalize_tensor(torch.from_numpy(values)).numpy(), levels)


def test_released_values_are_levels_over_255():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, 0)
    np.testing.assert_array_equal(PAD.normalize(levels), (levels / 255).astype(np.float32))
    assert PAD.value_range() == (0, 1)
    low, high = CLIP.value_range()
    values = CLIP.normalize(levels)
    assert (low, high) == (values.min(), values.max())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), st.integers(1, 64), st.data())
def test_every_mode_makes_the_target(width, height, rows, columns, data):
    resize = data.draw(st.sampled_from(["pad", "shortest", "longest", "squash"]))
    crop_pct = data.draw(st.sampled_from([1.0, 0.95, 0.875, 0.5]))
    rounding = data.draw(st.sampled_from(["down", "even"]))
    config = PreprocessConfig(resize, "bilinear", crop_pct, fill=(10, 20, 30), rounding=rounding)
    pixels = Preprocessor(rows, columns, config).pixels(Image.new("RGB", (width, height), (10, 20, 30)))
    assert pixels.shape == (3, rows, columns)
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.reshape([10, 20, 30], (3, 1, 1)), pixels.shape))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"resize": "fit"}, "resize"), ({"resample": "cubic"}, "resample"), ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 1.1}, "crop_pct"), ({"mean": (0.5, 0.5)}, "mean"), ({"mean": (128.0, 128.0, 128.0)}, "mean"),
        ({"std": (0.0, 1.0, 1.0)}, "std"), ({"std": (1.0, 1.0, float("nan"))}, "std"), ({"fill": (0, 0, 256)}, "fill"),
        ({"rounding": "up"}, "rounding"), ({"crop_pct": 10**400}, "crop_pct"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(wrong, word):
    with pytest.raises(ConfigError, match=word):
        PreprocessConfig(**wrong)
