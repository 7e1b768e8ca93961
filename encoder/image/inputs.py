"""The values that may be handed over as images: what counts as one image, what as several, and what is refused.

Nothing is decoded here. `as_images` separates the images; `as_array` and `encoded_bytes` turn the rarer kinds into
the two that `load_image` decodes: arrays, and the contents of image files.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Mapping, Set
from typing import Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image

from ...core.errors import ImageError, first_line


@runtime_checkable
class ArrayLike(Protocol):
    """What NumPy can convert: a torch tensor, a JAX array, a pandas series, ..."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


ImageLike: TypeAlias = (
    str
    | os.PathLike[str]
    | Image.Image
    | np.ndarray[Any, Any]
    | ArrayLike
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | io.BufferedIOBase
)
"""One image, as one of:

- a path, or a PIL image of any mode;
- an array or array-like (H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
- a torch tensor of the same shapes, or channels first as torchvision has it: (1, H, W), (3, H, W) or (4, H, W);
- the contents of an image file: `bytes`, `bytearray`, `memoryview`, or a binary file object.
"""

KINDS = "a path, a PIL image, an array, a torch tensor, the bytes of an image file, or a binary file object"
"""What can be given, as error messages list it."""

_CHANNELS = (1, 3, 4)


def as_images(value: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Separates what was given into single images; an empty list if it was an empty sequence.

    One image gives a list of one. Several are a sequence, an iterator or generator, an array or tensor with a batch
    axis (B, H, W, C) or (B, C, H, W), or an array of paths. A binary file is one image, and never iterated.

    Raises:
        ImageError: a value that is neither an image nor a sequence of images (None, a number, a dict, a text-mode
            file, ...), and a set of several images, whose order is undefined. Whether the images are usable is
            found by `load_image`.
    """
    if _is_single(value):
        return [value]  # type: ignore[list-item]
    if isinstance(value, memoryview):
        return _split(np.asarray(value))
    if is_tensor(value) or isinstance(value, (np.ndarray, ArrayLike)):
        return _split(value)
    if isinstance(value, Mapping):
        raise ImageError(f"cannot make images of a {_type(value)}: give a list of its values")
    if isinstance(value, Set) and len(value) > 1:
        raise ImageError(f"a {_type(value)} of {len(value)} images has no order: give a list")
    if isinstance(value, Iterable):
        return list(value)  # type: ignore[arg-type]  # mypy still thinks of bytes
    raise ImageError(not_an_image(value))


def not_an_image(value: object) -> str:
    """The error message for a value of a type that is no image."""
    return f"cannot make an image of {'None' if value is None else f'a value of type {_type(value)}'}: give {KINDS}"


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor; does not import torch, without which there are none."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """An array, tensor or array-like as a NumPy array with its channels, if any, last.

    Raises ImageError for a tensor whose channel axis cannot be told, and for values that NumPy cannot convert.
    """
    if is_tensor(value):
        return _channels_last(_on_host(value))
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ImageError("the given masked array hides some of its values: replace them with .filled()")
    try:
        return np.asarray(value)
    except Exception as error:  # a GPU library's array, which raises what it likes
        raise ImageError(
            f"cannot convert a value of type {_type(value)} to a NumPy array ({first_line(error)}): convert it first"
        ) from error


def encoded_bytes(value: Any) -> bytes | memoryview:
    """The contents of an image file from `bytes`, `bytearray`, `memoryview` or a binary file object.

    A file is read from its position to its end, and stays open.

    Raises ImageError for a closed file, one in text mode, one that cannot be read, and one with nothing left to read.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value if isinstance(value, bytes) else memoryview(value).cast("B")
    name = file_name(value)
    if isinstance(value, io.TextIOBase):
        raise ImageError(f"{name} is open in text mode: open it with mode 'rb'")
    try:
        data = value.read()
    except Exception as error:  # closed, open for writing, or whatever a network library raises
        raise ImageError(f"cannot read {name} ({first_line(error)}): give a file open with mode 'rb'") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"{name} gives {_type(data)}, not bytes: open it with mode 'rb'")
    if not data:
        raise ImageError(f"{name} has nothing left to read: rewind it first (seek(0))")
    return bytes(data)


def is_encoded(value: object) -> bool:
    """Whether `value` holds the contents of an image file: bytes, or a file object."""
    if isinstance(value, memoryview):
        return value.ndim == 1 and value.itemsize == 1
    return isinstance(value, (bytes, bytearray)) or _is_file(value)


def file_name(value: object) -> str:
    """How error messages name a file object, or bytes."""
    name = getattr(value, "name", None)
    return f"the open file {name}" if isinstance(name, str) and name else f"the given {_type(value)}"


def _is_single(value: object) -> bool:
    """Whether `value` is one image by its type alone."""
    return isinstance(value, (str, os.PathLike, Image.Image)) or is_encoded(value)


def _is_file(value: object) -> bool:
    return callable(getattr(value, "read", None)) and not isinstance(value, os.PathLike)


def _split(value: Any) -> list[ImageLike]:
    """The images of an array or tensor."""
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tuple):
        value = as_array(value)
        shape = value.shape
    if len(shape) == 0:
        raise ImageError(f"{_described(value)} is a single value, not an image: give {KINDS}")
    if len(shape) == 4 or (len(shape) == 1 and getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U", "S")):
        return list(value)
    return [value]


def _on_host(tensor: Any) -> np.ndarray[Any, Any]:
    """A torch tensor's values; bfloat16, which NumPy lacks, as float32."""
    try:
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        array: np.ndarray[Any, Any] = tensor.numpy()
    except Exception as error:  # a meta, sparse or quantized tensor
        raise ImageError(f"cannot read {_described(tensor)} ({first_line(error)}): give a dense tensor") from error
    return array


def _channels_last(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(C, H, W) -> (H, W, C); (H, W) and (H, W, C) stay as they are."""
    if array.ndim != 3:
        return array
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and last:
        raise ImageError(
            f"the given tensor {array.dtype}{list(array.shape)} may have its channels first or last: "
            "give (H, W, C) as a NumPy array"
        )
    return array.transpose(1, 2, 0) if first else array


def _described(value: Any) -> str:
    kind = "tensor" if is_tensor(value) else "array"
    return f"the given {kind} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _type(value: object) -> str:
    return type(value).__name__
