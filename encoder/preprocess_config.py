"""How a checkpoint prepares images, as data: `PreprocessConfig`, with normalization of levels and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from ..core.errors import ConfigError

if TYPE_CHECKING:
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


def check_size(height: int, width: int) -> None:
    """Raises ConfigError unless each side of an image has at least one pixel."""
    if height < 1 or width < 1:
        raise ConfigError(f"images must have at least one pixel per side; found {height}x{width}")


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

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(columns, rows) of a target of `height` x `width` pixels over `crop_pct`, rounded down."""
        # timm rounds what it gets; elsewhere a side that was divided to make crop_pct has to come back whole.
        slack = 0 if self.rounding == "even" else 1e-6
        columns, rows = (math.floor(side / self.crop_pct + slack) for side in (width, height))
        return columns, rows

    def _channels(self) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
        """Mean and std as (3, 1, 1) float32."""
        mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (self.mean, self.std))
        return mean, std


RELEASED = PreprocessConfig()
"""Of the released FastVLM checkpoints."""


def _brief(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:.4g}' for value in values)})"
