"""Files, PIL images and arrays -> RGB images that are safe to use.

Everything a user can hand over ends here as one thing: an 8-bit RGB image, upright and fully decoded,
or an `ImageError` of one line that names the file, what was found and what mends it.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from ...errors import ImageError, UnavailableError
from .inputs import ArrayLike, ImageLike, as_array, encoded_bytes, file_name, is_encoded, is_tensor, not_an_image

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
    *("motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
"""The photographs among the pictures in scikit-image's wheel; chelsea is a cat."""

_NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognizes but cannot decode, or only by running another program."""

_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}
"""Modes with premultiplied alpha, which Pillow converts to RGB only by way of these."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation. `ImageOps.exif_transpose` also rewrites the EXIF data, and may fail at that."""

_URL = re.compile(r"(data:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)
"""How a URL begins; `Path` makes one slash of two. A letter and a colon alone are a drive of Windows."""

_warning_filters = threading.Lock()


def load_image(source: ImageLike) -> Image.Image:
    """Reads an image as 8-bit RGB: EXIF orientation applied, fully decoded, independent of `source`.

    8-bit modes become what `convert("RGB")` makes of them, as in the released processor: alpha is dropped, not
    blended, so what lies under transparent pixels shows. Wider values are scaled instead of clipped:

    - 16-bit integers, and mode `I` where a value exceeds 255: x / 257, rounded;
    - mode `F`: x * 255 where no value exceeds 1, else the values are taken as 8-bit levels and rounded;
    - arrays: uint8 as it is, uint16 as above, floats in [0, 1] times 255.

    Of a file with several frames, the first; of a PIL image, the current one.

    Raises:
        ImageError: missing, unreadable or damaged file; no image; over `PIL.Image.MAX_IMAGE_PIXELS`;
            no pixels; values out of range; an array of another shape or dtype.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "the given image"
        with _quiet():
            return _to_rgb(source, name)
    if isinstance(source, (str, os.PathLike)):
        return _read(source)
    if is_encoded(source):
        name = file_name(source)
        with io.BytesIO(encoded_bytes(source)) as file, _quiet():
            return _to_rgb(_open(file, name), name)
    if is_tensor(source) or isinstance(source, (np.ndarray, ArrayLike, memoryview)):
        return _from_array(as_array(source))
    raise ImageError(not_an_image(source))


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files that `paths` stand for.

    Files stay as given, whatever their suffix. Folders are searched recursively for the suffixes that Pillow can open,
    in sorted order, hidden files and folders left out. Raises ImageError for a path that is missing, and for a folder
    without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            suffixes = _suffixes()
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in suffixes
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and file.is_file()
            )
            if not inside:
                raise ImageError(f"no image in folder {path}: looked for files such as .jpg, .png, .webp and .tiff")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(_missing(path))
    return found


HELD_OUT = ("astronaut", "coffee")
"""The photographs that parity looks at where none are named; calibration leaves them out."""


def sample_images() -> dict[str, Path]:
    """Photographs that scikit-image's wheel carries, by name (`astronaut`, `chelsea`, `coffee`, ...): no download.

    Raises UnavailableError where scikit-image is not installed, or was packaged without them.
    """
    # Found, not imported: importing scikit-image takes longer than reading all its photographs.
    spec = importlib.util.find_spec("skimage")
    folders = spec.submodule_search_locations if spec else None
    found = {
        Path(file).stem: Path(folder, "data", file)
        for folder in folders or ()
        for file in PHOTOGRAPHS
        if Path(folder, "data", file).is_file()
    }
    if not found:
        raise UnavailableError("the sample photographs come with scikit-image: pip install scikit-image")
    return found


def _suffixes() -> set[str]:
    """Suffixes, in lower case, of the files whose pixels Pillow can read."""
    known = Image.registered_extensions()  # also loads the plugins, which fill Image.OPEN
    # MPO files (several JPEGs in one) are opened by the JPEG plugin.
    readable = {*Image.OPEN, "MPO"} - _NO_PIXELS
    return {suffix for suffix, kind in known.items() if kind in readable}


def _missing(path: str | os.PathLike[str]) -> str:
    if _URL.match(str(path)):
        return f"{str(path)[:100]} is a URL: download the image first and give the path of the file"
    return f"no image at {path}: check the path"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow, which warns on stderr about damaged metadata and about sizes that we check ourselves.

    Warning filters belong to the process, so this holds a lock: decoding is serial, even from several threads.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(source: str | os.PathLike[str]) -> Image.Image:
    if not os.fspath(source):
        raise ImageError("the path of the image is empty: give the path of a file")
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder: name an image file in it")
        with path.open("rb") as file, _quiet():
            return _to_rgb(_open(file, str(path)), str(path))
    except FileNotFoundError:
        raise ImageError(_missing(source)) from None
    except PermissionError:
        raise ImageError(f"no permission to read {path}: change its owner or mode (chmod +r)") from None
    except (OSError, ValueError) as error:  # a name too long, a null byte in it, a failing disk
        if _URL.match(str(source)):
            raise ImageError(_missing(source)) from None
        raise ImageError(f"cannot read {path} ({error}): check the path") from error


def _open(file: BinaryIO, name: str) -> Image.Image:
    """The image in `file`, its header read and its format and size accepted."""
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, int(re.findall(r"\d+", str(error))[0]))) from None
    except UnidentifiedImageError:
        file.seek(0)
        raise ImageError(f"{name} {_what_instead(file.read(1024))}") from None
    except Exception as error:  # a plugin meets damaged data with whatever its parser trips over
        raise ImageError(_damaged(name, error)) from error
    if image.format in _NO_PIXELS:
        raise ImageError(f"{name} is {image.format}, which has no pixels to read: convert it to PNG first")
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise ImageError(_too_large(name, pixels))
    return image


def _too_large(name: Path, pixels: int) -> str:
    return (
        f"{name} has {pixels} pixels, more than PIL.Image.MAX_IMAGE_PIXELS ({Image.MAX_IMAGE_PIXELS}): "
        "shrink it first, or raise that limit if you trust the file"
    )


def _damaged(name: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"{name} is damaged or cut off ({reason}): copy or download it again"


def _what_instead(head: bytes) -> str:
    """Says what a file that is no image looks like, from its first bytes, and what mends it."""
    if not head:
        return "is empty (0 bytes): copy or download it again"
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n").lower()
    if text.startswith("%pdf"):
        return "is a PDF: rasterize it to PNG first (pdftoppm -png)"
    if "<svg" in text:
        return "is an SVG drawing: rasterize it to PNG first (rsvg-convert)"
    if text.startswith(("<!doctype html", "<html")):
        return "is a web page, not an image: download the image itself"
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", head):  # no control characters but white space
        return "holds text, not an image: check the path"
    return f"is in no image format that Pillow {PIL.__version__} reads: convert it to JPEG or PNG"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image with the pixels of `image`, upright."""
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from None
    except Exception as error:  # as in _open
        raise ImageError(_damaged(name, error)) from error
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels ({image.width}x{image.height})")
    upright = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_levels(np.asarray(image), f"{name} (mode {image.mode})"))
    elif image.mode in _STRAIGHT_ALPHA:
        image = image.convert(_STRAIGHT_ALPHA[image.mode])
    try:
        image = image.convert("RGB")  # always a new image
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot become RGB ({error}): convert it to PNG first") from error
    image.info.clear()  # above all EXIF data, which would turn it once more
    return image if upright is None else image.transpose(upright)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that `image`, once loaded, still has to be freed of; 1 is upright."""
    if image.format == "TIFF":  # turned while loading; older releases of Pillow leave the tag in place
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data is no reason to refuse sound pixels
        return 1


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    name = f"the given array {array.dtype}{list(array.shape)}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} is no image: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels last")
    if array.size == 0:
        raise ImageError(f"{name} has no pixels")
    if array.dtype.kind != "f" and (array.dtype.kind != "u" or array.dtype.itemsize > 2):
        raise ImageError(f"{name} has an unknown range of values: give uint8, uint16, or floats in [0, 1]")
    if array.dtype.kind == "f" and array.max() > 1:
        raise ImageError(f"{name} has values up to {array.max():g}: scale floats to [0, 1] or give uint8")
    colours = array[:, :, :3] if array.ndim == 3 and array.shape[2] > 1 else array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(_levels(colours, name))).convert("RGB")


def _levels(values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Values of any width as 8-bit levels, by the rules of `load_image`; (H, W) or (H, W, 3) in and out."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if not (low >= 0 and np.isfinite(high)):  # also where they are NaN
        raise ImageError(f"{name} has values from {low:g} to {high:g}: they must be finite and not negative")
    if values.dtype.kind == "f":
        if high > 255:
            raise ImageError(f"{name} has values up to {high:g}: scale them to [0, 1] first")
        return np.rint(values.astype(np.float32) * (255 if high <= 1 else 1)).astype(np.uint8)
    if high > 65535:
        raise ImageError(f"{name} has values up to {high}: scale them to 16 bits first")
    if values.dtype.itemsize > 2 and high <= 255:  # mode I also carries 8-bit levels
        return values.astype(np.uint8)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
