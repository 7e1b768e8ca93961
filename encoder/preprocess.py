"""Images -> pixel values, as the checkpoint's own pipeline prepares them.

The released FastVLM pads to a square with the mean colour and resizes (`process_images` and `expand2square` of LLaVA
and apple/ml-fastvlm, then transformers' `CLIPImageProcessor`). timm, open_clip and ml-mobileclip resize and crop with
torchvision, each with its own mean, standard deviation, interpolation and crop percentage.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from ..core.errors import ConfigError, ImageError
from .image import ImageLike, as_images, load_image
from .resize import Placed, Window, resize_window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

ResizeMode = Literal["pad", "shortest", "longest", "squash"]
Rounding = Literal["down", "even"]
Triple: TypeAlias = tuple[float, float, float]

RESAMPLES = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}
"""Interpolation names, as timm and open_clip write them -> Pillow's filters."""

OPENAI_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalization, which timm and open_clip publish with MobileCLIP2-S3 and S4."""

TOLERANCE = 1e-3
"""How far outside its range, relative to the range, a pixel value may be: rounding in half types and resizing."""


def is_number(value: object) -> bool:
    """Whether a value, such as one from a JSON file, is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -(2**53) < value < 2**53


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes pixel values, at any size. The defaults are those of the released FastVLM checkpoints.

    Attributes:
        resize: `pad` pads the image to the target's aspect ratio, then resizes; `shortest` resizes until the image
            covers the target, then crops the centre; `longest` resizes until it fits into the target, then pads;
            `squash` resizes each side by itself.
        resample: a name of `RESAMPLES`.
        crop_pct: the target's side over the side that is resized to; below 1, the rest is cropped.
        mean, std: per channel, of values in [0, 1]: `pixel_values = (levels / 255 - mean) / std`.
        fill: colour of the padding, in levels 0..255.
        rounding: of half a pixel when centring: `down` as transformers and LLaVA do, `even` as torchvision does
            (timm, open_clip, ml-mobileclip).
    """

    resize: ResizeMode = "pad"
    resample: str = "bicubic"
    crop_pct: float = 1.0
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    fill: tuple[int, int, int] = (0, 0, 0)
    rounding: Rounding = "down"

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, object, tuple[str, ...]], ...] = (
            ("resize", self.resize, get_args(ResizeMode)),
            ("resample", self.resample, tuple(RESAMPLES)),
            ("rounding", self.rounding, get_args(Rounding)),
        )
        for name, value, known in choices:
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}; found {value!r}")
        if not is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must be over 0 and at most 1; found {self.crop_pct!r}")
        triples: tuple[tuple[str, object], ...] = (("mean", self.mean), ("std", self.std), ("fill", self.fill))
        for name, values in triples:
            if not isinstance(values, tuple) or len(values) != 3 or not all(is_number(value) for value in values):
                raise ConfigError(f"{name} must be three numbers, one per channel; found {values!r}")
        if not all(abs(value) <= 1 for value in self.mean):
            raise ConfigError(f"mean must be of values in [0, 1]; found {list(self.mean)}")
        if not all(1e-3 <= value <= 1e3 for value in self.std):
            raise ConfigError(f"std must be between 0.001 and 1000; found {list(self.std)}")
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in self.fill):
            raise ConfigError(f"fill must be three levels from 0 to 255; found {list(self.fill)}")

    @property
    def normalizes(self) -> bool:
        """Whether pixel values are anything but levels / 255."""
        return any(self.mean) or any(value != 1 for value in self.std)

    @property
    def normalization(self) -> tuple[Triple, Triple] | None:
        """Mean and std, or None for pixel values that are levels / 255."""
        return (self.mean, self.std) if self.normalizes else None

    @property
    def key(self) -> str:
        """Everything that changes a pixel value, in short: `pad`, or `shortest-bilinear-0.95-even`; for caches."""
        parts: list[str] = [self.resize]
        if self.resample != "bicubic":
            parts.append(self.resample)
        if self.crop_pct != 1:
            parts.append(f"{self.crop_pct:g}")
        if self.fill != (0, 0, 0):
            parts.append("".join(f"{level:02x}" for level in self.fill))
        if self.rounding != "down":
            parts.append(self.rounding)
        if self.normalizes:
            parts.append("_".join(f"{value:.9g}" for value in (*self.mean, *self.std)))
        return "-".join(parts)

    def describe(self) -> str:
        """One line for people: `pad with (0, 0, 0), bicubic; mean 0, std 1`."""
        how = {
            "pad": f"pad with {self.fill}",
            "shortest": "resize the shortest side, centre crop",
            "longest": f"resize the longest side, pad with {self.fill}",
            "squash": "resize without keeping the aspect ratio",
        }[self.resize]
        crop = f", crop_pct {self.crop_pct:g}" if self.crop_pct != 1 else ""
        return f"{how}, {self.resample}{crop}; mean {_brief(self.mean)}, std {_brief(self.std)}"

    def normalize(self, levels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Levels 0..255, uint8 (..., 3, H, W) -> `(levels / 255 - mean) / std`, float32."""
        values = np.divide(levels, np.float32(255), dtype=np.float32)
        if self.normalizes:
            mean, std = self._channels()
            values -= mean
            values /= std
        return values

    def normalize_tensor(self, levels: Tensor) -> Tensor:
        """`normalize` of a torch tensor on any device, equal to the bit."""
        import torch

        # By tensors on the same device: on a GPU, PyTorch multiplies by the reciprocal of a number, which rounds some
        # levels otherwise.
        values = levels.float() / torch.full((), 255.0, device=levels.device)
        if self.normalizes:
            mean, std = (torch.from_numpy(each).to(levels.device) for each in self._channels())
            values = (values - mean) / std
        return values

    def denormalize(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The inverse of `normalize`: pixel values (..., 3, H, W), floating -> the nearest levels, uint8.

        Values beyond the range of levels are clipped: see `value_range`.
        """
        mean, std = self._channels()
        return np.rint((values.astype(np.float32, copy=False) * std + mean) * 255).clip(0, 255).astype(np.uint8)

    def denormalize_tensor(self, values: Tensor) -> Tensor:
        """`denormalize` of a torch tensor on any device."""
        import torch

        mean, std = (torch.from_numpy(each).to(values.device) for each in self._channels())
        return ((values.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def value_range(self) -> tuple[float, float]:
        """The lowest and the highest pixel value of any image, over all channels."""
        mean, std = self._channels()
        return float(((0 - mean) / std).min()), float(((1 - mean) / std).max())

    def _channels(self) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
        """Mean and std as (3, 1, 1) float32."""
        mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (self.mean, self.std))
        return mean, std


RELEASED = PreprocessConfig()
"""Of the released FastVLM checkpoints."""


@dataclass(frozen=True)
class Preprocessor:
    """Makes images of any size `height` x `width` pixels, RGB, by a checkpoint's own rules.

    Attributes:
        height: rows of the result.
        width: columns of the result.
        config: how; that of the released FastVLM by default.
    """

    height: int
    width: int
    config: PreprocessConfig = RELEASED

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"images must have at least one pixel per side; found {self.height}x{self.width}")
        if not isinstance(self.config, PreprocessConfig):
            raise ConfigError(f"config must be a PreprocessConfig; found {self.config!r}")

    def pixels(self, image: ImageLike) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One image as uint8 levels (3, height, width), before normalization.

        Raises ImageError for what `load_image` refuses, for an image too long to be resized with a filter of which no
        part can be computed by itself (see `resize_window`), and where memory runs out.
        """
        rgb = load_image(image)
        name = f"image {image}" if isinstance(image, (str, os.PathLike)) else "an image"
        prepare = {"pad": self._pad, "shortest": self._cover, "longest": self._fit, "squash": self._squash}
        try:
            return np.asarray(prepare[self.config.resize](rgb, name)).transpose(2, 0, 1).copy()
        except MemoryError:
            raise ImageError(
                f"not enough memory to prepare {name} ({rgb.width}x{rgb.height}): shrink it first"
            ) from None

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One or more images as float32 pixel values (B, 3, height, width), normalized.

        Raises ImageError as `as_images` and `pixels` do, and for an empty sequence.
        """
        several = as_images(images)
        if not several:
            raise ImageError("no images given: give at least one")
        return self.config.normalize(np.stack([self.pixels(image) for image in several]))

    def _pad(self, image: Image.Image, name: str) -> Image.Image:
        """Centred on the smallest canvas of the target's aspect ratio that holds it, then resized."""
        canvas = self._canvas(image.size)
        at = (-self._half(image.width, canvas[0]), -self._half(image.height, canvas[1]))
        return self._resized(Placed(image, canvas, at, self.config.fill, name), self.scaled())

    def _cover(self, image: Image.Image, name: str) -> Image.Image:
        """Resized to the smallest size that covers the target over `crop_pct`, then cut around its centre."""
        width, height = image.size
        columns, rows = self.scaled()
        if self.config.rounding == "even" and rows != columns:  # timm's ResizeKeepRatio; torchvision's rule is below
            ratio = min(height / rows, width / columns)
            size = max(columns, round(width / ratio)), max(rows, round(height / ratio))
        elif width * rows >= height * columns:
            size = rows * width // height, rows
        else:
            size = columns, columns * height // width
        return self._resized(self._alone(image, name), size)

    def _fit(self, image: Image.Image, name: str) -> Image.Image:
        """Resized to the largest size that fits into the target over `crop_pct`, then centred on the target."""
        return self._resized(self._alone(image, name), self._fitted(image.size))

    def _squash(self, image: Image.Image, name: str) -> Image.Image:
        return self._resized(self._alone(image, name), self.scaled())

    def content_box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the result's pixels that show an image of `size` (width, height).

        Every other pixel is padding. A pixel that shows both is inside.
        """
        target = self.width, self.height
        if self.config.resize == "pad":
            canvas, scaled = self._canvas(size), self.scaled()
        elif self.config.resize == "longest":
            size = canvas = scaled = self._fitted(size)
        else:
            return 0, 0, self.width, self.height
        spans = []
        for have, whole, resized, shown in zip(size, canvas, scaled, target, strict=True):
            first, begin = -self._half(have, whole), self._half(resized, shown)
            low, high = (side * resized / whole - begin for side in (first, first + have))
            spans.append((max(0, math.floor(low)), min(shown, math.ceil(high))))
        (left, right), (top, bottom) = spans
        return left, top, right, bottom

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the smallest canvas of the target's aspect ratio that holds an image of `size`."""
        width, height = size
        if width * self.height >= height * self.width:
            return width, round(width * self.height / self.width)
        return round(height * self.width / self.height), height

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the largest size that fits into the target over `crop_pct`."""
        width, height = size
        columns, rows = self.scaled()
        ratio = max(height / rows, width / columns)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def scaled(self) -> tuple[int, int]:
        """(columns, rows) of the target over `crop_pct`, rounded down."""
        # timm rounds what it gets; elsewhere a side that was divided to make crop_pct has to come back whole.
        slack = 0 if self.config.rounding == "even" else 1e-6
        columns, rows = (math.floor(side / self.config.crop_pct + slack) for side in (self.width, self.height))
        return columns, rows

    def _alone(self, image: Image.Image, name: str) -> Placed:
        return Placed(image, image.size, (0, 0), self.config.fill, name)

    def _resized(self, placed: Placed, size: tuple[int, int]) -> Image.Image:
        """The canvas resized to `size`, then cut or padded to the target around its centre."""
        left, top = self._half(size[0], self.width), self._half(size[1], self.height)
        shown = Window(max(left, 0), max(top, 0), min(left + self.width, size[0]), min(top + self.height, size[1]))
        # Not by resize's `box`: which direction Pillow resizes first, and so how it rounds, depends on the sizes.
        resized = resize_window(placed, size, shown, RESAMPLES[self.config.resample])
        if resized.size == (self.width, self.height):
            return resized
        target = Image.new("RGB", (self.width, self.height), self.config.fill)
        target.paste(resized, (max(-left, 0), max(-top, 0)))
        return target

    def _half(self, have: int, want: int) -> int:
        """Where a side of `want` pixels begins on one of `have`: before it, if it is longer."""
        if have >= want:
            return round((have - want) / 2) if self.config.rounding == "even" else (have - want) // 2
        return -((want - have) // 2)

    def to_dict(self) -> dict[str, Any]:
        """How an image is prepared, in the terms of transformers' `preprocessor_config.json`; see `processor_dict`."""
        from .processor_dict import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessor:
        """Reads what `to_dict` wrote, now or in an earlier version; raises ConfigError, naming the entry."""
        from .processor_dict import from_dict

        return from_dict(data)


def _brief(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:.4g}' for value in values)})"
