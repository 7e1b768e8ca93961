"""Images -> pixel values, as the released models prepare them.

Source: `process_images` and `expand2square` of LLaVA and the public code apple/ml-fastvlm, which pad to a square with
the mean colour (black, since the mean is 0) and hand over to transformers' `CLIPImageProcessor`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ..errors import ConfigError, ImageError
from .image import ImageLike, load_image

AspectRatio = Literal["pad", "crop"]

MAX_CANVAS = 2**28
"""Most pixels on the way (16384 x 16384, 1 GiB): a strip padded to a square, or blown up to cover one, can need
far more than its own pixels and those of the result."""

_LABELS = ("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys")
"""Entries of a `preprocessor_config.json` that name classes and change no pixel."""


@dataclass(frozen=True)
class Preprocessor:
    """Makes images of any size `height` x `width` pixels, RGB, in [0, 1]; the mean is 0 and the deviation 1.

    Attributes:
        height: rows of the result.
        width: columns of the result.
        image_aspect_ratio: `pad` shows the whole image, on black bars; `crop` fills the frame and cuts what stands out.
    """

    height: int
    width: int
    image_aspect_ratio: AspectRatio = "pad"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"images must have at least one pixel per side; found {self.height}x{self.width}")
        if self.image_aspect_ratio not in get_args(AspectRatio):
            known = " or ".join(get_args(AspectRatio))
            raise ConfigError(f"image_aspect_ratio must be {known}; found {self.image_aspect_ratio!r}")

    def pixels(self, image: ImageLike) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One image as uint8 levels (3, height, width), for a model that folds 1/255 into its first layer.

        Raises ImageError for what `load_image` refuses, and for an image too long to be padded.
        """
        rgb = load_image(image)
        name = f"image {image}" if isinstance(image, (str, os.PathLike)) else "an image"
        fitted = self._pad(rgb, name) if self.image_aspect_ratio == "pad" else self._crop(rgb, name)
        return np.asarray(fitted).transpose(2, 0, 1).copy()

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One or more images as float32 pixel values (B, 3, height, width) in [0, 1].

        Raises ImageError as `pixels` does, and for an empty sequence.
        """
        several = [images] if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)) else images
        if not several:
            raise ImageError("no images given: give at least one")
        return np.divide(np.stack([self.pixels(image) for image in several]), 255, dtype=np.float32)

    def _pad(self, image: Image.Image, name: str) -> Image.Image:
        """Centred on the smallest black canvas of the target's aspect ratio that holds it, then resized."""
        width, height = image.size
        if width * self.height >= height * self.width:
            canvas = (width, round(width * self.height / self.width))
        else:
            canvas = (round(height * self.width / self.height), height)
        _check_canvas(name, image.size, canvas)
        if canvas != image.size:
            padded = Image.new("RGB", canvas)
            padded.paste(image, ((canvas[0] - width) // 2, (canvas[1] - height) // 2))
            image = padded
        return image.resize((self.width, self.height), Image.Resampling.BICUBIC)

    def _crop(self, image: Image.Image, name: str) -> Image.Image:
        """Resized to the smallest size that covers the target, then cut around its centre."""
        width, height = image.size
        if width * self.height >= height * self.width:
            canvas = (self.height * width // height, self.height)
        else:
            canvas = (self.width, self.width * height // width)
        _check_canvas(name, image.size, canvas)
        left, top = (canvas[0] - self.width) // 2, (canvas[1] - self.height) // 2
        # Not by resize's `box`: which direction Pillow resizes first, and so how it rounds, depends on the sizes.
        covering = image.resize(canvas, Image.Resampling.BICUBIC)
        return covering.crop((left, top, left + self.width, top + self.height))

    def to_dict(self) -> dict[str, Any]:
        """What is done to an image, in the terms of transformers' `preprocessor_config.json`.

        `image_aspect_ratio` stands in a LLaVA model's `config.json` instead. A `size` of height and width, for a target
        that is not square, is what the image is resized to once it has that aspect ratio.
        """
        square = self.height == self.width
        return {
            "image_processor_type": "CLIPImageProcessor",
            "image_aspect_ratio": self.image_aspect_ratio,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.height} if square else {"height": self.height, "width": self.width},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": self.height, "width": self.width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.0, 0.0, 0.0],
            "image_std": [1.0, 1.0, 1.0],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessor:
        """Reads what `to_dict` wrote, or a `preprocessor_config.json` with `image_aspect_ratio` added.

        Raises ConfigError, naming the entry, for every other kind of preprocessing.
        """
        try:
            size, ratio = data["crop_size"], data["image_aspect_ratio"]
            height, width = int(size["height"]), int(size["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"preprocessing lacks crop_size (height, width) or image_aspect_ratio: {error}") from None
        own = cls(height, width, ratio)
        done = own.to_dict()
        for key, wanted in done.items():
            if key not in _LABELS and data.get(key) != wanted:
                raise ConfigError(f"this preprocessing is not supported: {key} must be {wanted}, found {data.get(key)}")
        for key, found in data.items():
            if key not in done and key not in _LABELS and found not in (None, False):
                raise ConfigError(f"this preprocessing is not supported: unknown entry {key}, found {found}")
        return own


def _check_canvas(name: str, size: tuple[int, int], canvas: tuple[int, int]) -> None:
    if canvas[0] * canvas[1] > MAX_CANVAS:
        raise ImageError(
            f"{name} ({size[0]}x{size[1]}) is too long and narrow: preparing it takes {canvas[0]}x{canvas[1]} pixels, "
            f"more than {MAX_CANVAS}; cut or shrink it first"
        )
