"""`fvexport.encoder.preprocess`: the pixel values of the released models, at any size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.encoder.preprocess import Preprocessor
from fvexport.errors import ConfigError, ImageError

MODES = ["pad", "crop"]
WITHIN = 1 / 255 + 1e-6


def expand2square(image: Image.Image) -> Image.Image:
    """LLaVA's own padding, with the released models' mean colour."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def released(image: Image.Image, side: int, mode: str) -> np.ndarray:
    """What the released processor makes of an image: (1, 3, side, side) float32."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    image = image.convert("RGB")
    return processor(expand2square(image) if mode == "pad" else image, return_tensors="np")["pixel_values"]


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
    assert (Preprocessor(rows, columns, "crop").pixels(white) == 255).all()
    shown = min(rows, columns * height / width) * min(columns, rows * width / height)
    area = Preprocessor(rows, columns, "pad").pixels(white).sum() / (3 * 255)
    assert area == pytest.approx(shown, abs=0.1 * rows * columns)  # a canvas has whole pixels: up to 1/2 of 8


@pytest.mark.parametrize("mode", MODES)
def test_target_of_the_images_own_shape_changes_nothing(mode):
    image = noise(96, 64)
    np.testing.assert_array_equal(Preprocessor(64, 96, mode).pixels(image), np.asarray(image).transpose(2, 0, 1))


def test_target_that_is_not_square():
    """A square on a target twice as wide as high: bars left and right, or the middle half."""
    image = noise(32, 32)
    padded = Preprocessor(32, 64, "pad").pixels(image)
    assert not padded[:, :, :16].any()
    assert not padded[:, :, 48:].any()
    np.testing.assert_array_equal(padded[:, :, 16:48], np.asarray(image).transpose(2, 0, 1))
    padded = Preprocessor(64, 32, "pad").pixels(image)
    assert not padded[:, :16].any()
    assert not padded[:, 48:].any()
    np.testing.assert_array_equal(padded[:, 16:48], np.asarray(image).transpose(2, 0, 1))

    whole = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(Preprocessor(32, 64, "crop").pixels(image), whole[:, 16:48])
    np.testing.assert_array_equal(Preprocessor(64, 32, "crop").pixels(image), whole[:, :, 16:48])


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


@pytest.mark.parametrize("mode", MODES)
def test_strips_that_would_need_gigabytes_are_refused_first(tmp_path, mode):
    path = tmp_path / "strip.png"
    Image.new("L", (300_000, 1)).save(path)
    with pytest.raises(ImageError, match=r"strip\.png \(300000x1\) is too long and narrow") as caught:
        Preprocessor(1024, 1024, mode)(path)
    assert "\n" not in str(caught.value)


def test_bad_targets():
    with pytest.raises(ConfigError, match="0x64"):
        Preprocessor(0, 64)
    with pytest.raises(ConfigError, match="'stretch'"):
        Preprocessor(64, 64, "stretch")  # type: ignore[arg-type]


# Plain data


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (512, 384)])
def test_dict_and_back(size, mode):
    preprocessor = Preprocessor(*size, mode)
    assert Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict()))) == preprocessor


def test_transformers_reads_our_dict_and_we_read_its(photographs):
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    preprocessor = Preprocessor(128, 128, "crop")
    processor = clip.CLIPImageProcessorPil(**preprocessor.to_dict())
    with Image.open(photographs["rocket"]) as image:
        theirs = processor(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(preprocessor(image), theirs, rtol=0, atol=WITHIN)
    released_file = json.loads(processor.to_json_string())
    more = {"image_aspect_ratio": "crop", "processor_class": "LlavaProcessor"}
    assert Preprocessor.from_dict({**released_file, **more}) == preprocessor


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("image_mean", [0.48, 0.46, 0.41], "image_mean"),
        ("image_std", [0.27, 0.26, 0.28], "image_std"),
        ("resample", 2, "resample"),
        ("rescale_factor", 1 / 127.5, "rescale_factor"),
        ("do_center_crop", False, "do_center_crop"),
        ("do_rescale", None, "do_rescale"),
        ("size", {"shortest_edge": 96}, "size"),
        ("crop_size", {"height": 64}, "width"),
        ("crop_size", 64, "crop_size"),
        ("crop_size", {"height": "tall", "width": 64}, "tall"),
        ("crop_size", {"height": 0, "width": 64}, "at least one pixel"),
        ("image_aspect_ratio", "anyres", "image_aspect_ratio"),
        ("do_pad", True, "do_pad"),
        ("patch_size", 14, "patch_size"),
    ],
)
def test_other_preprocessing_is_refused_by_name(key, value, word):
    with pytest.raises(ConfigError, match=word):
        Preprocessor.from_dict({**Preprocessor(64, 64).to_dict(), key: value})


@pytest.mark.parametrize("key", ["image_aspect_ratio", "crop_size", "image_mean", "size"])
def test_missing_entries_are_refused_by_name(key):
    data = Preprocessor(64, 64).to_dict()
    del data[key]
    with pytest.raises(ConfigError, match=key):
        Preprocessor.from_dict(data)
    Preprocessor.from_dict({**Preprocessor(64, 64).to_dict(), "do_pad": False, "do_reduce_labels": None})
