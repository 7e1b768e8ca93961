"""Files, PIL images and arrays -> RGB images that are safe to use.

Everything a user can hand over ends here as one thing: an 8-bit RGB image, upright and fully decoded,
or an `ImageError` of one line that names the file, what was found and how to fix it.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from ...core.errors import ImageError, ImageWarning, first_line
from ...core.input_file import open_regular
from . import jpeg, wide
from .inputs import ArrayLike, ImageLike, as_array, encoded_bytes, file_name, is_encoded, is_tensor, not_an_image
from .levels import from_array, from_wide_mode, to_levels
from .png import without_metadata
from .quiet import quiet_pillow

NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
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

_BITS_TAG = 258
_PLANAR_TIFF = (284, 2)
"""The TIFF tag PlanarConfiguration, and its value where each channel is stored by itself."""

_URL = re.compile(r"(data:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)
"""How a URL begins; `Path` makes one slash of two. A letter and a colon alone are a drive of Windows."""


def load_image(source: ImageLike, notices: list[str] | None = None) -> Image.Image:
    """Reads an image as 8-bit RGB: EXIF orientation applied, fully decoded, independent of `source`.

    8-bit modes become what `convert("RGB")` makes of them, as in the released processor: alpha is dropped, not
    blended, so what lies under transparent pixels shows. Wider values are scaled, not clipped (see `levels.py`):

    - 16-bit integers, also in colour PNG and TIFF files: x / 257, rounded;
    - floats, in arrays and in mode `F`: in [0, 1], times 255, rounded; up to 0.005 beyond is clipped;
    - mode `F` with at least 1 % of the pixels over 1, and mode `I` with none over 255: levels; other images of mode
      `I`: 16-bit integers. Fewer pixels beyond the smaller range are refused: they may be outliers.

    Of other formats with more than 8 bits a channel, premultiplied 16-bit TIFF files, and PIL images, the pixels are
    what Pillow makes of them. Of a file with several frames, the first is read; of a PIL image, the current one.
    Metadata is ignored, except the orientation.

    Warns with ImageWarning of 16-bit images that are nearly black, as 12-bit data is; or adds that to `notices`.

    Raises:
        ImageError: a missing, unreadable or damaged file; no image; over `PIL.Image.MAX_IMAGE_PIXELS`; not enough
            memory; no pixels; values out of range; an array of another shape or dtype.
    """
    found: list[str] = [] if notices is None else notices
    try:
        image = _loaded(source, found)
    except MemoryError:
        raise ImageError(f"not enough memory to read {_name(source)}: shrink it first, or free some memory") from None
    for notice in found if notices is None else ():
        warnings.warn(notice, ImageWarning, stacklevel=2)
    return image


def _loaded(source: ImageLike, notices: list[str]) -> Image.Image:
    if isinstance(source, Image.Image):
        with quiet_pillow():
            _load(source, _name(source), given=True)
            return _to_rgb(source, _name(source), notices)
    if isinstance(source, (str, os.PathLike)):
        return _read(source, notices)
    if is_encoded(source):
        name = _name(source)
        with io.BytesIO(encoded_bytes(source)) as file, quiet_pillow():
            return _decode(file, name, notices)
    if is_tensor(source) or isinstance(source, (np.ndarray, ArrayLike, memoryview)):
        return from_array(as_array(source), notices)
    raise ImageError(not_an_image(source))


def _name(source: ImageLike) -> str:
    """How messages name an image."""
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "the given image"
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    return file_name(source)


def missing(path: str | os.PathLike[str]) -> str:
    """The error message for a path where nothing is."""
    if _URL.match(str(path)):
        return f"{str(path)[:100]} is a URL: download the image first and give the path of the file"
    return f"no image at {path}: check the path"


def _read(source: str | os.PathLike[str], notices: list[str]) -> Image.Image:
    if not os.fspath(source):
        raise ImageError("the path of the image is empty: give the path of a file")
    path = Path(os.fsdecode(source))  # a path object may give bytes
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path} is a folder: name an image file in it")
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            raise ImageError(f"{path} is no regular file: save the image to a file first")
        with open_regular(path) as file, quiet_pillow():
            return _decode(file, str(path), notices)
    except FileNotFoundError:
        raise ImageError(missing(os.fsdecode(source))) from None
    except PermissionError:
        raise ImageError(f"no permission to read {path}: change its owner or mode (chmod +r)") from None
    except (OSError, ValueError) as error:  # a name too long, a null byte in it, a failing disk
        if _URL.match(os.fsdecode(source)):
            raise ImageError(missing(os.fsdecode(source))) from None
        shown = str(path) if len(str(path)) < 300 else f"{str(path)[:100]}..."
        raise ImageError(f"cannot read {shown} ({_reason(error)}): check the path") from error


def _decode(file: BinaryIO, name: str, notices: list[str]) -> Image.Image:
    """The image in `file` as upright RGB."""
    file = without_metadata(file)
    try:
        image = _open(file, name)
    except ImageError:
        stripped = jpeg.without_metadata(file)
        if stripped is None:
            raise
        file, image = stripped, _open(stripped, name)
    low_mode = wide.low_bytes_mode(image)
    _load(image, name)
    if low_mode is None:
        return _to_rgb(image, name, notices)
    file.seek(0)
    low = Image.open(file)
    wide.use_raw_mode(low, low_mode)
    _load(low, name)
    values = wide.joined(image, low, low_mode)
    del low
    levels = to_levels(values if values.shape[2] > 1 else values[:, :, 0], f"{name} (16 bits a channel)", notices)
    mode = image.mode if values.shape[2] == len(image.getbands()) else None
    return _to_rgb(Image.fromarray(levels, mode), name, notices, _orientation(image))


def _open(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """The image in `file`, its header read and its format and size accepted."""
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, int(re.findall(r"\d+", str(error))[0]))) from None
    except UnidentifiedImageError:
        file.seek(0)
        raise ImageError(f"{name} {_what_instead(file.read(1024))}") from None
    except Exception as error:  # a plugin meets damaged data with whatever its parser trips over
        raise _failure(name, error) from error
    if image.format in NO_PIXELS:
        raise ImageError(f"{name} is {image.format}, which has no pixels to read: convert it to PNG first")
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise ImageError(_too_large(name, pixels))
    if image.format == "TIFF" and _unreadable_planes(image):
        raise ImageError(f"{name} stores 16-bit channels one by one, which Pillow misreads: convert it first")
    return image


def _unreadable_planes(image: Image.Image) -> bool:
    """Whether a TIFF file has 16-bit channels in planes: Pillow misreads them, or of compressed ones keeps 8 bits."""
    tags = getattr(image, "tag_v2", {})
    tag, separate = _PLANAR_TIFF
    bits = tags.get(_BITS_TAG, (8,))
    return tags.get(tag) == separate and len(bits) > 1 and max(bits) > 8


def _load(image: Image.Image, name: str, *, given: bool = False) -> None:
    """Decodes the pixels of `image`; `given` as a PIL image by the user."""
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from None
    except Exception as error:  # as in _open
        if given and isinstance(error, ValueError) and "closed" in str(error):
            raise ImageError(
                f"{name} was closed before its pixels were read: open it again, or call load() before closing it"
            ) from None
        raise _failure(f"{name} ({image.width}x{image.height})", error) from error


def _too_large(name: str, pixels: int) -> str:
    return (
        f"{name} has {pixels} pixels, more than PIL.Image.MAX_IMAGE_PIXELS ({Image.MAX_IMAGE_PIXELS}): "
        f"shrink it first, or raise that limit if you trust the file (on the command line --max-pixels {pixels})"
    )


def _failure(name: str, error: Exception) -> Exception:
    """The error to raise for what a decoder raised: not every failure means a damaged file."""
    reason = first_line(error)
    if isinstance(error, MemoryError) or "memory" in reason.lower():
        return ImageError(f"not enough memory to read {name}: shrink it first, or free some memory")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ImageError(f"cannot read {name}: too many open files; raise the limit with `ulimit -n`")
    if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of Pillow
        return ImageError(f"cannot read {name} ({reason}): check the disk")
    if isinstance(error, NotImplementedError) or re.search(
        r"not (available|supported|implemented)|unsupp", reason, re.I
    ):
        return ImageError(f"{name} needs something that Pillow {PIL.__version__} lacks ({reason}): convert it to PNG")
    return ImageError(f"{name} is damaged or cut off ({reason}): copy or download it again")


def _reason(error: Exception) -> str:
    """What an error of the system says, without the path."""
    return getattr(error, "strerror", None) or first_line(error)


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


def _to_rgb(image: Image.Image, name: str, notices: list[str], orientation: int | None = None) -> Image.Image:
    """A new RGB image with the pixels of a loaded image, upright."""
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels ({image.width}x{image.height})")
    upright = _UPRIGHT.get(_orientation(image) if orientation is None else orientation)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = from_wide_mode(image, name, notices)
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
