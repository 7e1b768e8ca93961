"""`fvexport.encoder.checkpoint.preprocessing`: each form's own files, its published default, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fvexport.core.errors import CheckpointError, ConfigError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.preprocessing import PUBLISHED, read_preprocessing
from fvexport.encoder.checkpoint.settings import read_settings
from fvexport.encoder.fastvlm import EagerTower
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from fvexport.encoder.reparameterize import reparameterize
from fvexport.kernels.accelerate import accelerate

HALF = (0.5, 0.5, 0.5)
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64}, "resample": 2,
    "crop_size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
PRETRAINED = {
    "mean": list(OPENAI_MEAN), "std": list(OPENAI_STD), "crop_pct": 0.9, "interpolation": "bilinear",
    "input_size": [3, 256, 256],
}  # fmt: skip
TIMM = PreprocessConfig("shortest", "bilinear", 0.9, OPENAI_MEAN, OPENAI_STD, rounding="even")
LLAVA = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
OPEN_CLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.mark.parametrize(
    ("form", "pads", "configs", "wanted", "source"),
    [
        ("timm", None, {"config.json": {"pretrained_cfg": PRETRAINED}}, TIMM, "config.json, pretrained_cfg"),
        ("timm", None, {"preprocessor_config.json": {"pretrained_cfg": PRETRAINED}}, TIMM,
         "preprocessor_config.json, pretrained_cfg"),
        # Its own file goes first, another's is better than none.
        ("timm", None, {"config.json": {"pretrained_cfg": PRETRAINED}, "preprocessor_config.json": PROCESSOR}, TIMM,
         "config.json, pretrained_cfg"),
        ("timm", None, {"preprocessor_config.json": PROCESSOR},
         PreprocessConfig("shortest", "bilinear", mean=HALF, std=HALF), "preprocessor_config.json"),
        ("timm", None, {"config.json": {"pretrained_cfg": {}}},
         PreprocessConfig("shortest", "bicubic", 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), rounding="even"),
         "config.json, pretrained_cfg"),
        ("timm", None, {"config.json": {"pretrained_cfg": {**PRETRAINED, "crop_mode": "border"}}},
         PreprocessConfig("longest", "bilinear", 0.9, OPENAI_MEAN, OPENAI_STD, (123, 117, 104), "even"),
         "config.json, pretrained_cfg"),
        ("timm", None, {"config.json": {"architecture": "fastvit_mci3", **PRETRAINED}}, TIMM, "config.json"),
        ("timm", None, {"config.json": {"architecture": "fastvit_mci3"}}, PUBLISHED["timm"], None),
        ("timm", None, {"config.json": {"pretrained_cfg": {**PRETRAINED, "crop_pct": 0, "crop_mode": ""}}},
         replace(TIMM, crop_pct=0.875), "config.json, pretrained_cfg"),
        ("open_clip", None, {"open_clip_config.json": {"model_cfg": {}}},
         PreprocessConfig("shortest", mean=OPENAI_MEAN, std=OPENAI_STD, rounding="even"),
         "open_clip_config.json, preprocess_cfg"),
        ("llava", False, {"preprocessor_config.json": {**PROCESSOR, **LLAVA}},
         PreprocessConfig("shortest", "bilinear", mean=HALF, std=HALF), "preprocessor_config.json"),
        ("transformers", False, {"preprocessor_config.json": {**PROCESSOR, **LLAVA}},
         PreprocessConfig("pad", "bilinear", mean=HALF, std=HALF, fill=(127, 127, 127)), "preprocessor_config.json"),
        ("open_clip", None, {"open_clip_config.json": {"preprocess_cfg": OPEN_CLIP}},
         PreprocessConfig("squash", "bilinear", mean=HALF, std=HALF, rounding="even"),
         "open_clip_config.json, preprocess_cfg"),
        ("open_clip", None, {"open_clip_config.json": {"preprocess_cfg": {"interpolation": "random"}}},
         PreprocessConfig("shortest", mean=OPENAI_MEAN, std=OPENAI_STD, rounding="even"),
         "open_clip_config.json, preprocess_cfg"),
        ("open_clip", None, {"open_clip_config.json": {"preprocess_cfg": {"resize_mode": "longest", "fill_color": 7}}},
         PreprocessConfig("longest", mean=OPENAI_MEAN, std=OPENAI_STD, fill=(7, 7, 7), rounding="even"),
         "open_clip_config.json, preprocess_cfg"),
        ("open_clip", None, {"config.json": {"preprocess_cfg": OPEN_CLIP}},
         PreprocessConfig("squash", "bilinear", mean=HALF, std=HALF, rounding="even"), "config.json, preprocess_cfg"),
        ("llava", True, {"preprocessor_config.json": PROCESSOR},
         PreprocessConfig("pad", "bilinear", mean=HALF, std=HALF, fill=(127, 127, 127)), "preprocessor_config.json"),
        ("llava", False, {"preprocessor_config.json": PROCESSOR},
         PreprocessConfig("shortest", "bilinear", mean=HALF, std=HALF), "preprocessor_config.json"),
        ("transformers", None, {"processor_config.json": {"image_processor": PROCESSOR}},
         PreprocessConfig("pad", "bilinear", mean=HALF, std=HALF, fill=(127, 127, 127)),
         "processor_config.json, image_processor"),
        ("mobileclip", None, {"preprocessor_config.json": PROCESSOR},
         PreprocessConfig("shortest", "bilinear", mean=HALF, std=HALF), "preprocessor_config.json"),
        ("llava", None, {}, PUBLISHED["llava"], None),
        ("llava", False, {}, PreprocessConfig("shortest"), None),
        # A processor without a word on images, and a file of something else, say nothing.
        ("llava", None, {"processor_config.json": {"patch_size": 14}, "config.json": {"hidden_size": 64}},
         PUBLISHED["llava"], None),
    ],
)  # fmt: skip
def test_files(form: str, pads: bool | None, configs: Any, wanted: PreprocessConfig, source: str | None) -> None:
    found = read_preprocessing(configs, form, pads)
    assert (found.config, found.source) == (wanted, source)


@pytest.mark.parametrize(
    ("configs", "word"),
    [
        ({"config.json": {"pretrained_cfg": [1]}}, "pretrained_cfg"),
        ({"config.json": {"pretrained_cfg": {"mean": "grey"}}}, "mean"),
        ({"config.json": {"pretrained_cfg": {"mean": [123, 116, 103]}}}, "mean"),
        ({"config.json": {"pretrained_cfg": {"std": [0, 0, 0]}}}, "std"),
        ({"config.json": {"architecture": "fastvit_mci3", "std": "wide"}}, "std"),
        ({"config.json": {"pretrained_cfg": {"crop_pct": 2}}}, "crop_pct"),
        ({"config.json": {"pretrained_cfg": {"crop_pct": "95%"}}}, "crop_pct"),
        ({"config.json": {"pretrained_cfg": {"crop_mode": "fit"}}}, "crop_mode"),
        ({"config.json": {"pretrained_cfg": {"interpolation": "random"}}}, "resample"),
        ({"open_clip_config.json": {"preprocess_cfg": 3}}, "preprocess_cfg"),
        ({"open_clip_config.json": {"preprocess_cfg": {"mode": "RGBA"}}}, "mode"),
        ({"open_clip_config.json": {"preprocess_cfg": {"resize_mode": ["fit"]}}}, "resize_mode"),
        ({"open_clip_config.json": {"preprocess_cfg": {"interpolation": "lanczos"}}}, "interpolation"),
        ({"open_clip_config.json": {"preprocess_cfg": {"resize_mode": "longest", "fill_color": -1}}}, "fill_color"),
        ({"processor_config.json": {"image_processor": "CLIP"}}, "image_processor"),
        ({"preprocessor_config.json": PROCESSOR | {"do_reduce_labels": True}}, "do_reduce_labels"),
    ],
)
def test_files_that_cannot_be_followed_are_refused_by_name(configs: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        read_preprocessing(configs, "timm", None)
    assert next(iter(configs)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", PUBLISHED)
def test_a_checkpoint_carries_its_preprocessing(renamed, tmp_path, form):
    save_file(renamed("train", form), tmp_path / "model.safetensors")
    info = load_checkpoint(tmp_path).info
    assert (info.form, info.preprocessing, info.preprocessing_source) == (form, PUBLISHED[form], None)
    assert re.search(rf"assuming the {form} form's published way .*mean", info.notices[-1])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    info = load_checkpoint(tmp_path).info
    assert info.preprocessing.mean == HALF
    assert info.preprocessing_source == "preprocessor_config.json"
    assert not info.notices
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": "large"}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: size must be"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(timm, tmp_path, encoding):
    save_file(timm, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_bytes(json.dumps(PROCESSOR).encode(encoding))
    assert load_checkpoint(tmp_path).info.preprocessing.mean == HALF


def test_a_file_that_is_there_but_cannot_be_read_is_no_missing_one(timm, tmp_path):
    save_file(timm, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json cannot be read .*links to"):
        load_checkpoint(tmp_path)


def test_the_native_size_is_of_the_file_that_is_followed():
    larger = PROCESSOR | {"size": {"shortest_edge": 128}, "crop_size": 128}
    configs = {"preprocessor_config.json": PROCESSOR, "processor_config.json": {"image_processor": larger}}
    assert read_preprocessing(configs, "transformers", None).source == "processor_config.json, image_processor"
    assert read_settings(configs).resolution == 128


# --- levels in, and the model normalizes them itself -----------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_that_takes_levels_normalizes_them(golden_dir, photographs, dtype):
    """At the borders too: a mean that were folded into the bias would be missing there, where the stem pads zeros."""
    encoder = load_checkpoint(golden_dir / "timm_tiny").encoder
    config = PUBLISHED["timm"]
    levels = torch.from_numpy(Preprocessor(64, 128, config).pixels(photographs["chelsea"]))[None]
    values = (levels.double() / 255 - torch.tensor(config.mean).double().view(3, 1, 1)) / torch.tensor(
        config.std
    ).double().view(3, 1, 1)
    expected = reparameterize(encoder).double()(values)
    fused = reparameterize(encoder, uint8_input=True, normalization=config.normalization).to(dtype)
    bound = 1e-6 if dtype == torch.float64 else 1e-4
    for model in (fused, accelerate(fused, kernels=()) if dtype == torch.float32 else fused):
        torch.testing.assert_close(model(levels).double(), expected, rtol=0, atol=bound)
    wrong = reparameterize(encoder, uint8_input=True).double()(levels)
    assert (wrong - expected).abs().max() > 0.1


def test_the_mean_keeps_its_bits_in_half_precision():
    from fvexport.encoder.fastvithd import CenteredLevels

    module = CenteredLevels(OPENAI_MEAN).half()
    wanted = 255 * np.array(OPENAI_MEAN)
    np.testing.assert_allclose(module.offset.flatten().numpy(), wanted, rtol=1e-7)
    assert module(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).dtype == torch.float32


def test_the_eager_tower_normalizes_levels(golden_dir, photographs):
    checkpoint = load_checkpoint(golden_dir / "timm_tiny")
    config = checkpoint.info.preprocessing
    prepare = Preprocessor(64, 64, config)
    tower = EagerTower(checkpoint.encoder, preprocessing=config)
    levels = torch.from_numpy(prepare.pixels(photographs["coffee"]))[None]
    expected = tower.encode(torch.from_numpy(prepare(photographs["coffee"])))
    torch.testing.assert_close(tower.encode(levels), expected)
