"""`fvexport.encoder.image.as_images`: one image or several, and what is refused; and that all kinds mean the same."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import UserDict, deque
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from fvexport.core.errors import ImageError
from fvexport.encoder.image import as_images, load_image

RGB = np.random.default_rng(0).integers(0, 256, (18, 26, 3), np.uint8)


@pytest.fixture
def file(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def only(value) -> np.ndarray:
    """The pixels of the one image in `value`."""
    (image,) = as_images(value)
    return np.asarray(load_image(image))


def refused(value, *words: str) -> None:
    """Asserts that `value` meets an ImageError of one line with `words`, when separated or when read."""
    with pytest.raises(ImageError) as caught:
        [load_image(image) for image in as_images(value)]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


class Foreign:
    """An array of another library."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values)


ONE = {
    "array": RGB,
    "read-only memory": memoryview(RGB),
    "foreign array": Foreign(RGB),
    "masked array without masked values": np.ma.masked_array(RGB, np.zeros_like(RGB, bool)),
    "PIL": Image.fromarray(RGB),
    "tensor": torch.from_numpy(RGB),
    "tensor with gradients": torch.from_numpy(RGB / 255.0).requires_grad_(),
    "channels first": torch.from_numpy(RGB.transpose(2, 0, 1)),
    "channels first, float": torch.from_numpy(RGB.transpose(2, 0, 1)) / 255,
    "channels first, float16": (torch.from_numpy(RGB.transpose(2, 0, 1)) / 255).half(),
    "RGBA, channels first": torch.from_numpy(np.dstack([RGB, RGB[:, :, :1]]).transpose(2, 0, 1)),
    "batch of one": RGB[None],
    "batch of one tensor": torch.from_numpy(RGB.transpose(2, 0, 1))[None],
    "list": [RGB],
    "tuple": (RGB,),
    "generator": (image for image in [RGB]),
    "deque": deque([RGB]),
}


@pytest.mark.parametrize("kind", ONE)
def test_every_kind_gives_the_same_pixels(kind):
    np.testing.assert_array_equal(only(ONE[kind]), RGB)


def test_files_and_their_contents(file):
    data = file.read_bytes()
    for value in (file, str(file), {str(file)}, np.array([str(file)]), np.array([file], object)):
        np.testing.assert_array_equal(only(value), RGB)
    for value in (data, bytearray(data), memoryview(data), io.BytesIO(data), [io.BytesIO(data)]):
        np.testing.assert_array_equal(only(value), RGB)


def test_an_open_file_is_read_from_its_position_and_stays_open(file):
    stream = io.BytesIO(b"header" + file.read_bytes())
    stream.seek(6)
    np.testing.assert_array_equal(only(stream), RGB)
    assert not stream.closed
    refused(stream, "nothing left to read", "seek(0)")
    with file.open("rb") as opened:
        np.testing.assert_array_equal(only(opened), RGB)
        assert not opened.closed
    refused(opened, "cannot read the open file", "closed file")
    read, write = os.pipe()  # cannot seek
    with os.fdopen(read, "rb") as reading, os.fdopen(write, "wb") as writing:
        writing.write(file.read_bytes())
        writing.close()
        np.testing.assert_array_equal(only(reading), RGB)


def test_grey_tensors():
    grey = RGB[:, :, 0]
    expected = np.broadcast_to(grey[:, :, None], RGB.shape)
    for value in (grey, grey[:, :, None], grey[None]):
        np.testing.assert_array_equal(only(torch.from_numpy(value.copy())), expected)


def test_bfloat16_tensor():
    halves = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.bfloat16)
    assert only(halves)[0, :, 0].tolist() == [0, 128, 255]


def test_several():
    assert len(as_images(np.zeros((5, 4, 6, 3), np.uint8))) == 5
    assert len(as_images(torch.zeros(5, 3, 4, 6))) == 5
    assert len(as_images(RGB for _ in range(3))) == 3
    assert as_images([]) == []
    assert as_images(["a.png", "b.png"]) == ["a.png", "b.png"]
    assert as_images(np.array(["a.png", "b.png"])) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ["None"]),
        ([None], ["None"]),
        (3, ["int"]),
        (2.5, ["float"]),
        (True, ["bool"]),
        (np.uint8(3), ["single value"]),
        (np.array(3), ["single value"]),
        (torch.tensor(3), ["single value"]),
        ({"a": "b.png"}, ["dict", "list of its values"]),
        (UserDict(a=1), ["UserDict"]),
        (MappingProxyType({}), ["mappingproxy"]),
        ({"a.png", "b.png"}, ["set of 2", "no order"]),
        (frozenset("ab"), ["frozenset of 2"]),
        (object(), ["object"]),
        (RGB.tolist(), ["list"]),
        ("", ["empty"]),
        ([""], ["empty"]),
        (".", ["is a folder"]),
        ("https://example.com/cat.png", ["https://example.com/cat.png is a URL", "download"]),
        ("HTTP://example.com/cat.png", ["URL"]),
        ("s3://bucket/cat.png", ["URL"]),
        ("gs://bucket/cat.png", ["URL"]),
        ("hf://datasets/a/cat.png", ["URL"]),
        ("file:///home/cat.png", ["URL"]),
        ("data:image/png;base64," + "A" * 9000, ["URL"]),
        (b"", ["empty"]),
        (b"/home/me/cat.png", ["the given bytes", "text"]),
        (bytearray(b"\0\1\2"), ["the given bytearray"]),
        (io.StringIO("x"), ["text mode", "'rb'"]),
        (np.ma.masked_array(RGB, RGB > 9), ["masked", "filled"]),
        (torch.zeros(3, 4, 3), ["first or last"]),
        (torch.zeros(3, 224, 224, dtype=torch.int64), ["int64"]),
        (torch.zeros(2, 4, 6), ["no image"]),
        (torch.zeros(3, 4, 6, device="meta"), ["cannot read", "meta"]),
        (torch.zeros(4, 6).to_sparse(), ["cannot read", "dense"]),
        (torch.zeros(1, 1, 3, 4, 6), ["no image"]),
        (RGB.transpose(2, 0, 1), ["channels last"]),
        (Foreign("x"), ["single value"]),
    ],
    ids=lambda value: None if isinstance(value, list) else type(value).__name__,
)
def test_refused(value, words):
    refused(value, *words)


def test_text_and_write_only_files(file):
    with file.open(encoding="latin-1") as text:
        refused(text, "text mode")
    with file.with_name("b").open("wb") as writing:
        refused(writing, "cannot read")


def test_a_file_whose_name_looks_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save(tmp_path / "data:x", "PNG")
    np.testing.assert_array_equal(only("data:x"), RGB)


def test_torch_is_not_imported():
    code = "import sys, numpy; from fvexport.encoder.image import as_images; as_images(numpy.zeros((4, 4)))"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, check=True
    )
    assert found.stdout.split() == [b"False"], found.stderr
