"""The low bytes of colour images with 16 bits a channel, of which Pillow keeps the high bytes alone."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile

_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order in Pillow's raw modes -> the other one, with which Pillow keeps the low byte of each pair."""

_MODES = ("RGB", "RGBA", "RGBX", "CMYK")


def low_bytes_mode(image: ImageFile.ImageFile) -> str | None:
    """The raw mode in which a PNG or TIFF file that was just opened gives the low bytes; None if it has none."""
    modes = {_raw_mode(tile) for tile in image.tile}
    if image.format not in ("PNG", "TIFF") or len(modes) != 1:
        return None
    (mode,) = modes
    colours, separator, order = mode.partition(";16")
    if not separator or order not in _ORDER:
        return None
    if colours == "LA":
        return "RGBA"  # four bytes: high and low of the grey, high and low of alpha
    return f"{colours};16{_ORDER[order]}" if colours in _MODES else None


def use_raw_mode(image: ImageFile.ImageFile, raw_mode: str) -> None:
    """Makes an opened image load its pixels in another raw mode."""
    image.tile = [_with_raw_mode(tile, raw_mode) for tile in image.tile]


def joined(image: Image.Image, low: Image.Image, raw_mode: str) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The 16-bit values (H, W, C) of two loaded images, of which `low` was loaded in `raw_mode`."""
    if raw_mode == "RGBA":
        pairs = np.asarray(low)
        return pairs[:, :, :1] * np.uint16(256) + pairs[:, :, 1:2]
    return np.asarray(image) * np.uint16(256) + np.asarray(low)


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    arguments = tile[3]
    changed = (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode
    return tile._replace(args=changed) if hasattr(tile, "_replace") else (*tile[:3], changed)
