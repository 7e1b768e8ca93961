"""Images of the common formats, and lists of images for calibration."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import TEXTS, byte_files
from PIL import Image

from fvexport.calibration.photos import calibration_data
from fvexport.encoder.image import load_image

LEVELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(LEVELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
SOUND = {
    "jpeg": saved("JPEG", exif=EXIF), "progressive": saved("JPEG", progressive=True), "cmyk": saved("JPEG", "CMYK"),
    "png": saved("PNG", exif=EXIF), "palette": saved("PNG", "P"), "grey": saved("PNG", "I;16"), "webp": saved("WEBP"),
    "tiff": saved("TIFF"), "lzw": saved("TIFF", compression="tiff_lzw"), "gif": saved("GIF"), "bmp": saved("BMP"),
    "ppm": saved("PPM"), "tga": saved("TGA"), "ico": saved("ICO"), "jpeg2000": saved("JPEG2000"), "dds": saved("DDS"),
    "pcx": saved("PCX"), "sgi": saved("SGI"), "avif": saved("AVIF"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOUND)
def test_sound_images_are_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(SOUND[kind])
    assert set(load_image(tmp_path / "image").size) == {12, 17}


@fuzz(examples=150, content=st.sampled_from(sorted(SOUND)).flatmap(lambda kind: byte_files(SOUND[kind])))
def test_image(content: bytes, folder: Path) -> None:
    (folder / "image").write_bytes(content)
    with only_our_errors():
        load_image(folder / "image")


lines = st.lists(st.one_of(st.sampled_from(TEXTS), st.just("image"), st.text(max_size=9)), max_size=4)


@fuzz(examples=60, lines=lines, end=st.sampled_from(["\n", "\r\n", "\r", "\0"]))
def test_list_of_images(lines: list[str], end: str, folder: Path) -> None:
    (folder / "image").write_bytes(SOUND["png"])
    (folder / "list.txt").write_bytes(end.join(lines).encode("utf-8", "surrogatepass"))
    with only_our_errors():
        calibration_data(folder / "list.txt", 2)
