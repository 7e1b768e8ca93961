"""Values of any width -> 8-bit levels.

One rule for each type, so that no single pixel decides how all others are scaled:

- uint8: as it is;
- 16-bit integers: x / 257, rounded;
- floats: in [0, 1], times 255, rounded; up to `TOLERANCE` beyond is clipped;
- PIL's mode `F`: as floats, or if a `SHARE` of the pixels is over 1, as levels 0 to 255, which Pillow's own conversion
  to that mode gives;
- PIL's mode `I`: as levels, or if a `SHARE` of the pixels is over 255, as 16-bit integers.

What does not fit its rule is refused, and so is what fits two: fewer pixels than a `SHARE` beyond the smaller range, or
mode `F` with only 0 and 1.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ...core.errors import ImageError

Levels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

TOLERANCE = 0.005
"""How far floats may be outside [0, 1]: what rounding and resizing leave, about one level."""

SHARE = 0.01
"""Of all pixels, and at least two: so many beyond the smaller of two ranges are no outliers."""

DARK = 65536 // 8
"""16-bit values that are all below this are probably of fewer bits: 12-bit data ends at 4095."""


def from_array(array: np.ndarray[Any, Any], notices: list[str]) -> Image.Image:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as an RGB image; adds to `notices`."""
    name = f"the given array {array.dtype}{list(array.shape)}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} is no image: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels last")
    if array.size == 0:
        raise ImageError(f"{name} has no pixels")
    if array.dtype.kind != "f" and (array.dtype.kind != "u" or array.dtype.itemsize > 2):
        raise ImageError(f"{name} has an unknown range of values: give uint8, uint16, or floats in [0, 1]")
    colours = array[:, :, :3] if array.ndim == 3 and array.shape[2] > 1 else array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(to_levels(colours, name, notices))).convert("RGB")


def from_wide_mode(image: Image.Image, name: str, notices: list[str]) -> Image.Image:
    """A PIL image of mode `I`, `F` or `I;16...` as mode `L`; adds to `notices`."""
    values, name = np.asarray(image), f"{name} (mode {image.mode})"
    high = values.max()
    if image.mode == "F" and high == 1 and values.min() >= 0 and not np.mod(values, 1).any():
        raise ImageError(
            f"{name} has the values 0 and 1 alone, which may be black and white or two of 255 levels: "
            'convert it to mode "L"'
        )
    if image.mode == "F" and _exceeds(values, 1 + TOLERANCE, name, "levels", "values in [0, 1]"):
        if values.min() < -255 * TOLERANCE or high > 255 * (1 + TOLERANCE):
            raise ImageError(
                f"{name} has values from {values.min():.9g} to {high:.9g}: scale them to [0, 1], or to levels 0 to 255"
            )
        return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    if image.mode == "I" and not _exceeds(values, 255, name, "16-bit values", "levels") and values.min() >= 0:
        return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray(to_levels(values, name, notices))


def _exceeds(values: np.ndarray[Any, Any], limit: float, name: str, wide: str, narrow: str) -> bool:
    """Whether values are of the wider of two ranges; raises ImageError if so few say so that they may be outliers."""
    if not np.isfinite(values).all():
        return False  # refused by `to_levels`
    beyond = int((values > limit).sum())
    if 0 < beyond < values.size and beyond < max(2, SHARE * values.size):
        raise ImageError(
            f"{name} has {beyond} of {values.size} pixels over {limit:g} (up to {values.max():.9g}), which may be "
            f'{wide} or outliers among {narrow}: convert it to mode "L", or clip it'
        )
    return beyond > 0


def to_levels(values: np.ndarray[Any, Any], name: str, notices: list[str]) -> Levels:
    """Values as 8-bit levels of the same shape, by the rules above; adds to `notices`."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # also where they are NaN
        raise ImageError(f"{name} has values from {low:.9g} to {high:.9g}: they must be finite")
    if values.dtype.kind == "f":
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise ImageError(
                f"{name} has values from {low:.9g} to {high:.9g}: scale floats to [0, 1], or convert levels to uint8 "
                '(mode "L")'
            )
        return np.rint(values.astype(np.float32).clip(0, 1) * np.float32(255)).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"{name} has values from {low} to {high}: scale them to 16 bits first")
    if 0 < high < DARK:
        notices.append(
            f"{name} is nearly black: its highest value is {high} of 65535. If it has fewer than 16 bits "
            f"({int(high).bit_length()} are used), scale it up first"
        )
    return (values // 257 + (values % 257 > 128)).astype(np.uint8)
