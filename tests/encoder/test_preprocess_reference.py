"""Preprocessing as timm, open_clip, ml-mobileclip, ml-fastvlm and transformers do it themselves.

The references are those libraries' own pixels: see `tests/data/preprocess/make_reference.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.forms import timm_to_apple
from fvexport.encoder.checkpoint.preprocessing import read_preprocessing
from fvexport.encoder.checkpoint.settings import read_settings
from fvexport.encoder.preprocess import RELEASED, Preprocessor

REFERENCE = Path(__file__).parents[1] / "data" / "preprocess"
CASES = json.loads((REFERENCE / "cases.json").read_text())["cases"]
LARGE = [case for case in CASES if case["image"] == "large"]
"""One for each form and kind of file, at 64 x 64."""

NAMES = {
    "timm": lambda name: name,
    "open_clip": lambda name: f"visual.trunk.{name}",
    "mobileclip": lambda name: f"image_encoder.model.{timm_to_apple(name)}",
    "llava": lambda name: f"model.vision_tower.vision_tower.model.{timm_to_apple(name)}",
    "transformers": lambda name: f"model.vision_tower.timm_model.{name}",
}


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
def processors(draw: st.DrawFn) -> dict[str, Any]:
    """What a preprocessor_config.json may say, at sizes of some 16 to 48 pixels; entries may be missing."""
    side = draw(st.integers(16, 40))
    crop = {"height": side, "width": side}
    edge = side + draw(st.integers(0, 8))
    content: dict[str, Any] = {
        "crop_size": draw(st.sampled_from([crop, side])),
        "size": draw(st.sampled_from([{"shortest_edge": edge}, edge, {"height": edge, "width": edge}])),
    }
    optional = {
        "image_processor_type": st.sampled_from(["CLIPImageProcessor", "CLIPImageProcessorFast"]),
        "do_center_crop": flags, "do_rescale": flags, "do_resize": flags, "do_convert_rgb": flags,
        "do_normalize": st.sampled_from([True, False]), "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5]),
        "resample": st.integers(0, 5), "image_mean": triples, "image_std": triples,
    }  # fmt: skip
    for key, values in optional.items():
        if draw(st.booleans()) and (value := draw(values)) is not None:
            content[key] = value
    return content


@settings(max_examples=150, deadline=None)
@given(processors(), st.integers(1, 90), st.integers(1, 90))
def test_a_processor_file_as_transformers_reads_it(content, width, height):
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    assume(max(width, height) < 30 * min(width, height))
    theirs = clip.CLIPImageProcessorPil(**{key: value for key, value in content.items() if "type" not in key})
    rng = np.random.default_rng(width * 1009 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    wanted = theirs(image, return_tensors="np")["pixel_values"]
    found = read_preprocessing({"preprocessor_config.json": content}, "mobileclip", None)
    ours = Preprocessor(*wanted.shape[2:], found.config)(image)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


# --- features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LARGE, ids=name_of)
def test_features_of_each_form_and_file(case, arrays, golden_dir, tmp_path, one_thread):
    """The features depend on the picture far more than those of the other golden models."""
    weights = load_file(golden_dir / "timm_tiny" / "model.safetensors")
    save_file({NAMES[case["form"]](name): tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    for file, content in case["files"].items():
        (tmp_path / file).write_text(json.dumps(content))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.info.form == case["form"]
    image = Image.fromarray(arrays["image large"])

    def features(pixel_values: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return checkpoint.encoder(torch.from_numpy(pixel_values).float())

    wanted = features(values_of(case, arrays))
    ours = features(Preprocessor(*case["size"], checkpoint.info.preprocessing)(image))
    assert (ours - wanted).norm() <= 1e-5 * wanted.norm()
    # The test would fail if the files were not read.
    assumed = features(Preprocessor(*case["size"], RELEASED)(image))
    if checkpoint.info.preprocessing != RELEASED:
        assert (assumed - wanted).norm() > 1e-2 * wanted.norm()
