"""`fvexport.encoder.image.load_image`: whatever is handed over becomes a sound RGB image or one clear line."""

from __future__ import annotations

import io
import os
import random
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngImageFile

from fvexport.core.errors import ImageError
from fvexport.encoder.image import load_image

pytestmark = pytest.mark.filterwarnings("error")  # nothing may reach the user's stderr


@pytest.fixture
def photo(photographs):
    """An RGB photograph of 64 x 48 pixels."""
    with Image.open(photographs["coffee"]) as image:
        return image.convert("RGB").resize((64, 48))


@pytest.fixture
def saved(photo, tmp_path):
    """The photograph as a PNG file."""
    photo.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def levels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def refused(source, *words: str) -> str:
    """The message of the ImageError that `source` meets: one line that holds `words`."""
    with pytest.raises(ImageError) as caught:
        load_image(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# Sources


def test_path_string_image_and_array_agree(saved, photo):
    for source in (saved, str(saved), photo, np.asarray(photo)):
        np.testing.assert_array_equal(levels(load_image(source)), levels(photo))


def test_result_is_independent_of_its_source(photo):
    before = levels(photo).copy()
    load_image(photo).paste((1, 2, 3), (0, 0, 64, 48))
    np.testing.assert_array_equal(levels(photo), before)
    array = before.copy()
    loaded = load_image(array)
    array[:] = 0
    np.testing.assert_array_equal(levels(loaded), before)


def test_unknown_source():
    refused(3, "int", "path")
    refused(None, "None", "path")


def test_lazily_opened_image(saved, photo):
    with Image.open(saved) as lazy:
        np.testing.assert_array_equal(levels(load_image(lazy)), levels(photo))


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_8_bit_modes_are_converted_as_pillow_does(photo, mode):
    start = {"PA": "P", "LA": "L"}.get(mode, "RGB")
    image = photo.convert(start).convert(mode)
    np.testing.assert_array_equal(levels(load_image(image)), levels(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "straight"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_alpha(photo, mode, straight):
    image = photo.convert(straight)
    np.testing.assert_array_equal(levels(load_image(image.convert(mode))), levels(image.convert("RGB")))


def test_every_mode_of_this_pillow_gives_rgb():
    for mode in getattr(Image, "MODES", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]):
        if not mode.startswith("BGR"):
            assert load_image(Image.new(mode, (3, 2))).size == (3, 2), mode


def test_a_path_object_that_gives_bytes(tmp_path):
    class Raw:
        def __init__(self, name):
            self.name = name

        def __fspath__(self):
            return os.fsencode(tmp_path / self.name)

    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "a.png")
    assert load_image(Raw("a.png")).getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(ImageError, match=r"no image at .*b\.png: check the path"):
        load_image(Raw("b.png"))


def test_alpha_is_dropped_not_blended(photo, tmp_path):
    photo.putalpha(0)
    photo.save(tmp_path / "clear.png")
    np.testing.assert_array_equal(levels(load_image(tmp_path / "clear.png")), levels(photo.convert("RGB")))


@pytest.mark.parametrize("transparency", [0, b"\x00\x80\xff"])
def test_palette_with_transparency(photo, tmp_path, transparency):
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", transparency=transparency)
    np.testing.assert_array_equal(levels(load_image(tmp_path / "palette.png")), levels(palette.convert("RGB")))


def test_adobe_cmyk_jpeg(photo, tmp_path):
    # Pillow writes CMYK JPEGs as Adobe does: inverted, with an APP14 marker.
    photo.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "print.jpg").read_bytes()
    difference = levels(load_image(tmp_path / "print.jpg")).astype(int) - levels(photo)
    assert abs(difference).mean() < 8


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bits_are_scaled_not_clipped(mode):
    wide = np.array([[0, 128, 129, 257, 32768, 65535]], ">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (6, 1), wide.tobytes())
    assert levels(load_image(image))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_16_bit_png(tmp_path):
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    np.testing.assert_array_equal(levels(load_image(tmp_path / "depth.png"))[..., 1], np.rint(ramp / 257))


# Arrays


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float16", "float32", "float64"])
def test_arrays(shape, dtype):
    top = {"u": 255 if dtype == "uint8" else 65535, "f": 1}[np.dtype(dtype).kind]
    steps = np.random.default_rng(0).integers(0, 256, shape)
    rgb = levels(load_image((steps / 255 * top).astype(dtype)))
    expected = steps[:, :, :3] if len(shape) == 3 else steps[:, :, None]
    np.testing.assert_array_equal(rgb, np.broadcast_to(expected, (5, 4, 3)))


def test_strided_array(photo):
    flipped = np.asarray(photo)[::-1, ::-2]
    np.testing.assert_array_equal(levels(load_image(flipped)), flipped)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((3, 224, 224), np.uint8), "channels last"),
        (np.zeros((4, 4, 2), np.uint8), "channels last"),
        (np.zeros((1, 4, 4, 3), np.uint8), "(H, W, 3)"),
        (np.zeros(4, np.uint8), "(H, W)"),
        (np.array(3, np.uint8), "(H, W)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.float32), "no pixels"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.zeros((4, 4, 3), np.uint32), "uint32"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4), complex), "complex"),
        (np.full((4, 4), "a"), "range"),
        (np.full((4, 4, 3), 1.5), "[0, 1]"),
        (np.full((4, 4, 3), 200.0), "200"),
        (np.full((4, 4, 3), -0.5), "-0.5"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.full((4, 4, 3), np.inf), "inf"),
    ],
)
def test_refused_arrays(array, word):
    refused(array, word)


# Files


@pytest.mark.parametrize("suffix", ["bmp", "gif", "ico", "jp2", "jpg", "pcx", "png", "ppm", "tga", "tiff", "webp"])
def test_file_formats(photo, tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    if {"jp2": "jpg_2000", "webp": "webp"}.get(suffix, "zlib") not in features.get_supported():
        pytest.skip(f"this Pillow has no {suffix}")
    photo.save(path)
    loaded = load_image(path)
    assert loaded.size[0] / loaded.size[1] == pytest.approx(4 / 3)
    smaller, original = (levels(image.resize((8, 6))).astype(int) for image in (loaded, photo))
    assert abs(smaller - original).mean() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_exif_orientation(photo, tmp_path, orientation, suffix):
    if suffix == "webp" and "webp" not in features.get_supported():
        pytest.skip("this Pillow has no webp")
    stored = {
        1: photo,
        2: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: photo.transpose(Image.Transpose.ROTATE_180),
        4: photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: photo.transpose(Image.Transpose.TRANSPOSE),
        6: photo.transpose(Image.Transpose.ROTATE_90),  # turned left, so that turning it right makes it upright
        7: photo.transpose(Image.Transpose.TRANSVERSE),
        8: photo.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    stored.save(tmp_path / f"turned.{suffix}", exif=exif, **options)
    upright = load_image(tmp_path / f"turned.{suffix}")
    assert upright.size == photo.size
    assert abs(levels(upright).astype(int) - levels(photo)).mean() <= (4 if suffix == "jpg" else 0)
    assert load_image(upright).size == photo.size  # and not turned once more


def test_damaged_exif_data_does_not_matter(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010E] = "a description"
    sound = exif.tobytes()
    for seed in range(300):
        rng = random.Random(seed)
        data = bytearray(sound)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(6, len(data))] = rng.randrange(256)
        photo.save(tmp_path / "photo.jpg", exif=bytes(data))
        assert sorted(load_image(tmp_path / "photo.jpg").size) == [48, 64]


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png"])
def test_first_frame_of_several(photo, tmp_path, suffix):
    path = tmp_path / f"frames.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((4, 4)) == (255, 0, 0)


def test_missing_folder_and_odd_paths(tmp_path):
    refused(tmp_path / "no.jpg", "no image at", "no.jpg", "check the path")
    refused(tmp_path, "is a folder", str(tmp_path))
    refused(tmp_path / ("x" * 300), "cannot read")
    refused("a\0b.jpg", "cannot read")


def test_no_permission(saved, monkeypatch):
    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", denied)  # tests may run as root, whom no mode stops
    refused(saved, "permission", str(saved), "chmod")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty", "0 bytes"]),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", ["PDF", "rasterize"]),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG", "rasterize"]),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", ["web page"]),
        (b"this is no picture\n", ["holds text"]),
        ("Grüße\n".encode(), ["holds text"]),
        (b"\x93NUMPY\x01\x00" + bytes(100), ["no image format", "JPEG or PNG"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", ["EPS", "PNG"]),
    ],
)
def test_files_that_are_no_images(tmp_path, content, words):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    refused(path, str(path), *words)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "gif", "bmp", "webp"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_cut_off_files(photographs, tmp_path, suffix, part):
    if suffix == "webp" and "webp" not in features.get_supported():
        pytest.skip("this Pillow has no webp")
    buffer = io.BytesIO()
    Image.open(photographs["chelsea"]).convert("RGB").save(buffer, "JPEG" if suffix == "jpg" else suffix)
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(buffer.getvalue()[: int(part * buffer.tell())])
    refused(path, str(path))


@pytest.mark.parametrize("suffix", ["jpeg", "png", "tiff", "gif", "bmp", "ico", "ppm", "tga", "pcx", "sgi"])
def test_damaged_files_load_or_are_refused(photo, tmp_path, suffix):
    buffer = io.BytesIO()
    photo.resize((16, 16)).save(buffer, suffix)
    path = tmp_path / f"damaged.{suffix}"
    for seed in range(150):
        rng = random.Random(seed)
        data = bytearray(buffer.getvalue())
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("factor", [1.5, 4])
def test_decompression_bombs(saved, photo, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 * 48 / factor))
    refused(saved, str(saved), "3072 pixels", "MAX_IMAGE_PIXELS")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(levels(load_image(saved)), levels(photo))


def test_pillow_settings_and_warning_filters_are_left_alone(saved, tmp_path):
    def state():
        return Image.MAX_IMAGE_PIXELS, list(warnings.filters), sys.getrecursionlimit()

    before = state()
    (tmp_path / "bad.png").write_bytes(saved.read_bytes()[:200])
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: load_image(saved).size, range(64)))
        errors = [pool.submit(load_image, tmp_path / "bad.png").exception() for _ in range(16)]
    assert set(sizes) == {(64, 48)}
    assert all(isinstance(error, ImageError) for error in errors)
    assert state() == before


def test_image_without_pixels():
    refused(Image.new("RGB", (0, 4)), "no pixels", "0x4")


# Failures that are not damage


def test_closed_images(saved):
    image = Image.open(saved)
    image.close()
    refused(image, "closed before its pixels were read", "load()")
    with saved.open("rb") as file:
        image = Image.open(file)
    refused(image, "closed before its pixels were read")


@pytest.mark.parametrize("where", ["open", "load", "convert"])
def test_memory_that_runs_out(saved, monkeypatch, where):
    def full(*_arguments, **_options):
        raise MemoryError

    owner, name = {
        "open": (Image, "open"),
        "load": (PngImageFile, "load"),
        "convert": (Image.Image, "convert"),
    }[where]
    monkeypatch.setattr(owner, name, full)
    refused(saved, "not enough memory to read", str(saved))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("decoder jpeg9k not available"), ["Pillow", "lacks", "jpeg9k"]),
        (NotImplementedError("DXT11"), ["lacks"]),
        (OSError(5, "Input/output error"), ["cannot read", "Input/output"]),
        (OSError("out of memory when reading image file"), ["not enough memory", "64x48"]),
        (OSError("image file is truncated (3 bytes not processed)"), ["damaged or cut off", "truncated"]),
    ],
)
def test_what_a_decoder_raises_is_told_apart(saved, monkeypatch, error, words):
    def failing(_self):
        raise error

    monkeypatch.setattr(PngImageFile, "load", failing)
    refused(saved, str(saved), *words)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "no regular file")
    refused("/dev/zero", "no regular file")
