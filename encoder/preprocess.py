"""Images -> pixel values, as the checkpoint's own pipeline prepares them.

The released FastVLM pads to a square with the mean colour and resizes (`process_images` and `expand2square` of LLaVA
and apple/ml-fastvlm, then transformers' `CLIPImageProcessor`). timm, open_clip and ml-mobileclip resize and crop with
torchvision, each with its own mean, standard deviation, interpolation and crop percentage.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import ConfigError, ImageError
from .image import ImageLike, as_images, load_image
from .preprocess_config import RELEASED, RESAMPLES, PreprocessConfig, check_size
from .processor_dict import from_dict, to_dict
from .resize import Placed, Window, resize_window


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
        check_size(self.height, self.width)
        if not isinstance(self.config, PreprocessConfig):
            raise ConfigError(f"config must be a PreprocessConfig; found {self.config!r}")

    def pixels(self, image: ImageLike, notices: list[str] | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One image as uint8 levels (3, height, width), before normalization. Warns as `load_image` does.

        Raises ImageError for what `load_image` refuses, for an image too long to be resized with a filter of which no
        part can be computed by itself (see `resize_window`), and where memory runs out.
        """
        rgb = load_image(image, notices)
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
        return self.config.scaled(self.height, self.width)

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
        return to_dict(self.config, self.height, self.width)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessor:
        """Reads what `to_dict` wrote, now or in an earlier version; raises ConfigError, naming the entry."""
        return cls(*from_dict(data))
