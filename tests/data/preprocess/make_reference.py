"""Makes `cases.json` and `levels.npz`: pixels as timm, open_clip, torchvision and transformers themselves prepare them.

The test environment has neither timm nor torchvision, so this runs once, in an environment of its own:

    pip install torch torchvision timm open_clip_torch transformers scikit-image
    python tests/data/preprocess/make_reference.py

`cases.json` has the library versions and, for each case, the checkpoint's form, its JSON files, the image and the size,
and the mean and the standard deviation that the library applied. `levels.npz` has each case's uint8 levels
(3, height, width) before normalization, and the images (height, width, 3), as `image NAME`. Levels are recovered from
the library's floats; the script fails if normalizing them again, in float32, does not give those floats.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import filter_pretrained_cfg
from timm.models import get_pretrained_cfg as timm_cfg
from timm.models._hub import load_model_config_from_path
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

HERE = Path(__file__).parent
LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "pillow", "numpy")

IMAGES = {
    "portrait": (37, 83),
    "landscape": (131, 50),
    "square": (64, 64),
    # 3 and 7 pixels more than 32: half of it rounds to even as 2 and 4, and down as 1 and 3.
    "odd landscape": (35, 32),
    "odd portrait": (32, 39),
    "as large as the target": (32, 32),
    "nearly square": (40, 39),  # resized into 32 x 32, it lacks a single row
    "tiny": (5, 3),
    "pixel": (1, 1),
    "strip": (200, 7),
    "large": (143, 96),
}
"""Name -> (width, height)."""

Configs = dict[str, dict[str, Any]]
Prepare = Callable[[Image.Image], torch.Tensor]


def make_image(name: str) -> Image.Image:
    """The RGB image of that name: waves of different lengths, and noise, by integer arithmetic."""
    width, height = IMAGES[name]
    y, x, channel = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    waves = (x * (3 + channel) + y * (5 - channel)) % 128
    noise = ((x * 2654435761 + y * 40503 + channel * 97) >> 7) % 128
    return Image.fromarray((waves + noise).astype(np.uint8))


class Cases:
    """Collects cases and their levels."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.levels: dict[str, np.ndarray] = {}

    def add(
        self,
        form: str,
        configs: Configs,
        prepare: tuple[Prepare, tuple[float, ...], tuple[float, ...]],
        image: str,
        size: tuple[int, int],
    ) -> None:
        """One image through one transform; `size` is (height, width)."""
        transform, mean, std = prepare
        values = transform(make_image(image)).float()
        assert values.shape == (3, *size), (form, configs, values.shape)
        means, stds = (torch.tensor(each, dtype=torch.float32).view(3, 1, 1) for each in (mean, std))
        levels = ((values.double() * stds.double() + means.double()) * 255).round()
        again = (levels.float() / 255 - means) / stds
        # transformers rescales in float64: one unit in the last place, where a library divides in float32.
        assert torch.allclose(again, values, rtol=2e-7, atol=2e-7), (form, configs, (again - values).abs().max())
        name = f"{len(self.entries):03d}"
        self.levels[name] = levels.to(torch.uint8).numpy()
        self.entries.append(
            {
                "name": name, "form": form, "files": configs, "image": image, "size": list(size),
                "mean": list(map(float, mean)), "std": list(map(float, std)),
            }
        )  # fmt: skip


def by_timm(configs: Configs, size: tuple[int, int]) -> tuple[Prepare, tuple[float, ...], tuple[float, ...]]:
    """timm's evaluation transform for a folder with this config.json, at another input size."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(configs["config.json"]))
        pretrained, _, _ = load_model_config_from_path(folder)
    data = resolve_data_config({"input_size": (3, *size)}, pretrained_cfg=pretrained)
    return create_transform(**data, is_training=False), tuple(data["mean"]), tuple(data["std"])


def by_open_clip(
    preprocess_cfg: Mapping[str, Any], size: tuple[int, int]
) -> tuple[Prepare, tuple[float, ...], tuple[float, ...]]:
    """open_clip's inference transform, as its factory builds it from `preprocess_cfg` and the model's image size."""
    merged = merge_preprocess_dict(PreprocessCfg(), dict(preprocess_cfg))
    merged["size"] = size[0] if size[0] == size[1] else size
    cfg = PreprocessCfg(**merged)
    mean, std = (each if isinstance(each, (list, tuple)) else [each] * 3 for each in (cfg.mean, cfg.std))
    return image_transform_v2(cfg, is_train=False), tuple(mean), tuple(std)


def by_mobileclip(size: tuple[int, int]) -> tuple[Prepare, tuple[float, ...], tuple[float, ...]]:
    """The steps that ml-mobileclip's `create_model_and_transforms` takes: torchvision's, bilinear, not normalized."""
    steps = [Resize(size[0], interpolation=InterpolationMode.BILINEAR), CenterCrop(size[0]), ToTensor()]
    return Compose(steps), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def by_transformers(processor: Mapping[str, Any], pads: bool) -> tuple[Prepare, tuple[float, ...], tuple[float, ...]]:
    """The processor that a file describes, on Pillow; before it, for `pads`, ml-fastvlm's padding to a square."""
    kind = processor.get("image_processor_type", "CLIPImageProcessor")
    made = (LlavaImageProcessorPil if kind.startswith("Llava") else CLIPImageProcessorPil)(**processor)

    def prepare(image: Image.Image) -> torch.Tensor:
        if pads and image.width != image.height:
            side = max(image.size)
            square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in made.image_mean))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        return torch.from_numpy(made(image, return_tensors="np")["pixel_values"][0])

    return prepare, tuple(made.image_mean), tuple(made.image_std)


def timm_config(**changes: Any) -> Configs:
    """config.json as timm writes it for fastvit_mci3, with entries changed, or removed where None."""
    cfg = filter_pretrained_cfg(timm_cfg("fastvit_mci3.apple_mclip2_dfndr2b").to_dict(), remove_source=True)
    cfg = {key: value for key, value in (cfg | changes).items() if value is not None}
    cfg.pop("architecture", None)
    return {"config.json": {"architecture": "fastvit_mci3", "num_classes": 768, "pretrained_cfg": cfg}}


def open_clip_config(preprocess_cfg: dict[str, Any] | None) -> Configs:
    """open_clip_config.json of MobileCLIP2-S3 with this `preprocess_cfg`."""
    vision = open_clip.get_model_config("MobileCLIP2-S3")["vision_cfg"]
    content: dict[str, Any] = {"model_cfg": {"embed_dim": 768, "vision_cfg": vision}}
    return {"open_clip_config.json": content | ({} if preprocess_cfg is None else {"preprocess_cfg": preprocess_cfg})}


def processor(side: int, **changes: Any) -> dict[str, Any]:
    """preprocessor_config.json as transformers' conversion of FastVLM writes it, with entries changed."""
    return {
        "crop_size": {"height": side, "width": side}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    } | changes  # fmt: skip


def add_timm(cases: Cases) -> None:
    """Crop modes, crop_pct, interpolations, missing entries, sizes that are not square."""
    for image in IMAGES:
        if image != "large":
            cases.add("timm", timm_config(), by_timm(timm_config(), (32, 32)), image, (32, 32))
    several = ("portrait", "landscape", "odd landscape")
    zero = {"mean": [0.0] * 3, "std": [1.0] * 3}
    variants: list[tuple[dict[str, Any], tuple[int, int], tuple[str, ...]]] = [
        ({"crop_pct": 1.0, **zero}, (32, 32), (*several, "odd portrait")),
        ({"crop_pct": 0.9, "interpolation": "bilinear"}, (32, 32), several),
        ({"crop_pct": 0.875, "interpolation": "lanczos"}, (33, 33), several),
        ({"crop_pct": 0.56, **zero}, (28, 28), ("portrait",)),  # 28 / 0.56 rounds to a little less than 50
        ({"interpolation": "box"}, (32, 32), ("landscape",)),
        ({"interpolation": "hamming"}, (32, 32), ("landscape",)),
        ({"interpolation": "nearest"}, (32, 32), ("landscape",)),
        ({"crop_mode": "squash", "crop_pct": 1.0}, (32, 32), (*several, "strip")),
        ({"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bilinear"}, (31, 31), several),
        ({"crop_mode": "squash"}, (32, 48), ("landscape", "tiny")),
        ({"crop_mode": "border", "crop_pct": 1.0}, (32, 32), (*several, "nearly square", "strip", "tiny")),
        ({"crop_mode": "border", "crop_pct": 0.9}, (32, 32), several),
        ({"crop_mode": "border", "crop_pct": 0.85, "mean": [0.5, 0.25, 0.75]}, (48, 32), several),
        ({"crop_pct": 0.95}, (32, 48), several),
        ({"crop_pct": 0.9, "interpolation": "bilinear"}, (48, 31), several),
        ({"mean": None, "std": None, "crop_pct": None, "interpolation": None, "crop_mode": None}, (32, 32), several),
    ]
    for changes, size, images in variants:
        configs = timm_config(**changes)
        for image in images:
            cases.add("timm", configs, by_timm(configs, size), image, size)


def add_open_clip(cases: Cases) -> None:
    """Resize modes, fill colours, missing entries, sizes that are not square."""
    entries = ("mean", "std", "interpolation", "resize_mode")
    published = {key: get_pretrained_cfg("MobileCLIP2-S3", "dfndr2b")[key] for key in entries}
    several = ("portrait", "landscape", "odd landscape", "odd portrait")
    variants: list[tuple[dict[str, Any], tuple[int, int], tuple[str, ...]]] = [
        (published, (32, 32), (*several, "square", "tiny", "strip")),
        ({"interpolation": "bicubic"}, (32, 32), several),
        ({}, (33, 33), several),
        ({"mean": 0.5, "std": 0.25, "interpolation": "random", "resize_mode": None}, (32, 32), ("portrait",)),
        ({"resize_mode": "longest"}, (32, 32), (*several, "tiny")),
        (
            {"resize_mode": "longest", "fill_color": 127, "interpolation": "bilinear"},
            (32, 32),
            (*several, "nearly square", "strip"),
        ),
        ({"resize_mode": "longest", "fill_color": 255}, (32, 48), several),
        ({"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}, (32, 32), several),
        ({"resize_mode": "squash", "interpolation": "bilinear"}, (48, 32), several),
        ({"interpolation": "bicubic"}, (32, 48), several),
    ]
    for preprocess_cfg, size, images in variants:
        for image in images:
            cases.add("open_clip", open_clip_config(preprocess_cfg), by_open_clip(preprocess_cfg, size), image, size)


def add_others(cases: Cases) -> None:
    """ml-mobileclip, LLaVA and transformers."""
    for image in IMAGES:
        if image != "large":
            cases.add("mobileclip", {}, by_mobileclip((32, 32)), image, (32, 32))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    for content in (processor(32), processor(32, **half), processor(32, **clip, size={"shortest_edge": 36})):
        for ratio in ("pad", "square"):
            configs = {"config.json": {"image_aspect_ratio": ratio}, "preprocessor_config.json": content}
            for image in ("portrait", "landscape", "odd landscape", "nearly square"):
                cases.add("llava", configs, by_transformers(content, ratio == "pad"), image, (32, 32))
    for changes in ({"do_pad": True, **half}, {"do_pad": False, **clip}):
        content = processor(32, image_processor_type="LlavaImageProcessor", **changes)
        for configs in (
            {"preprocessor_config.json": content},
            {"processor_config.json": {"image_processor": content, "processor_class": "LlavaProcessor"}},
        ):
            for image in ("portrait", "odd landscape", "nearly square"):
                cases.add("transformers", configs, by_transformers(content, False), image, (32, 32))


def add_whole(cases: Cases) -> None:
    """A larger image at 64 pixels, for each form and kind of file: for comparing features."""
    size, image = (64, 64), "large"
    timm, legacy = timm_config(), timm_config(crop_pct=0.9, interpolation="bilinear")
    flat = {"config.json": {"architecture": "fastvit_mci3", **legacy["config.json"]["pretrained_cfg"]}}
    cases.add("timm", timm, by_timm(timm, size), image, size)
    cases.add("timm", flat, by_timm(flat, size), image, size)
    cases.add("timm", {}, by_timm(timm, size), image, size)
    squash = {"mean": [0.0] * 3, "std": [1.0] * 3, "resize_mode": "squash"}
    published = get_pretrained_cfg("MobileCLIP2-S3", "dfndr2b")
    for preprocess_cfg in (squash, {"resize_mode": "longest", "fill_color": 127}):
        cases.add("open_clip", open_clip_config(preprocess_cfg), by_open_clip(preprocess_cfg, size), image, size)
    cases.add("open_clip", open_clip_config(None), by_open_clip({}, size), image, size)
    cases.add("open_clip", {}, by_open_clip(published, size), image, size)
    clip = processor(64, image_mean=list(published["mean"]), image_std=list(published["std"]))
    cases.add("mobileclip", {}, by_mobileclip(size), image, size)
    cases.add("mobileclip", {"preprocessor_config.json": clip}, by_transformers(clip, False), image, size)
    half = processor(64, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)
    for ratio in ("pad", "square"):
        configs = {"config.json": {"image_aspect_ratio": ratio}, "preprocessor_config.json": half}
        cases.add("llava", configs, by_transformers(half, ratio == "pad"), image, size)
    cases.add("llava", {}, by_transformers(processor(64), True), image, size)
    llava = half | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    nested = {"image_processor": llava, "processor_class": "LlavaProcessor", "patch_size": 64}
    cases.add("transformers", {"preprocessor_config.json": llava}, by_transformers(llava, False), image, size)
    cases.add("transformers", {"processor_config.json": nested}, by_transformers(llava, False), image, size)
    # A fast_vlm's config.json repeats timm's entries for its tower, which its processor does not follow.
    tower = {"config.json": {"vision_config": timm["config.json"]}, "preprocessor_config.json": llava}
    cases.add("transformers", tower, by_transformers(llava, False), image, size)


def main() -> None:
    """Writes both files beside this script."""
    cases = Cases()
    for add in (add_timm, add_open_clip, add_others, add_whole):
        add(cases)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    lines = ",\n".join(json.dumps(entry) for entry in cases.entries)
    (HERE / "cases.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')
    images = {f"image {name}": np.asarray(make_image(name)) for name in IMAGES}
    np.savez_compressed(HERE / "levels.npz", **cases.levels, **images)


if __name__ == "__main__":
    main()
