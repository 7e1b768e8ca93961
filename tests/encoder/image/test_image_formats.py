"""PNG and JPEG files with large or damaged metadata, and 16 bits a channel in PNG and TIFF files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from fvexport.core.errors import ImageError
from fvexport.encoder.image import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
WIDE = np.random.default_rng(1).integers(0, 65536, (16, 24, 4)).astype(np.uint16)
ROUNDED = np.rint(WIDE / 257).astype(np.uint8)

pytestmark = pytest.mark.filterwarnings("error")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(info: PngInfo | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def with_text(*texts: str, keyword: str = "workflow", international: bool = False, compressed: bool = True) -> bytes:
    info = PngInfo()
    for text in texts:
        (info.add_itxt if international else info.add_text)(keyword, text, zip=compressed)
    return png(info)


def after_pixels(*chunks: bytes) -> bytes:
    return png()[:-12] + b"".join(chunks) + png()[-12:]


LARGE = {
    "zTXt": lambda: with_text("x" * 3_000_000),
    "iTXt": lambda: with_text("x" * 3_000_000, international=True),
    "iTXt, not compressed": lambda: with_text("x" * 3_000_000, international=True, compressed=False),
    "tEXt": lambda: with_text("x" * 3_000_000, compressed=False),
    "many": lambda: with_text(*["y" * 900_000] * 80),
    "iCCP": lambda: png(icc_profile=bytes(2_000_000)),
    "after the pixels": lambda: after_pixels(chunk(b"zTXt", b"w\0\0" + zlib.compress(b"x" * 3_000_000))),
    "damaged text": lambda: after_pixels(chunk(b"zTXt", b"w\0\0" + b"no zlib stream")),
    "wrong sum": lambda: after_pixels(chunk(b"tEXt", b"a\0b")[:-1] + b"\0"),
    "private chunk": lambda: after_pixels(chunk(b"prVt", bytes(5_000_000))),
    "large EXIF data in a text": lambda: with_text("z" * 3_000_000, keyword="Raw profile type exif"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_metadata_does_not_matter(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(LARGE[kind]())
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        np.testing.assert_array_equal(np.asarray(load_image(source)), PIXELS)


@pytest.mark.parametrize("padding", [0, 2_000_000])
@pytest.mark.parametrize("compressed", [False, True])
def test_orientation_in_xmp(padding, compressed):
    text = " " * padding + XMP
    data = with_text(text, keyword="XML:com.adobe.xmp", international=True, compressed=compressed)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.rot90(PIXELS, -1))


def test_orientation_in_exif_beside_large_metadata():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = png(exif=exif, icc_profile=bytes(2_000_000))
    np.testing.assert_array_equal(np.asarray(load_image(data)), PIXELS[::-1, ::-1])


@pytest.mark.parametrize("suffix", ["jpeg", "webp", "tiff"])
def test_other_formats_with_large_metadata(suffix):
    if suffix == "webp" and "webp" not in features.get_supported():
        pytest.skip("this Pillow has no webp")
    options = {
        "jpeg": {"icc_profile": bytes(2_000_000), "comment": "x" * 60_000},
        "webp": {"lossless": True, "xmp": b"<x>" + b"x" * 3_000_000},
        "tiff": {"description": "x" * 3_000_000},
    }[suffix]
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, suffix, **options)
    assert load_image(buffer.getvalue()).size == (30, 24)


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
@pytest.mark.parametrize(
    "kind", [b"JFIF", b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\x008BIM\x03\xed", b"Adobe"]
)
def test_damaged_segments_of_a_jpeg_do_not_matter(marker, kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=90)
    sound = buffer.getvalue()
    expected = np.asarray(load_image(sound))
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(kind) + 2) + kind
    for data in (sound[:2] + segment + sound[2:], sound[:20] + segment + sound[20:]):
        np.testing.assert_array_equal(np.asarray(load_image(data)), expected)


def test_damage_is_still_damage():
    data = png()
    for broken in (data[:60], data[:-40], data[:50] + b"\xff" * 20 + data[70:]):
        with pytest.raises(ImageError, match="damaged or cut off"):
            load_image(broken)


def png16(values: np.ndarray, *, interlaced: bool = False) -> bytes:
    """A PNG file (H, W, C) with 16 bits a channel, each row by the filter Sub."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    raw = values.astype(">u2").reshape(height, width, channels)

    def rows(part: np.ndarray) -> bytes:
        lines = part.reshape(part.shape[0], -1).view(np.uint8)
        step = 2 * channels
        filtered = lines.copy()
        filtered[:, step:] -= lines[:, :-step]
        return b"".join(b"\1" + line.tobytes() for line in filtered)

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [raw[top::down, left::right] for top, left, down, right in passes] if interlaced else [raw]
    body = b"".join(rows(np.ascontiguousarray(part)) for part in parts)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(channels, interlaced):
    got = np.asarray(load_image(png16(WIDE[:, :, :channels], interlaced=interlaced)))
    expected = ROUNDED[:, :, :3] if channels > 2 else np.repeat(ROUNDED[:, :, :1], 3, 2)
    np.testing.assert_array_equal(got, expected)


def tiff16(
    values: np.ndarray, order: str, *, deflated: bool = False, planar: bool = False, orientation: int = 1
) -> bytes:
    """A TIFF file (H, W, C) with 16 bits a channel, in one strip or one for each channel."""
    height, width, channels = values.shape
    raw = values.astype(f"{order}u2")
    strips = [raw[:, :, c].tobytes() for c in range(channels)] if planar else [raw.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [16] * channels),
        259: ("H", [8 if deflated else 1]),
        262: ("H", [5 if channels == 5 else 2]),
        273: ("I", [0] * len(strips)),
        274: ("H", [orientation]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
    }
    if channels == 4:
        tags[338] = ("H", [2])
    start = 8
    offsets = []
    for strip in strips:
        offsets.append(start)
        start += len(strip) + len(strip) % 2
    tags[273] = ("I", offsets)
    body, extra = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            field, extra = struct.pack(f"{order}I", after + len(extra)), extra + packed + bytes(len(packed) % 2)
        else:
            field = packed.ljust(4, b"\0")
        body += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers)) + field
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    data = b"".join(strip + bytes(len(strip) % 2) for strip in strips)
    return head + data + struct.pack(f"{order}H", len(tags)) + body + bytes(4) + extra


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_tiff(channels, order, deflated):
    values, expected = WIDE[:, :, :channels], ROUNDED[:, :, :3]
    np.testing.assert_array_equal(np.asarray(load_image(tiff16(values, order, deflated=deflated))), expected)
    turned = tiff16(values, order, deflated=deflated, orientation=6)
    np.testing.assert_array_equal(np.asarray(load_image(turned)), np.rot90(expected, -1))


@pytest.mark.parametrize("deflated", [False, True])
def test_16_bit_tiff_in_planes_is_refused(deflated):
    with pytest.raises(ImageError, match="one by one"):
        load_image(tiff16(WIDE[:, :, :3], "<", deflated=deflated, planar=True))
