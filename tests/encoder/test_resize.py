"""`fvexport.encoder.resize`: part of a resized canvas is what Pillow makes of the whole, to the bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import ImageError
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig
from fvexport.encoder.resize import _FILTERS, Placed, Window, _part, resize_window

side = st.integers(1, 90)
margin = st.one_of(st.just(0), st.integers(0, 200))


def noise(width: int, height: int, seed: int, *, extreme: bool = False) -> Image.Image:
    """An RGB image; `extreme` has the levels 0 and 255 alone, where overshoot is clipped."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray((values > 127) * np.uint8(255) if extreme else values)


@settings(max_examples=150, deadline=None)
@given(
    image=st.tuples(side, side),
    margins=st.tuples(margin, margin, margin, margin),
    size=st.tuples(side, side),
    kept=st.tuples(st.booleans(), st.booleans()),
    cut=st.tuples(*[st.floats(0, 1)] * 4),
    fill=st.tuples(*[st.integers(0, 255)] * 3),
    resample=st.sampled_from(list(_FILTERS)),
    seed=st.integers(0, 99),
)
def test_a_part_equals_the_whole(image, margins, size, kept, cut, fill, resample, seed):
    left, top, right, bottom = margins
    canvas = image[0] + left + right, image[1] + top + bottom
    size = tuple(whole if keep else new for whole, keep, new in zip(canvas, kept, size, strict=True))
    (x0, x1), (y0, y1) = (
        sorted(int(size[0] * part) for part in cut[:2]),
        sorted(int(size[1] * part) for part in cut[2:]),
    )
    assume(x0 < x1 and y0 < y1)
    placed = Placed(noise(*image, seed, extreme=seed % 3 == 0), canvas, (left, top), fill, "noise")
    whole = placed.whole().resize(size, resample).crop((x0, y0, x1, y1))
    np.testing.assert_array_equal(_part(placed, size, Window(x0, y0, x1, y1), resample), np.asarray(whole))


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(200, 3000),
    thickness=st.integers(1, 4),
    upright=st.booleans(),
    resample=st.sampled_from(["bilinear", "bicubic", "lanczos", "box"]),
    target=st.sampled_from([(16, 16), (24, 16), (16, 40)]),
    fill=st.sampled_from([(0, 0, 0), (122, 116, 104)]),
)
def test_padded_strips(length, thickness, upright, resample, target, fill):
    """A strip, padded to a square as `process_images` does, against its whole canvas."""
    image = noise(*((thickness, length) if upright else (length, thickness)), seed=length)
    rows, columns = target
    (width, height), (got_rows, got_columns) = image.size, target
    if width * rows >= height * columns:
        canvas = (width, round(width * rows / columns))
    else:
        canvas = (round(height * columns / rows), height)
    whole = Image.new("RGB", canvas, fill)
    whole.paste(image, ((canvas[0] - width) // 2, (canvas[1] - height) // 2))
    expected = np.asarray(whole.resize((columns, rows), getattr(Image.Resampling, resample.upper())))
    pixels = Preprocessor(got_rows, got_columns, PreprocessConfig("pad", resample, fill=fill)).pixels(image)
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("size", [(900, 3), (3, 900)])
def test_cropped_strips(size):
    image = noise(*size, seed=1)
    whole = image.resize((900 * 16 // 3, 16) if size[0] > 3 else (16, 900 * 16 // 3), Image.Resampling.BICUBIC)
    left, top = (whole.width - 16) // 2, (whole.height - 16) // 2
    expected = np.asarray(whole.crop((left, top, left + 16, top + 16)))
    pixels = Preprocessor(16, 16, PreprocessConfig("shortest")).pixels(image)
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), expected)


def test_other_filters_are_bounded():
    placed = Placed(noise(40, 2, 0), (40, 40), (0, 19), (0, 0, 0), "noise")
    for resample in set(Image.Resampling) - set(_FILTERS):
        whole = placed.whole().resize((8, 8), resample)
        assert resize_window(placed, (8, 8), Window(0, 0, 8, 8), resample) == whole
        huge = Placed(noise(20_000, 1, 0), (20_000, 20_000), (0, 9999), (0, 0, 0), "noise")
        with pytest.raises(ImageError, match=r"noise \(20000x1\) is too long and narrow"):
            resize_window(huge, (8, 8), Window(0, 0, 8, 8), resample)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_is_that_of_image_and_result():
    """The canvases have 256 to 1678 megapixels, the image and the result together 1.2."""
    code = """
import resource
from PIL import Image
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images = [Image.new("RGB", size, (200, 99, 3)) for size in ((16000, 10), (10, 16000))]
Preprocessor(1024, 1024).pixels(Image.new("RGB", (9, 9)))
before = peak()
for mode in ("pad", "shortest", "longest", "squash"):
    for image in images:
        Preprocessor(1024, 1024, PreprocessConfig(mode)).pixels(image)
print((peak() - before) // 1024)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(found.stdout) < 40, found.stdout
