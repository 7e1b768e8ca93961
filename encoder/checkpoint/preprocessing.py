"""How a checkpoint's own pipeline prepares images, from the JSON files beside its weights.

Sources: timm's `resolve_data_config` and `transforms_imagenet_eval`, open_clip's `PreprocessCfg` and `image_transform`,
ml-mobileclip's transform, transformers' image processors, LLaVA's `process_images`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import ConfigError
from ..preprocess_config import OPENAI_MEAN, OPENAI_STD, RELEASED, PreprocessConfig, ResizeMode
from ..processor_dict import checked, config_of_processor, levels, number, resample_of, triple

Configs = Mapping[str, Mapping[str, Any]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TIMM_CROP_PCT = 0.875
"""What timm takes if a `pretrained_cfg` does not say."""

PUBLISHED: dict[str, PreprocessConfig] = {
    "llava": RELEASED,
    "transformers": RELEASED,
    "mobileclip": PreprocessConfig("shortest", "bilinear", rounding="even"),
    "open_clip": PreprocessConfig("shortest", "bilinear", mean=OPENAI_MEAN, std=OPENAI_STD, rounding="even"),
    "timm": PreprocessConfig("shortest", "bicubic", 0.95, OPENAI_MEAN, OPENAI_STD, rounding="even"),
}
"""By form: of apple/FastVLM-*, ml-mobileclip, open_clip's MobileCLIP2-S3, timm's fastvit_mci3.apple_mclip2_dfndr2b."""

_OF_PROCESSORS = (
    "image_mean", "image_std", "crop_size", "size", "resample", "rescale_factor", "do_normalize", "do_rescale",
    "do_resize", "do_center_crop", "do_pad", "image_processor_type", "feature_extractor_type",
)  # fmt: skip
"""A file with any of these describes a transformers image processor."""

_TIMM_MODES: dict[str, ResizeMode] = {"center": "shortest", "squash": "squash", "border": "longest"}
_OPEN_CLIP_MODES: dict[str, ResizeMode] = {"shortest": "shortest", "longest": "longest", "squash": "squash"}


@dataclass(frozen=True)
class FoundPreprocessing:
    """How images are prepared, and who says so.

    Attributes:
        config: how.
        source: the file and entry that it was read from; None if it is the form's published default.
    """

    config: PreprocessConfig
    source: str | None


def read_preprocessing(configs: Configs, form: str, pads: bool | None) -> FoundPreprocessing:
    """The preprocessing of a checkpoint: the files of its own form first, then any other that is there.

    Args:
        configs: file name -> its parsed content.
        form: of the checkpoint, a key of `PUBLISHED`.
        pads: whether config.json asks for padding (`image_aspect_ratio`); None if it does not say.

    Raises:
        ConfigError: an entry of another type or out of bounds, or one that asks for what is not supported.
    """
    own = PUBLISHED[form]
    mode: ResizeMode = "pad" if (own.resize == "pad" if pads is None else pads) else "shortest"
    settled = form == "llava" and pads is not None  # transformers' own code does not look at LLaVA's entry
    readers: dict[str, Callable[[], FoundPreprocessing | None]] = {
        "timm": lambda: _from_timm(configs),
        "open_clip": lambda: _from_open_clip(configs),
        "processor": lambda: _from_processor(configs, mode, settled),
    }
    first = form if form in readers else "processor"
    for name in (first, *(name for name in ("processor", "timm", "open_clip") if name != first)):
        if (found := readers[name]()) is not None:
            return found
    if own.resize == "pad" and mode != "pad":
        return FoundPreprocessing(PreprocessConfig(resize=mode), None)
    return FoundPreprocessing(own, None)


def _from_timm(configs: Configs) -> FoundPreprocessing | None:
    """A `pretrained_cfg`, or a config.json from before there was one, which has its entries at the top level."""
    for file in ("config.json", "preprocessor_config.json"):
        data, where = configs.get(file, {}).get("pretrained_cfg"), f"{file}, pretrained_cfg"
        if data is None and file == "config.json" and "architecture" in configs.get(file, {}):
            data, where = configs[file], file
            if not any(key in data for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")):
                continue
        if data is None:
            continue
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} must be an object; found {str(data)[:80]!r}")
        mode = _one_of(data.get("crop_mode") or "center", _TIMM_MODES, where, "crop_mode")
        mean = triple(data.get("mean") or IMAGENET_MEAN, where, "mean")
        red, green, blue = (min(255, max(0, round(255 * value))) for value in mean)
        config = checked(
            where,
            resize=mode,
            resample=resample_of(data.get("interpolation") or "bicubic", where),
            crop_pct=number(data.get("crop_pct") or TIMM_CROP_PCT, where, "crop_pct"),
            mean=mean,
            std=triple(data.get("std") or IMAGENET_STD, where, "std"),
            fill=(red, green, blue) if mode == "longest" else (0, 0, 0),
            rounding="even",
        )
        return FoundPreprocessing(config, where)
    return None


def _from_open_clip(configs: Configs) -> FoundPreprocessing | None:
    """A `preprocess_cfg`; what it lacks, or all of it, is open_clip's default."""
    name = "open_clip_config.json"
    if not any(key in configs.get(name, {}) for key in ("preprocess_cfg", "model_cfg")):
        name = "config.json"
        if configs.get(name, {}).get("preprocess_cfg") is None:
            return None
    data, where = _or(configs[name].get("preprocess_cfg"), {}), f"{name}, preprocess_cfg"
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be an object; found {str(data)[:80]!r}")
    if _or(data.get("mode"), "RGB") != "RGB":
        raise ConfigError(f"{where}: mode must be RGB; found {str(data['mode'])[:80]!r}")
    mode = _one_of(data.get("resize_mode") or "shortest", _OPEN_CLIP_MODES, where, "resize_mode")
    known = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bicubic"}  # random is for training alone
    config = checked(
        where,
        resize=mode,
        resample=_one_of(data.get("interpolation") or "bicubic", known, where, "interpolation"),
        mean=triple(_or(data.get("mean"), OPENAI_MEAN), where, "mean"),
        std=triple(_or(data.get("std"), OPENAI_STD), where, "std"),
        fill=levels(_or(data.get("fill_color"), 0), where, "fill_color") if mode == "longest" else (0, 0, 0),
        rounding="even",
    )
    return FoundPreprocessing(config, where)


def _from_processor(configs: Configs, mode: ResizeMode, settled: bool) -> FoundPreprocessing | None:
    """Transformers' rule: the `image_processor` of a `processor_config.json` goes before `preprocessor_config.json`."""
    nested = configs.get("processor_config.json", {}).get("image_processor")
    if nested is not None:
        where = "processor_config.json, image_processor"
        if not isinstance(nested, Mapping):
            raise ConfigError(f"{where} must be an object; found {str(nested)[:80]!r}")
        return FoundPreprocessing(config_of_processor(nested, where, mode, settled=settled), where)
    for file in ("preprocessor_config.json", "processor_config.json"):
        data = configs.get(file, {})
        if "pretrained_cfg" not in data and any(key in data for key in _OF_PROCESSORS):
            return FoundPreprocessing(config_of_processor(data, file, mode, settled=settled), file)
    return None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _one_of(value: object, known: Mapping[str, Any], where: str, key: str) -> Any:
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{where}: {key} must be one of {', '.join(known)}; found {str(value)[:80]!r}")
    return known[value]
