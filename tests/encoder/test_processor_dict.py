"""`fvexport.encoder.processor_dict`: preprocessing in the terms of transformers' image processors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import ConfigError
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from fvexport.encoder.processor_dict import config_of_processor

CONFIGS = {
    "released": PreprocessConfig(),
    "padded with the mean": PreprocessConfig("pad", "bilinear", 1.0, (0.5,) * 3, (0.25,) * 3, (127,) * 3),
    "cropped": PreprocessConfig("shortest"),
    "clip": PreprocessConfig("shortest", "bilinear", 0.875, OPENAI_MEAN, OPENAI_STD),
    "squashed": PreprocessConfig("squash", "lanczos", 1.0, (0.5,) * 3, (0.5,) * 3),
}
OLD = {
    "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
    "size": {"shortest_edge": 64}, "resample": 3, "do_center_crop": True, "crop_size": {"height": 64, "width": 64},
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
}  # fmt: skip
"""What earlier versions wrote, with `image_aspect_ratio`."""


def theirs(data: dict, image: Image.Image) -> np.ndarray:
    """What the class that a dictionary names makes of an image, on Pillow: (1, 3, H, W)."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    llava = pytest.importorskip("transformers.models.llava.image_processing_pil_llava")
    classes = {
        "CLIPImageProcessor": clip.CLIPImageProcessorPil, "LlavaImageProcessor": llava.LlavaImageProcessorPil,
    }  # fmt: skip
    return classes[data["image_processor_type"]](**data)(image, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_the_class_that_the_dictionary_names_makes_the_same_values(config, width, height):
    noise = np.random.default_rng(width * 1009 + height).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)
    own = Preprocessor(64, 64, config)
    np.testing.assert_allclose(own(image), theirs(own.to_dict(), image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_transformers_saves_is_read_back(config):
    own = Preprocessor(64, 64, config)
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    saved = json.loads(clip.CLIPImageProcessorPil(**own.to_dict()).to_json_string())
    mode = "pad" if config.resize == "pad" else "shortest"
    saved["image_processor_type"] = own.to_dict()["image_processor_type"]
    read = config_of_processor(saved, "preprocessor_config.json", mode)
    assert Preprocessor(64, 64, read).scaled() == own.scaled()
    assert replace(read, crop_pct=config.crop_pct) == config


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(64, 64), (512, 384)])
def test_dict_and_back(size, config):
    preprocessor = Preprocessor(*size, config)
    assert Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict()))) == preprocessor


def test_no_class_is_named_that_does_otherwise():
    for size, config in (
        ((64, 64), PreprocessConfig("longest")),
        ((64, 64), PreprocessConfig("pad", mean=(0.5,) * 3)),
        ((64, 64), PreprocessConfig("shortest", rounding="even")),
        ((64, 128), PreprocessConfig("pad")),
        ((64, 128), PreprocessConfig("shortest")),
    ):
        assert "image_processor_type" not in Preprocessor(*size, config).to_dict()


@pytest.mark.parametrize(("aspect", "mode"), [("pad", "pad"), ("crop", "shortest")])
@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_dictionaries_of_earlier_versions_are_read(aspect, mode, size):
    height, width = size
    old = OLD | {"image_aspect_ratio": aspect, "crop_size": {"height": height, "width": width}}
    if height != width:
        old["size"] = {"height": height, "width": width}
    assert Preprocessor.from_dict(old) == Preprocessor(height, width, PreprocessConfig(resize=mode))
    for key, value in (("do_pad", aspect == "crop"), ("size", 65), ("do_resize", False), ("odd", 1)):
        with pytest.raises(ConfigError, match=key):
            Preprocessor.from_dict({**old, key: value})


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("image_mean", [0.48, 0.46], "image_mean"),
        ("image_mean", [48, 46, 41], "mean"),
        ("image_std", [0, 1, 1], "std"),
        ("resample", 9, "resample"),
        ("rescale_factor", 1 / 127.5, "rescale_factor"),
        ("do_center_crop", True, "do_center_crop"),
        ("do_rescale", None, "do_rescale"),
        ("size", {"shortest_edge": 96}, "size"),
        ("crop_size", {"height": 64}, "width"),
        ("crop_size", 64, "crop_size"),
        ("crop_size", {"height": "tall", "width": 64}, "tall"),
        ("crop_size", {"height": 0, "width": 64}, "crop_size must be"),
        ("crop_size", {"height": float("inf"), "width": 64}, "crop_size must be"),
        ("image_aspect_ratio", "anyres", "image_aspect_ratio"),
        ("crop_pct", "all", "crop_pct"),
        ("crop_pct", 0.5, "size"),
        ("fill_color", [0, 0, 300], "fill_color"),
        ("do_pad", False, "do_pad"),
        ("patch_size", 14, "patch_size"),
    ],
)
def test_other_preprocessing_is_refused_by_name(key, value, word):
    with pytest.raises(ConfigError, match=word):
        Preprocessor.from_dict({**Preprocessor(64, 64).to_dict(), key: value})


@pytest.mark.parametrize("key", ["crop_size", "image_mean", "image_aspect_ratio", "size", "do_normalize"])
def test_missing_entries_are_refused_by_name(key):
    data = Preprocessor(64, 64).to_dict()
    del data[key]
    with pytest.raises(ConfigError, match=key):
        Preprocessor.from_dict(data)
    Preprocessor.from_dict({**Preprocessor(64, 64).to_dict(), "do_reduce_labels": None})


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ({}, CONFIGS["cropped"]),
        ({"do_normalize": False, "image_mean": [0.5] * 3}, CONFIGS["cropped"]),
        ({"image_mean": 0.5, "image_std": 0.25}, PreprocessConfig("shortest", mean=(0.5,) * 3, std=(0.25,) * 3)),
        ({"rescale_factor": 2 / 255, "image_mean": 1.0, "image_std": 1.0},
         PreprocessConfig("shortest", mean=(0.5,) * 3, std=(0.5,) * 3)),
        ({"do_rescale": False, "image_mean": 127.5, "image_std": 127.5},
         PreprocessConfig("shortest", mean=(0.5,) * 3, std=(0.5,) * 3)),
        ({"size": 80}, PreprocessConfig("shortest", crop_pct=0.8)),
        ({"size": {"shortest_edge": 80, "longest_edge": None}}, PreprocessConfig("shortest", crop_pct=0.8)),
        ({"size": {"height": 80, "width": 80}}, PreprocessConfig("squash", crop_pct=0.8)),
        ({"size": {"height": 64, "width": 64}, "do_center_crop": False}, PreprocessConfig("squash")),
    ],
)  # fmt: skip
def test_processors_of_checkpoints(entries, wanted):
    assert config_of_processor(OLD | entries, "f.json", "shortest") == wanted


def test_a_llava_processor_says_itself_whether_it_pads():
    data = {**OLD, "image_processor_type": "LlavaImageProcessorFast"}
    assert config_of_processor({**data, "do_pad": True}, "f.json", "pad").resize == "pad"
    assert config_of_processor({**data, "do_pad": False}, "f.json", "pad").resize == "shortest"
    assert config_of_processor(data, "f.json", "pad").resize == "pad"


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_resize": False}, "do_resize"),
        ({"do_resize": "no"}, "do_resize"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"size": {"longest_edge": 64}}, "size"),
        ({"size": {"shortest_edge": 64, "longest_edge": 99}}, "size"),
        ({"size": {"shortest_edge": 1e9}}, "size"),
        ({"size": 32}, "crop_size"),
        ({"crop_size": [64, 64]}, "crop_size"),
        ({"image_mean": "mean"}, "image_mean"),
        ({"image_std": [1, 0, 1]}, "std"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"resample": "soft"}, "resample"),
        ({"resample": True}, "resample"),
        ({"image_mean": 10**400}, "image_mean"),
    ],
)
def test_processors_that_cannot_be_followed_are_refused_by_name(entries, word):
    with pytest.raises(ConfigError, match=word):
        config_of_processor(OLD | entries, "f.json", "shortest")
