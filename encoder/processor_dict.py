"""`PreprocessConfig` as the dictionary of a transformers image processor, and back.

A manifest's `preprocessing` is such a dictionary: the class that its `image_processor_type` names,
`CLIPImageProcessor(**preprocessing)` for one, makes the same pixel values. Entries of our own say what transformers has
no word for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError
from .preprocess_config import OPENAI_MEAN, OPENAI_STD, RESAMPLES, PreprocessConfig, ResizeMode, is_number

LABELS = ("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys")
"""Entries of a `preprocessor_config.json` that name classes and change no pixel."""

PADS_FIRST = "LlavaImageProcessor"
"""The class that pads to a square before it resizes, as LLaVA's `expand2square` does, where `do_pad` is true."""

_KNOWN = (
    "do_convert_rgb", "do_pad", "do_resize", "do_center_crop", "do_rescale", "do_normalize",
)  # fmt: skip
_CHANGES_PIXELS = (
    "background_color", "crop_pct", "default_to_square", "ensure_multiple_of", "fill_color", "interpolation",
    "keep_aspect_ratio", "max_pixels", "min_pixels", "offset", "pad_size", "rescale_offset", "size_divisor",
)  # fmt: skip
"""Entries of other processors, or of other libraries, that a `CLIPImageProcessor` has not."""

_COMPLETE = ("size", "resample", "image_mean", "image_std")
"""Entries without which only a processor of CLIP or LLaVA is known to do what is assumed here."""

_CROPS = ("CLIP", PADS_FIRST)
"""Processors that crop the centre unless told otherwise; files that name none are taken for one of these."""
_CROPS_IF_TOLD = ("Siglip", "ViT", "Blip")
"""Processors that crop if told so. All others, such as LeViT's or EfficientNet's, do more than their entries say."""

_DEFAULT_SIDE = 224
"""Of `size` and `crop_size` in CLIP's and LLaVA's processors."""

_MODES: dict[str, ResizeMode] = {"pad": "pad", "crop": "shortest", "longest": "longest", "squash": "squash"}
"""LLaVA's words for `image_aspect_ratio`, and two more."""

_WORDS = {mode: word for word, mode in _MODES.items()}
_NAMES = {int(filter_): name for name, filter_ in RESAMPLES.items()}


def to_dict(config: PreprocessConfig, height: int, width: int) -> dict[str, Any]:
    """How an image is prepared for `height` x `width` pixels: a transformers image processor's entries, then our own.

    `image_aspect_ratio` (`pad`, `crop`, `longest` or `squash`), `crop_pct`, `fill_color` and `center_rounding` are the
    attributes `resize`, `crop_pct`, `fill` and `rounding` of `PreprocessConfig`. No class is named if transformers has
    none that does the same: for `longest`; for `pad` and `shortest` to a target that is not square; for a crop that
    rounds as torchvision does, which can begin one pixel later.
    """
    square, pads = height == width, config.resize == "pad"
    columns, rows = config.scaled(height, width)
    by_edge = config.resize == "shortest" and square
    kind = {"shortest": "CLIPImageProcessor", "squash": "CLIPImageProcessor", "pad": PADS_FIRST}.get(config.resize)
    if (
        (not square and config.resize != "squash")
        or (pads and config.fill != fill_of(config.mean))
        or (config.rounding == "even" and config.resize == "shortest")
    ):
        kind = None
    return {
        **({"image_processor_type": kind} if kind else {}),
        "do_convert_rgb": True,
        "do_pad": pads,
        "do_resize": True,
        "size": {"shortest_edge": rows} if by_edge else {"height": rows, "width": columns},
        "resample": int(RESAMPLES[config.resample]),
        "do_center_crop": config.resize == "shortest" or (rows, columns) != (height, width),
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "image_aspect_ratio": _WORDS[config.resize],
        "crop_pct": config.crop_pct,
        "fill_color": list(config.fill),
        "center_rounding": config.rounding,
    }


def from_dict(data: Mapping[str, Any]) -> tuple[int, int, PreprocessConfig]:
    """(height, width, config) from what `to_dict` wrote, now or in an earlier version.

    Of our own entries, earlier versions wrote `image_aspect_ratio` alone. Raises ConfigError, naming the entry, for
    every other kind of preprocessing.
    """
    size = _sides(data.get("crop_size"), "preprocessing", "crop_size")
    if size is None or "height" not in size:
        raise ConfigError("preprocessing lacks crop_size (height, width)")
    height, width = size["height"], size["width"]
    mode = _MODES.get(str(data.get("image_aspect_ratio")))
    if mode is None:
        raise ConfigError(
            f"this preprocessing is not supported: image_aspect_ratio must be one of {', '.join(_MODES)}; "
            f"found {data.get('image_aspect_ratio')!r}"
        )
    config = PreprocessConfig(
        resize=mode,
        resample=resample_of(data.get("resample"), "preprocessing"),
        crop_pct=number(data.get("crop_pct", 1.0), "preprocessing", "crop_pct"),
        mean=triple(data.get("image_mean"), "preprocessing", "image_mean"),
        std=triple(data.get("image_std"), "preprocessing", "image_std"),
        fill=levels(data.get("fill_color", [0, 0, 0]), "preprocessing", "fill_color"),
        rounding=data.get("center_rounding", "down"),
    )
    done = to_dict(config, height, width)
    if "crop_pct" not in data:  # by an earlier version, which named one class and one kind of size
        square = height == width
        done |= {
            "size": {"shortest_edge": height} if square else {"height": height, "width": width},
            "do_center_crop": True,
        }
        done = {key: wanted for key, wanted in done.items() if key in data or key in ("do_resize", "size")}
    for key, wanted in done.items():
        if key not in LABELS and data.get(key) != wanted:
            raise ConfigError(f"this preprocessing is not supported: {key} must be {wanted}, found {data.get(key)}")
    for key, found in data.items():
        if key not in done and key not in LABELS and found not in (None, False):
            raise ConfigError(f"this preprocessing is not supported: unknown entry {key}, found {found}")
    return height, width, config


def config_of_processor(
    data: Mapping[str, Any], where: str, mode: ResizeMode, *, settled: bool = False
) -> PreprocessConfig:
    """What a checkpoint's transformers image processor does.

    Args:
        data: a `preprocessor_config.json`, or the `image_processor` of a `processor_config.json`.
        where: the file's name, for messages.
        mode: `pad` if the model pads the image before its processor sees it, as LLaVA does; else `shortest`.
        settled: whether `mode` holds even for a processor that says itself whether it pads.

    Raises:
        ConfigError: an entry of another type or out of bounds, or one that asks for what is not supported.
    """
    for key, value in data.items():
        if key.startswith("do_") and key not in _KNOWN and value:
            raise ConfigError(f"{where}: {key} is not supported (found {value!r})")
        # Whether null is false or the default depends on the release of transformers.
        optional = key in ("do_convert_rgb", "do_pad", "do_center_crop")
        if key in _KNOWN and not isinstance(value, bool) and not (value is None and optional):
            raise ConfigError(f"{where}: {key} must be true or false; found {'null' if value is None else repr(value)}")
    if data.get("do_resize") is False:
        raise ConfigError(f"{where}: do_resize is false, and the encoder needs images of one size")
    if "center_rounding" in data:  # as `to_dict` wrote it
        try:
            return from_dict(data)[2]
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    for key in _CHANGES_PIXELS:
        if data.get(key) not in (None, False):
            raise ConfigError(f"{where}: {key} is not supported (found {str(data[key])[:80]!r})")
    kind = str(data.get("image_processor_type", data.get("feature_extractor_type", "")))
    if kind.startswith(PADS_FIRST) and isinstance(data.get("do_pad"), bool) and not settled:
        mode = "pad" if data["do_pad"] else "shortest"
    crops = not kind or kind.startswith(_CROPS)
    if not crops:
        if not kind.startswith(_CROPS_IF_TOLD):
            known = ", ".join(
                f"{name.removesuffix('ImageProcessor')}ImageProcessor" for name in (*_CROPS, *_CROPS_IF_TOLD)
            )
            raise ConfigError(f"{where}: {kind[:80]!r} is not supported (known are {known})")
        for key in _COMPLETE:
            if data.get(key) is None or (key == "size" and not isinstance(data[key], Mapping)):
                raise ConfigError(f"{where}: {kind} needs {key} in full; found {str(data.get(key))[:80]!r}")
    mean, std = _normalization(data, where)
    mode, crop_pct = _framing(data, where, mode, crops=crops)
    return checked(
        where,
        resize=mode,
        resample=resample_of(data.get("resample", 3), where),
        crop_pct=crop_pct,
        mean=mean,
        std=std,
        # As LLaVA does it: whether or not the processor normalizes, and in whatever range.
        fill=fill_of(triple(data.get("image_mean", OPENAI_MEAN), where, "image_mean")) if mode == "pad" else (0, 0, 0),
    )


def checked(where: str, **fields: Any) -> PreprocessConfig:
    """A `PreprocessConfig` of these fields; raises ConfigError, naming the file `where`, for values out of bounds."""
    try:
        return PreprocessConfig(**fields)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def fill_of(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """The mean colour as LLaVA's `expand2square` rounds it."""
    red, green, blue = (min(255, max(0, int(value * 255))) for value in mean)
    return red, green, blue


def triple(value: object, where: str, key: str) -> tuple[float, float, float]:
    """Three numbers, one per channel; one number stands for three."""
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3 or not all(is_number(one) for one in values):
        raise ConfigError(f"{where}: {key} must be three numbers; found {str(value)[:80]}")
    red, green, blue = map(float, values)
    return red, green, blue


def levels(value: object, where: str, key: str) -> tuple[int, int, int]:
    """A colour in levels 0..255; one number stands for three."""
    red, green, blue = triple(value, where, key)
    if not all(one == int(one) and 0 <= one <= 255 for one in (red, green, blue)):
        raise ConfigError(f"{where}: {key} must be three levels from 0 to 255; found {str(value)[:80]}")
    return int(red), int(green), int(blue)


def resample_of(value: object, where: str) -> str:
    """The name of a filter that is given by Pillow's number or by name."""
    name = value.lower() if isinstance(value, str) else None
    if isinstance(value, int) and not isinstance(value, bool):
        name = _NAMES.get(value)
    if name not in RESAMPLES:
        known = ", ".join(f"{filter_.value} ({name})" for name, filter_ in RESAMPLES.items())
        raise ConfigError(f"{where}: resample must be one of {known}; found {str(value)[:80]!r}")
    return name


def _normalization(
    data: Mapping[str, Any], where: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of values in [0, 1], whatever the processor multiplies levels by."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if data.get("do_normalize") is not False:
        # What a CLIPImageProcessor takes that is not told.
        mean = triple(data.get("image_mean", OPENAI_MEAN), where, "image_mean")
        std = triple(data.get("image_std", OPENAI_STD), where, "image_std")
    factor = data.get("rescale_factor", 1 / 255) if data.get("do_rescale") is not False else 1
    factor = number(factor, where, "rescale_factor")
    if not 1e-6 <= factor <= 1e3:
        raise ConfigError(f"{where}: rescale_factor must be positive; found {factor:g}")
    top = 255 * factor
    if math.isclose(top, 1, rel_tol=1e-6):
        return mean, std
    return _divided(mean, top), _divided(std, top)


def _divided(values: tuple[float, float, float], by: float) -> tuple[float, float, float]:
    return values[0] / by, values[1] / by, values[2] / by


def _framing(data: Mapping[str, Any], where: str, mode: ResizeMode, *, crops: bool) -> tuple[ResizeMode, float]:
    """How the image is brought to its size, and the part of that which is cut out; `crops` where nothing says so."""
    size, crop = (_sides(data.get(key), where, key) for key in ("size", "crop_size"))
    if size is None and crop is None and data.get("do_center_crop", crops):
        return mode, 1.0
    told = f"size {data.get('size', 'missing')}, crop_size {data.get('crop_size', 'missing')}"
    size = size or {"shortest_edge": _DEFAULT_SIDE}
    by_edge = "shortest_edge" in size
    if not data.get("do_center_crop", crops):
        if mode != "pad" and by_edge:
            raise ConfigError(f"{where}: do_center_crop is false, and the encoder needs images of one shape")
        crop = None
    else:
        crop = crop or {"shortest_edge": _DEFAULT_SIDE}
    if mode != "pad":
        mode = "shortest" if by_edge else "squash"
    elif not by_edge and size["height"] != size["width"]:
        raise ConfigError(f"{where}: size must be square where images are padded to a square; found {size}")
    if crop is None:
        return mode, 1.0
    height, width = crop.get("height", crop.get("shortest_edge", 0)), crop.get("width", crop.get("shortest_edge", 0))
    rows, columns = (size["shortest_edge"],) * 2 if by_edge else (size["height"], size["width"])
    if height > rows or width > columns or not math.isclose(height / rows, width / columns, rel_tol=1e-2):
        raise ConfigError(
            f"{where}: crop_size {height}x{width} is no even part of the size {rows}x{columns} (found {told[:160]}; "
            f"what is missing is {_DEFAULT_SIDE})"
        )
    return mode, height / rows


def _sides(value: object, where: str, key: str) -> dict[str, int] | None:
    """`{"shortest_edge"}` or `{"height", "width"}`; a number is the shortest edge."""
    if value is None:
        return None
    given = {"shortest_edge": value} if not isinstance(value, Mapping) else value
    sides = {name: side for name, side in given.items() if side is not None}
    known = sides.keys() in ({"shortest_edge"}, {"height", "width"})
    if not known or not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 20 for n in sides.values()):
        raise ConfigError(f"{where}: {key} must be a shortest_edge, or a height and a width; found {str(value)[:80]}")
    return dict(sides)


def number(value: object, where: str, key: str) -> float:
    """A finite number."""
    if not is_number(value):
        raise ConfigError(f"{where}: {key} must be a number; found {str(value)[:80]!r}")
    assert isinstance(value, (int, float))
    return float(value)
