"""Preprocessing as timm, open_clip, ml-mobileclip, ml-fastvlm and transformers do it themselves.

The references are those libraries' own pixels: see `tests/data/preprocess/make_reference.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from fvexport.core.errors import ConfigError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.preprocessing import PUBLISHED, read_preprocessing
from fvexport.encoder.checkpoint.settings import read_settings
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import RELEASED

REFERENCE = Path(__file__).parents[1] / "data" / "preprocess"
CASES = json.loads((REFERENCE / "cases.json").read_text())["cases"]
LARGE = [case for case in CASES if case["image"] == "large"]
"""One for each form and kind of file, at 64 x 64."""


def name_of(case: dict[str, Any]) -> str:
    files = "+".join(file.removesuffix(".json") for file in case["files"]) or "no file"
    return f"{case['name']}-{case['form']}-{files}-{case['image']}".replace(" ", "_")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE / "levels.npz"))


def values_of(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The library's pixel values (1, 3, H, W), float64."""
    mean, std = (np.array(case[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    return ((arrays[case["name"]] / 255 - mean) / std)[None]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_pixels_of_the_library_itself(case, arrays):
    found = read_preprocessing(case["files"], case["form"], read_settings(case["files"]).pads)
    preprocessor = Preprocessor(*case["size"], found.config)
    image = Image.fromarray(arrays[f"image {case['image']}"])
    np.testing.assert_array_equal(preprocessor.pixels(image), arrays[case["name"]])
    np.testing.assert_allclose(preprocessor(image), values_of(case, arrays), rtol=0, atol=1e-5)
    # What a manifest carries makes the same.
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    np.testing.assert_array_equal(again.pixels(image), arrays[case["name"]])


# --- processor files of every kind -----------------------------------------------------------------

triples = st.tuples(*[st.floats(0.01, 0.99)] * 3).map(list)
flags = st.sampled_from([None, True])


@st.composite
def processors(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """What a preprocessor_config.json may say, at sizes of some 16 to 48 pixels; entries may be missing."""
    side = draw(st.integers(16, 40))
    crop = {"height": side, "width": side}
    edge = side + draw(st.integers(0, 8))
    content: dict[str, Any] = {
        "crop_size": draw(st.sampled_from([crop, side])),
        "size": draw(st.sampled_from([{"shortest_edge": edge}, edge, {"height": edge, "width": edge}])),
        "image_processor_type": kind + draw(st.sampled_from(["", "Fast"])),
    }
    if kind == "LlavaImageProcessor":
        content["do_pad"] = draw(st.booleans())
    optional = {
        "do_center_crop": flags, "do_rescale": flags, "do_resize": flags, "do_convert_rgb": flags,
        "do_normalize": st.sampled_from([True, False]), "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5]),
        "resample": st.integers(0, 5), "image_mean": triples, "image_std": triples,
    }  # fmt: skip
    for key, values in optional.items():
        if draw(st.booleans()) and (value := draw(values)) is not None:
            content[key] = value
    return content


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "LlavaImageProcessor"])
@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 90) | st.just(41), st.integers(1, 90) | st.integers(40, 42))
def test_a_processor_file_as_transformers_reads_it(kind, data, width, height):
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    llava = pytest.importorskip("transformers.models.llava.image_processing_pil_llava")
    assume(max(width, height) < 30 * min(width, height))
    content = data.draw(processors(kind))
    made = clip.CLIPImageProcessorPil if kind.startswith("CLIP") else llava.LlavaImageProcessorPil
    theirs = made(**{key: value for key, value in content.items() if "type" not in key})
    rng = np.random.default_rng(width * 1009 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    wanted = theirs(image, return_tensors="np")["pixel_values"]
    found = read_preprocessing({"preprocessor_config.json": content}, "mobileclip", None)
    ours = Preprocessor(*wanted.shape[2:], found.config)(image)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64}, "resample": 3,
    "crop_size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"}, "crop_pct"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"keep_aspect_ratio": True}, "keep_aspect_ratio"),
        ({"pad_size": {"height": 96, "width": 96}, "do_pad": True}, "pad_size"),
        ({"size": {"shortest_edge": 64, "longest_edge": 96}}, "size"),
        ({"image_processor_type": "ViTImageProcessor", "size": 64}, "size"),
        ({"image_processor_type": "SiglipImageProcessor", "image_mean": None}, "image_mean"),
        ({"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor"),  # resizes to 256 / 224 of the size
        ({"image_processor_type": "EfficientNetImageProcessor"}, "EfficientNetImageProcessor"),  # normalizes twice
        ({"do_normalize": None}, "do_normalize"),
        ({"do_rescale": None}, "do_rescale"),
        ({"do_resize": None}, "do_resize"),
        ({"crop_size": None}, "crop_size"),  # 224 of an image of 64
        ({"size": None, "crop_size": 256}, "crop_size"),
        ({key: {"height": 64, "width": 128} for key in ("size", "crop_size")}, "size"),  # a square, then squashed
    ],
)
def test_what_another_processor_does_is_refused_by_name(changes, word):
    """Other entries, and missing ones whose default another class has otherwise, would be followed wrongly."""
    configs = {"preprocessor_config.json": PROCESSOR | changes}
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json: .*\b{word}\b"):
        read_preprocessing(configs, "llava", None)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("clip", {"size": {"shortest_edge": 256}}),
        ("clip", {"crop_size": {"height": 128, "width": 128}}),
        ("clip", {"rescale_factor": 1 / 127.5}),
        ("clip", {"image_processor_type": "CLIPImageProcessor"}),
        ("siglip", {"size": {"height": 40, "width": 40}, "crop_size": 32, "do_center_crop": None}),
        ("siglip", {"size": {"height": 40, "width": 40}, "crop_size": 32, "do_center_crop": True}),
    ],
)
def test_what_a_processor_file_lacks_is_its_class_s_default(kind, content):
    module = pytest.importorskip(f"transformers.models.{kind}.image_processing_pil_{kind}")
    if kind == "siglip":
        content = {"image_processor_type": "SiglipImageProcessor", **HALVES, **content}
    made = module.CLIPImageProcessorPil if kind == "clip" else module.SiglipImageProcessorPil
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).resize((300, 200))
    theirs = made(**{key: value for key, value in content.items() if "type" not in key})
    wanted = theirs(image, return_tensors="np")["pixel_values"]
    found = read_preprocessing({"preprocessor_config.json": content}, "mobileclip", None)
    assert found.source == "preprocessor_config.json"
    ours = Preprocessor(*wanted.shape[2:], found.config)(image)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_a_crop_that_null_turns_off_is_refused():
    configs = {"preprocessor_config.json": PROCESSOR | {"do_center_crop": None}}
    with pytest.raises(ConfigError, match="do_center_crop is false"):
        read_preprocessing(configs, "mobileclip", None)


@pytest.mark.parametrize("form", PUBLISHED)
def test_a_manifests_entry_saved_beside_weights_is_read_back(form):
    config = PUBLISHED[form]
    content = Preprocessor(64, 64, config).to_dict()
    for other in PUBLISHED:
        assert read_preprocessing({"preprocessor_config.json": content}, other, None).config == config


def test_the_towers_own_config_in_a_fast_vlm_is_not_followed():
    """Transformers repeats timm's `pretrained_cfg` in `vision_config`; the model's processor is another."""
    tower = next(case for case in CASES if case["form"] == "timm" and case["files"])["files"]["config.json"]
    found = read_preprocessing(
        {"config.json": {"model_type": "fast_vlm", "vision_config": tower}}, "transformers", None
    )
    assert (found.config, found.source) == (RELEASED, None)


# --- features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LARGE, ids=name_of)
def test_features_of_each_form_and_file(case, arrays, renamed, tmp_path, one_thread):
    """With weights whose features depend on the picture far more than those of the other golden models.

    Prints the distances: see them with `pytest -s`.
    """
    save_file(renamed("train", case["form"]), tmp_path / "model.safetensors")
    for file, content in case["files"].items():
        (tmp_path / file).write_text(json.dumps(content))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.info.form == case["form"]
    image = Image.fromarray(arrays["image large"])

    def features(pixel_values: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return checkpoint.encoder(torch.from_numpy(pixel_values).float())

    theirs, ours, released = (
        values_of(case, arrays),
        *(Preprocessor(*case["size"], config)(image) for config in (checkpoint.info.preprocessing, RELEASED)),
    )
    wanted = features(theirs)
    distances = [float((features(values) - wanted).norm() / wanted.norm()) for values in (ours, released)]
    sys.stdout.write(
        f"\n{name_of(case)}: pixels {np.abs(ours - theirs).max():.1e}, features {distances[0]:.1e} "
        f"(as the released FastVLM: {distances[1]:.1e})\n"
    )
    assert distances[0] <= 1e-5
    # Without the files, the test would fail.
    assert checkpoint.info.preprocessing == RELEASED or distances[1] > 1e-2
