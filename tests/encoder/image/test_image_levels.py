"""`fvexport.encoder.image.levels`: one scale for each type of values, whatever single pixels are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import ImageError, ImageWarning
from fvexport.encoder.image import load_image

PHOTO = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)


def grey(source) -> np.ndarray:
    return np.asarray(load_image(source))[:, :, 0]


def refused(source, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    for word in words:
        assert word in str(caught.value)


def both(values: np.ndarray) -> tuple[np.ndarray, Image.Image]:
    """The same floats as an array and as a PIL image of mode F."""
    return values, Image.fromarray(values.astype(np.float32))


@pytest.mark.parametrize("beyond", [1.0000001, 1.001, 1.004, -1e-8, -0.004])
def test_floats_a_little_outside_are_clipped(beyond):
    values = PHOTO / np.float32(255)
    values[0, 0] = beyond
    expected = PHOTO.copy()
    expected[0, 0] = 255 if beyond > 1 else 0
    for source in both(values):
        np.testing.assert_array_equal(grey(source), expected)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first image loads Pillow's plugins
@given(pixel=st.one_of(st.floats(-2, 2), st.floats(-1e6, 1e6)), place=st.integers(0, PHOTO.size - 1))
def test_one_pixel_never_rescales_a_float_image(pixel, place):
    values = PHOTO / np.float32(255)
    values.flat[place] = pixel
    for source in both(values):
        try:
            levels = grey(source)
        except ImageError:
            continue
        same = np.ones(PHOTO.size, bool)
        same[place] = False
        np.testing.assert_array_equal(levels.ravel()[same], PHOTO.ravel()[same])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1.0051], ["1.005"]),
        ([0.5, 1.5], ["1.5", "[0, 1]"]),
        ([-0.006, 1], ["-0.006"]),
        ([0, 255], ["255", 'mode "L"']),
        ([0, np.nan], ["nan", "finite"]),
        ([0, np.inf], ["inf", "finite"]),
        ([-np.inf, 1], ["-inf", "finite"]),
    ],
)
def test_floats_out_of_range(values, words):
    for source in both(np.array([values], float)):
        refused(source, *words)


def test_half_precision():
    np.testing.assert_array_equal(grey((PHOTO / 255).astype(np.float16)), PHOTO)
    assert grey(np.array([[1.001, 0.5]], np.float16)).tolist() == [[255, 128]]


def test_levels_in_mode_f():
    """Pillow converts L to F as levels 0..255; in a dark picture with few pixels over 1 they cannot be told."""
    np.testing.assert_array_equal(grey(Image.fromarray(PHOTO).convert("F")), PHOTO)
    refused(Image.fromarray(PHOTO % 2).convert("F"), "0 and 1 alone", 'mode "L"')
    assert not grey(Image.fromarray(PHOTO * 0).convert("F")).any()
    for number, words in ((1, ["1 of 4096", "outliers"]), (40, ["40 of 4096", "outliers"]), (41, [])):
        dark = np.full(4096, 0.25, np.float32)
        dark[:number] = 200
        image = Image.fromarray(dark.reshape(64, 64))
        if words:
            refused(image, *words)
        else:
            assert np.unique(grey(image)).tolist() == [0, 200]
    refused(Image.fromarray(np.full((8, 8), 300, np.float32)), "300")
    refused(Image.fromarray(np.float32([[-9, 200, 200]])), "-9")


def test_mode_i_is_levels_or_16_bits():
    np.testing.assert_array_equal(grey(Image.fromarray(PHOTO).convert("I")), PHOTO)
    refused(Image.fromarray(np.array([[9, 65535, 7]], np.int32)), "1 of 3", "outliers")
    wide = PHOTO.astype(np.int32) * 257
    np.testing.assert_array_equal(grey(Image.fromarray(wide)), PHOTO)
    wide[0, 0] = 255  # other pixels' scale stays
    np.testing.assert_array_equal(grey(Image.fromarray(wide))[1:], PHOTO[1:])
    with pytest.warns(ImageWarning, match="256 of 65535"):
        assert grey(Image.fromarray(np.full((2, 2), 256, np.int32))).tolist() == [[1, 1], [1, 1]]
    refused(Image.fromarray(np.array([[-1, 9000, 9000]], np.int32)), "-1")
    refused(Image.fromarray(np.array([[-1, 9]], np.int32)), "-1")
    refused(Image.fromarray(np.array([[65536, 65536]], np.int32)), "65536")
    assert not grey(Image.fromarray(PHOTO.astype(np.int32) * 0)).any()


@pytest.mark.parametrize("bits", [10, 12])
def test_a_16_bit_image_that_is_nearly_black_is_told(bits, tmp_path):
    values = (np.arange(2**bits, dtype=np.uint16)).reshape(32, -1)
    Image.fromarray(values).save(tmp_path / "scan.png")
    Image.fromarray(values).save(tmp_path / "scan.tiff")
    expected = np.rint(values / 257)
    for source in (values, Image.fromarray(values), tmp_path / "scan.png", tmp_path / "scan.tiff"):
        with pytest.warns(ImageWarning, match=rf"{2**bits - 1} of 65535.*{bits} are used") as caught:
            np.testing.assert_array_equal(grey(source), expected)
        assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_black_and_bright_16_bit_images_are_not():
    assert not grey(np.zeros((2, 2), np.uint16)).any()
    assert grey(np.full((1, 1), 8192, np.uint16)).tolist() == [[32]]


def test_every_16_bit_value_is_rounded():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(grey(values), np.rint(values / 257))
