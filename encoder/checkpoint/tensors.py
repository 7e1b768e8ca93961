"""Reading named tensors out of weights files without mapping or holding more than is wanted.

safetensors and PyTorch's zip files are both read through a memory map, whose touched pages
count as the process's own until the map is closed. So files are reopened every few megabytes.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .source import INDEX, Located, check_shard_name, parse_json
from .wording import shown, unfit

CHUNK = 8 << 20
"""Bytes read through one opening of a file, or a sixteenth of what is wanted where that is more."""

WRAPPERS = ("state_dict", "model")
"""Keys under which trainers keep the named tensors of a .pt file."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The dtypes that weights are saved in; narrower ones come with scales, which no form has."""

# safetensors' names -> torch's; the others keep their name, which only messages show.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that was not read yet: `dtype` is torch's name, or what else the file holds there."""

    shape: tuple[int, ...]
    dtype: str


class TensorStore:
    """The tensors of a checkpoint by their file names, over one file or several shards.

    Raises:
        CheckpointError: unreadable, damaged, or not a weights file; see `kind_of`.
    """

    def __init__(self, located: Located) -> None:
        self._source = located.source
        self._fetch = located.fetch
        self._infos: dict[Path, dict[str, TensorInfo]] = {}
        self._whole: Path | None = None
        self._shards: dict[str, str] = {}
        if located.weights.name.endswith(INDEX):
            index = located.weights.name
            weight_map = parse_json(self._source, located.weights).get("weight_map")
            if not isinstance(weight_map, Mapping):
                raise unfit(self._source, f"{index} has no weight_map", "download it again")
            self._shards = {name: check_shard_name(self._source, index, file) for name, file in weight_map.items()}
        else:
            self._whole = located.weights

    @property
    def names(self) -> Collection[str]:
        """Every tensor's name, without opening a shard."""
        return self._open(self._whole) if self._whole else self._shards

    def describe(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Shapes and dtypes; a name that its shard lacks is left out."""
        found: dict[str, TensorInfo] = {}
        for file, group in self._by_file(names):
            infos = self._open(file)
            found |= {name: infos[name] for name in group if name in infos}
        return found

    def read(self, names: Iterable[str], dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """The tensors as contiguous copies in `dtype`, one at a time."""
        for file, group in self._by_file(names):
            kind, infos = kind_of(self._source, file), self._open(file)
            for chunk in _chunks(group, infos) if kind != "pickle" else [group]:
                with _opened(self._source, file, kind) as get:
                    for name in chunk:
                        # Straight from the map into memory of its own.
                        yield name, get(name).detach().to(dtype, copy=True).contiguous()

    def _by_file(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self._shards.get(name, ""), []).append(name)
        for shard, group in groups.items():
            yield self._whole or self._fetch(shard), group

    def _open(self, file: Path) -> dict[str, TensorInfo]:
        if file not in self._infos:
            self._infos[file] = _infos(self._source, file, kind_of(self._source, file))
        return self._infos[file]


def kind_of(source: str, file: Path) -> str:
    """`safetensors`, `zip` (torch.save) or `pickle` (torch.save before 1.6), by the first bytes.

    Raises:
        CheckpointError: unreadable, empty, an HTML page, a git-lfs pointer, or anything else.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise unfit(source, f"{file.name} cannot be read ({shown(error.strerror)})", "check its permissions") from None
    if not head:
        raise unfit(source, f"{file.name} is empty", "download it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80":
        return "pickle"
    if head.startswith(b"version https://git-lfs"):
        raise unfit(source, f"{file.name} is a git-lfs pointer, not the weights", "run `git lfs pull` there")
    if head.lstrip()[:1] == b"<":
        raise unfit(source, f"{file.name} is a web page, not weights", "download the file itself, logged in if need be")
    what = "JSON text" if head.lstrip()[:1] in (b"{", b"[") else f"something that starts with {head[:8]!r}"
    if file.suffix == ".safetensors":
        raise unfit(source, f"{file.name} is cut off or not a safetensors file: {what}", "download it again")
    raise unfit(source, f"{file.name} is {what}, not weights", "give a .safetensors, .pt, .pth or .bin file")


def _infos(source: str, file: Path, kind: str) -> dict[str, TensorInfo]:
    if kind == "safetensors":
        with _safetensors(source, file) as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {
                name: TensorInfo(tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype()))
                for name, s in slices.items()
            }
    return {name: _info(value) for name, value in _pickled(source, file, kind).items()}


def _info(value: object) -> TensorInfo:
    if not isinstance(value, Tensor):
        return TensorInfo((), type(value).__name__)
    plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    return TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch.") if plain else "without plain values")


def _chunks(names: list[str], infos: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    sizes = {name: 4 * math.prod(infos[name].shape) for name in names}
    limit = max(CHUNK, sum(sizes.values()) // 16)
    chunk: list[str] = []
    room = limit
    for name, size in sizes.items():
        if chunk and size > room:
            yield chunk
            chunk, room = [], limit
        chunk.append(name)
        room -= size
    if chunk:
        yield chunk


@contextmanager
def _opened(source: str, file: Path, kind: str) -> Iterator[Callable[[str], Tensor]]:
    if kind == "safetensors":
        with _safetensors(source, file) as handle:
            yield handle.get_tensor
    else:
        yield _pickled(source, file, kind).__getitem__


@contextmanager
def _safetensors(source: str, file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise unfit(source, f"{file.name} is cut off or damaged ({shown(error)})", "download it again") from None


def _pickled(source: str, file: Path, kind: str) -> dict[str, Any]:
    """The named values of a PyTorch file, read by its restricted unpickler: no code of the file runs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on torch.load, which the errors below give in our words
            content = torch.load(str(file), map_location="cpu", weights_only=True, mmap=_can_map(file, kind))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"asks for {wanted[1]}" if wanted else "holds more than tensors"
        raise unfit(
            source,
            f"{file.name} was refused and nothing in it was run: its pickle {asks}",
            "where you trust it, save its state dict alone with safetensors or torch.save",
        ) from None
    except Exception as error:
        if "TorchScript" in str(error):
            what, mend = "is a TorchScript program, which is not run", "save its state dict with safetensors"
        else:
            what, mend = f"is cut off or damaged ({shown(error)})", "download it again"
        raise unfit(source, f"{file.name} {what}", mend) from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        found = "no named tensors" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise unfit(source, f"{file.name} holds {found}", "give a file with a state dict")
    return dict(content)


def _can_map(file: Path, kind: str) -> bool:
    """Whether a zip's members are stored as they are; compressed ones cannot be mapped."""
    if kind != "zip":
        return False
    with zipfile.ZipFile(file) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
