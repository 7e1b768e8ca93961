"""Resizing part of an image, or an image on a canvas, in memory proportional to what goes in and what comes out.

A strip of 16000 x 10 pixels that is padded to a square has a canvas of 256 megapixels; enlarged until it covers a
target of 1024 x 1024, it has 1678. `resize_window` computes the pixels that are asked for and no others, and equals
Pillow's own `resize` of the whole to the bit: it repeats Pillow's integer arithmetic, whose sums of pixels x weights
are exact in float64 too. Source: `src/libImaging/Resample.c` of Pillow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from ..core.errors import ImageError

Levels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Size: TypeAlias = tuple[int, int]

MAX_CANVAS = 2**28
"""Most pixels (16384 x 16384, 1 GiB) that are resized as a whole, where no part can be computed by itself."""

_DIRECT = 4
"""A canvas of at most so many times the pixels of image and result is resized by Pillow as a whole."""

_BITS = 22
"""Fraction bits of Pillow's weights."""


def _bilinear(x: Floats) -> Floats:
    x = np.abs(x)
    return np.where(x < 1, 1 - x, 0.0)


def _bicubic(x: Floats) -> Floats:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _sinc(x: Floats) -> Floats:
    # The C library's sine, as in Pillow: NumPy's own may differ in the last bit.
    return np.array([1.0 if value == 0 else math.sin(value * math.pi) / (value * math.pi) for value in x])


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


_FILTERS: dict[Image.Resampling, tuple[Callable[[Floats], Floats], float]] = {
    Image.Resampling.BOX: (lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0), 0.5),
    Image.Resampling.BILINEAR: (_bilinear, 1.0),
    Image.Resampling.BICUBIC: (_bicubic, 2.0),
    Image.Resampling.LANCZOS: (_lanczos, 3.0),
}
"""Pillow's filters and how far they reach, in pixels."""


class Window(NamedTuple):
    """A rectangle of pixels; may reach beyond what it is a part of."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Placed:
    """An RGB image on a canvas of one colour.

    Attributes:
        image: RGB.
        canvas: (width, height); the image lies within it.
        at: (left, top) of the image on the canvas.
        fill: the canvas' colour, in levels 0..255.
        name: how error messages name the image.
    """

    image: Image.Image
    canvas: Size
    at: Size
    fill: tuple[int, int, int]
    name: str

    def whole(self) -> Image.Image:
        """The canvas with the image on it."""
        if self.canvas == self.image.size:
            return self.image
        made = Image.new("RGB", self.canvas, self.fill)
        made.paste(self.image, self.at)
        return made


def resize_window(placed: Placed, size: Size, window: Window, resample: Image.Resampling) -> Image.Image:
    """The pixels within `window` of the canvas resized to `size` (width, height).

    Equal to `placed.whole().resize(size, resample).crop(window)`, for a window within `size`.

    Raises:
        ImageError: a canvas of over `MAX_CANVAS` pixels, with a filter other than box, bilinear, bicubic and lanczos.
    """
    wanted = (window.right - window.left) * (window.bottom - window.top)
    needed = placed.canvas[0] * placed.canvas[1] + size[0] * size[1]
    few = needed <= _DIRECT * (placed.image.width * placed.image.height + wanted)
    if few or resample not in _FILTERS:
        if not few and needed > MAX_CANVAS:
            width, height = placed.image.size
            raise ImageError(
                f"{placed.name} ({width}x{height}) is too long and narrow: preparing it takes {needed} pixels, more "
                f"than {MAX_CANVAS}; cut or shrink it first"
            )
        resized = placed.whole().resize(size, resample)
        return resized if window == (0, 0, *size) else resized.crop(window)
    return Image.fromarray(_part(placed, size, window, resample))


def _part(placed: Placed, size: Size, window: Window, resample: Image.Resampling) -> Levels:
    """`resize_window` by itself: (rows, columns, 3)."""
    pixels = np.asarray(placed.image)
    columns = _Axis(placed.canvas[0], size[0], range(window.left, window.right), resample)
    rows = _Axis(placed.canvas[1], size[1], range(window.top, window.bottom), resample)
    fill = np.array(placed.fill, np.uint8)
    if _vertical_first(placed.canvas, size):
        return _two_passes(pixels, (rows, columns), (placed.at[1], placed.at[0]), fill)
    return _two_passes(pixels.swapaxes(0, 1), (columns, rows), placed.at, fill).swapaxes(0, 1)


def _two_passes(pixels: Levels, axes: tuple[_Axis, _Axis], at: Size, fill: Levels) -> Levels:
    """Resizes the first axis of `pixels` (M, N, 3), rounds, then resizes the second; `at` and `axes` in that order."""
    first, second = axes
    low, high = second.needed(at[1], pixels.shape[1])
    pixels, at = pixels[:, low - at[1] : high - at[1]], (at[0], low)
    # What the first pass makes of lines that cross no pixel of the image: one colour for each of its outputs.
    beside = first.blend(fill, first.sums)
    reached = first.reached(at[0], pixels.shape[0])
    middle = np.empty((len(reached), pixels.shape[1], 3), np.uint8)
    for index, output in enumerate(reached):
        part, within, outside = first.overlap(output, at[0], pixels.shape[0])
        middle[index] = first.blend(np.tensordot(within, pixels[part].astype(np.float64), 1) + outside * fill)

    made = np.empty((len(first.outputs), len(second.outputs), 3), np.uint8)
    for output, weight in enumerate(second.sums):
        made[:, output] = second.blend(beside, weight)
    shown = slice(reached.start, reached.stop)
    for output in second.reached(at[1], pixels.shape[1]):
        part, within, outside = second.overlap(output, at[1], pixels.shape[1])
        image = np.tensordot(middle[:, part].astype(np.float64), within, (1, 0))
        made[shown, output] = second.blend(image + outside * beside[shown])
    return made


class _Axis:
    """The weights with which one axis of `size` pixels is resized to `to`, for some of the outputs.

    Attributes:
        outputs: the outputs that are computed; they are counted from 0 below.
        sums: of each output's weights (len(outputs), 1).
    """

    def __init__(self, size: int, to: int, outputs: range, resample: Image.Resampling) -> None:
        self.size = size
        self.outputs = outputs
        self._filter, reach = _FILTERS[resample]
        self._scale = size / to
        self._widening = max(self._scale, 1.0)
        self._support = reach * self._widening
        self._same = size == to  # Pillow leaves out that pass
        self.sums = np.array([[self._weights(index)[1].sum()] for index in range(len(outputs))], np.float64)

    def needed(self, start: int, length: int) -> tuple[int, int]:
        """Which of the pixels `start` to `start + length` the outputs depend on: the first, and one past the last."""
        bounds = [self._bounds(index) for index in range(len(self.outputs))]
        low, high = max(start, min(low for low, _ in bounds)), min(start + length, max(high for _, high in bounds))
        return (low, high) if low < high else (start, start)

    def reached(self, start: int, length: int) -> range:
        """The outputs that depend on pixels `start` to `start + length`."""
        bounds = [self._bounds(index) for index in range(len(self.outputs))]
        found = [index for index, (low, high) in enumerate(bounds) if low < start + length and high > start]
        return range(found[0], found[-1] + 1) if found else range(0)

    def overlap(self, output: int, start: int, length: int) -> tuple[slice, Floats, float]:
        """Which of the pixels from `start` on an output sees, with which weights, and the weight of all others."""
        low, weights = self._weights(output)
        begin, end = max(low, start), min(low + len(weights), start + length)
        within = weights[begin - low : max(begin, end) - low]
        return slice(begin - start, max(begin, end) - start), within, float(weights.sum() - within.sum())

    @staticmethod
    def blend(values: np.ndarray[Any, Any], weights: Floats | float = 1.0) -> Levels:
        """Sums of levels x weights as levels, rounded and clipped as Pillow does."""
        total = np.floor((values * weights + (1 << (_BITS - 1))) / (1 << _BITS))  # exact: under 2^53
        return total.clip(0, 255).astype(np.uint8)

    def _bounds(self, index: int) -> Size:
        """First input of an output, and the one after its last."""
        output = self.outputs[index]
        if self._same:
            return output, output + 1
        center = (output + 0.5) * self._scale
        return max(int(center - self._support + 0.5), 0), min(int(center + self._support + 0.5), self.size)

    def _weights(self, index: int) -> tuple[int, Floats]:
        """First input of an output, and the weights from there on: whole numbers, in units of 2^-22."""
        low, high = self._bounds(index)
        if self._same:
            return low, np.array([float(1 << _BITS)])
        center = (self.outputs[index] + 0.5) * self._scale
        inputs = np.arange(low, high, dtype=np.float64)
        weights = self._filter((inputs - center + 0.5) * (1.0 / self._widening))
        total = np.add.accumulate(weights)[-1]  # from left to right, as a loop in C adds
        if total != 0:
            weights = weights / total
        return low, np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5))


def _vertical_first(size: Size, to: Size) -> bool:
    """Whether Pillow resizes columns before rows, which decides what is rounded in between."""
    return _chooses_order() and to[1] < size[1] and 2 * (size[0] - to[0]) < size[1] - to[1]


@functools.cache
def _chooses_order() -> bool:
    """Whether this release of Pillow (13 and later) chooses the order by the sizes; others resize rows first."""
    image = Image.effect_noise((16, 64), 100)
    both = image.resize((14, 16), Image.Resampling.BICUBIC)
    return (
        both.tobytes()
        == image.resize((16, 16), Image.Resampling.BICUBIC).resize((14, 16), Image.Resampling.BICUBIC).tobytes()
    )
