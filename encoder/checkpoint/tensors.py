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

from ...core.input_file import open_regular
from ...core.utf8_path import utf8_path
from .containers import Contents, contents
from .converted import ORIGINAL
from .messages import shown, some, unfit
from .prefixes import Unwrapped, unwrap
from .weights_files import INDEX, Located, check_shard_name, parse_json, unreadable

CHUNK = 8 << 20
"""Bytes read through one opening of a file, or a sixteenth of what is wanted where that is more."""

MAX_PICKLE = 64 << 20
"""Most bytes of a zip's data.pkl, which names its tensors, and of what a small compressed file unpacks to."""

LONGEST_TENSOR_NAME = 1000
"""Characters of a tensor's name; several patterns are looked for in each, in time that can grow with its square."""

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
    """The tensors of a checkpoint by their names, over one file or several shards.

    Names are the file's without the prefixes that trainers add (see `prefixes`); `original` gives the file's.

    Raises:
        CheckpointError: unreadable, damaged, or not a weights file; see `kind_of`.
    """

    def __init__(self, located: Located) -> None:
        self._source = located.source
        self._fetch = located.fetch
        self._infos: dict[Path, dict[str, TensorInfo]] = {}
        self._notices: list[str] = []
        self._unwrapped: Unwrapped | None = None
        self._whole: Path | None = None
        self._shards: dict[str, str] = {}
        if located.weights.name.endswith(INDEX):
            index = located.weights.name
            weight_map = parse_json(self._source, located.weights).get("weight_map")
            if not isinstance(weight_map, Mapping):
                raise unfit(self._source, f"{index} has no weight_map", "give the weights file itself")
            self._shards = {name: check_shard_name(self._source, index, file) for name, file in weight_map.items()}
        else:
            self._whole = located.weights

    @property
    def unwrapped(self) -> Unwrapped:
        """The names, and what was removed from them; no shard is opened."""
        if self._unwrapped is None:
            names = self._open(self._whole) if self._whole else self._shards
            if long := next((name for name in names if len(name) > LONGEST_TENSOR_NAME), None):
                problem = f"has a tensor with a name of {len(long)} characters, {shown(long, 40)}"
                raise unfit(self._source, problem, "give another checkpoint")
            self._unwrapped = unwrap(names)
        return self._unwrapped

    @property
    def names(self) -> Collection[str]:
        """Every tensor's name, without opening a shard."""
        return self.unwrapped.names

    @property
    def notices(self) -> list[str]:
        """What a person has to know of the files that were opened."""
        averaged = self.unwrapped.averaged
        flat = [f"Averaged (EMA) weights under {shown(averaged[0])!r} were not read."] if averaged else []
        return [*dict.fromkeys(self._notices), *flat]

    def original(self, name: str) -> str:
        """The file's name for a tensor, or the one that it would have there."""
        found = self.unwrapped
        return found.names.get(name) or (name if found.unknown else found.prefix + name)

    def describe(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Shapes and dtypes; a name that the file lacks is left out.

        Raises CheckpointError for a shard without a tensor that the index places there.
        """
        found: dict[str, TensorInfo] = {}
        for file, group in self._by_file(names):
            infos = self._open(file)
            known = {name: infos[own] for name in group if (own := self.original(name)) in infos}
            if absent := [own for name in group if name not in known and (own := self.original(name)) in self._shards]:
                problem = f"the shard {file.name} lacks {some(absent)}, which the index places there"
                raise unfit(self._source, problem, "download the index and its shards again, of one revision")
            found |= known
        return found

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same shape and values; both are read a few megabytes at a time."""
        shapes = [info.shape for info in self.describe([one, other]).values()]
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            return False
        pieces = (self._pieces(name, shapes[0]) for name in (one, other))
        return all(torch.equal(*_alike(a, b)) for a, b in zip(*pieces, strict=True))

    def _pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """A tensor as copies of some of its rows at a time."""
        file, _ = next(self._by_file([name]))
        kind, own = kind_of(self._source, file), self.original(name)
        count = math.ceil(4 * math.prod(shape) / CHUNK)
        rows = math.ceil(shape[0] / min(count, 64)) if count and shape else 1
        starts = range(0, shape[0], rows) if count and shape else ()  # a shape such as (2^62, 0) has no values
        if kind == "safetensors":
            for start in starts:
                with _opened(self._source, file, kind) as get:
                    yield get(own, slice(start, start + rows)).clone()
        else:
            with _opened(self._source, file, kind) as get:
                for start in starts:
                    yield get(own, slice(start, start + rows)).clone()

    def read(self, names: Iterable[str], dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """The tensors as contiguous copies in `dtype`, one at a time; CheckpointError for one not of `FLOATS`."""
        for file, group in self._by_file(names):
            kind, infos = kind_of(self._source, file), self._open(file)
            by_name = {name: infos[self.original(name)] for name in group}
            if other := next((name for name, info in by_name.items() if info.dtype not in FLOATS), None):
                problem = f"{file.name} has {shown(self.original(other))} in {by_name[other].dtype}"
                raise unfit(self._source, problem, f"{ORIGINAL}, in float32, float16 or bfloat16")
            for chunk in _chunks(group, by_name) if kind != "pickle" else [group]:
                with _opened(self._source, file, kind) as get:
                    for name in chunk:
                        # Straight from the map into memory of its own.
                        yield name, get(self.original(name), None).detach().to(dtype, copy=True).contiguous()

    def _by_file(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self._shards.get(self.original(name), ""), []).append(name)
        for shard, group in groups.items():
            yield self._whole or self._fetch(shard), group

    def _open(self, file: Path) -> dict[str, TensorInfo]:
        if file not in self._infos:
            self._infos[file], notice = _infos(self._source, file, kind_of(self._source, file))
            self._notices += [notice] if notice else []
        return self._infos[file]


def kind_of(source: str, file: Path) -> str:
    """`safetensors`, `zip` (torch.save) or `pickle` (torch.save before 1.6), by the first bytes.

    Raises:
        CheckpointError: unreadable, empty, an HTML page, a git-lfs pointer, or anything else.
    """
    try:
        with open_regular(file) as stream:
            head = stream.read(512)
    except OSError as error:
        raise unreadable(source, file, error) from None
    if not head:
        raise unfit(source, f"{file.name} is empty", "download it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80":
        return "pickle"
    if head.startswith(b"GGUF"):
        raise unfit(source, f"{file.name} is a GGUF file of llama.cpp, not PyTorch's weights", ORIGINAL)
    if head.startswith(b"version https://git-lfs"):
        raise unfit(source, f"{file.name} is a git-lfs pointer, not the weights", "run `git lfs pull` there")
    if head.lstrip()[:1] == b"<":
        raise unfit(source, f"{file.name} is a web page, not weights", "download the file itself, logged in if need be")
    what = "JSON text" if head.lstrip()[:1] in (b"{", b"[") else f"something that starts with {head[:8]!r}"
    if file.suffix == ".safetensors":
        raise unfit(source, f"{file.name} is cut off or not a safetensors file: {what}", "download it again")
    raise unfit(source, f"{file.name} is {what}, not weights", "give a .safetensors, .pt, .pth or .bin file")


def _infos(source: str, file: Path, kind: str) -> tuple[dict[str, TensorInfo], str | None]:
    """What the file holds, and what a person has to know of it."""
    if kind == "safetensors":
        with _safetensors(source, file) as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {
                name: TensorInfo(tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype()))
                for name, s in slices.items()
            }, None
    found = _pickled(source, file, kind)
    return {name: _info(value) for name, value in found.tensors.items()}, found.notice


def _info(value: object) -> TensorInfo:
    if not isinstance(value, Tensor):
        return TensorInfo((), type(value).__name__)
    plain = value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)
    # A pickle can repeat few stored values over any shape, without end.
    if not plain or value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 1 << 20):
        return TensorInfo(() if value.is_nested else tuple(value.shape), "without plain values")
    return TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))


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


def _alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype that holds their values exactly."""
    return (one, other) if one.dtype == other.dtype else (one.double(), other.double())


@contextmanager
def _opened(source: str, file: Path, kind: str) -> Iterator[Callable[[str, slice | None], Tensor]]:
    """Gives a function: the file's name of a tensor, and some of its rows or None for all -> those values."""
    if kind == "safetensors":
        with _safetensors(source, file) as handle:
            yield lambda name, rows: handle.get_tensor(name) if rows is None else handle.get_slice(name)[rows]
    else:
        tensors = _pickled(source, file, kind).tensors
        yield lambda name, rows: tensors[name] if rows is None else tensors[name][rows]


@contextmanager
def _safetensors(source: str, file: Path) -> Iterator[Any]:
    try:
        with utf8_path(file) as path, safe_open(path, framework="pt") as handle:
            yield handle
    except (OSError, RuntimeError) as error:
        # PyTorch, which opens the file again, makes a RuntimeError of an OSError.
        if isinstance(error, RuntimeError) and "unable to open file" not in str(error):
            raise
        raise unfit(
            source, f"{file.name} cannot be read ({shown(error)})", "check the path, its permissions and free memory"
        ) from None
    except SafetensorError as error:
        if unknown := re.search(r"unknown variant `(\w+)`", str(error)):
            problem = f"{file.name} holds tensors of dtype {unknown[1]}, which this safetensors cannot read"
            raise unfit(source, problem, f"{ORIGINAL}, in float32, float16 or bfloat16") from None
        raise unfit(source, f"{file.name} is cut off or damaged ({shown(error)})", "download it again") from None


def _pickled(source: str, file: Path, kind: str) -> Contents:
    """The named values of a PyTorch file, read by its restricted unpickler: no code of the file runs."""
    if kind == "zip" and (foreign := _foreign_archive(file)):
        raise unfit(source, f"{file.name} is {foreign}, not PyTorch's", "give a .safetensors, .pt, .pth or .bin file")
    if kind == "zip" and (problem := _unpacks_to_much(file)):
        raise unfit(source, f"{file.name} {problem}", "save it again with torch.save, which does not compress")
    try:
        with warnings.catch_warnings(), utf8_path(file) as path:
            warnings.simplefilter("ignore")  # advice on torch.load, which the errors below give in our words
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(file, kind))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"asks for {wanted[1]}" if wanted else "holds more than tensors"
        raise unfit(
            source,
            f"{file.name} was refused and nothing in it was run: its pickle {asks}",
            "where you trust it, save its state dict alone with safetensors or torch.save",
        ) from None
    except (OSError, MemoryError) as error:
        mend = "check the path, its permissions and free memory"
        raise unfit(source, f"{file.name} cannot be read ({shown(error) or 'out of memory'})", mend) from None
    except Exception as error:
        if "TorchScript" in str(error):
            what, mend = "is a TorchScript program, which is not run", "save its state dict with safetensors"
        else:
            what, mend = f"is cut off or damaged ({shown(error)})", "download it again"
        raise unfit(source, f"{file.name} {what}", mend) from None
    return contents(source, file.name, content)


def _foreign_archive(file: Path) -> str | None:
    """What a zip file is that `torch.save` did not write; None for one of PyTorch's, or one that is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # zipfile has no error of its own for a damaged directory's names, versions and sizes
        return None
    if any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
        return None
    return "a NumPy archive" if any(name.endswith(".npy") for name in names) else "a zip archive of other files"


def _unpacks_to_much(file: Path) -> str | None:
    """What is wrong with the sizes of a zip's members; None if nothing is, or the zip is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception:  # as in `_foreign_archive`
        return None
    size, unpacked = file.stat().st_size, sum(member.file_size for member in members)
    if unpacked > 8 * size + MAX_PICKLE:
        return f"has {size} bytes and unpacks to {unpacked}"
    pickles = (member.file_size for member in members if member.filename.endswith("data.pkl"))
    return f"has a data.pkl of {largest} bytes" if (largest := max(pickles, default=0)) > MAX_PICKLE else None


def _can_map(file: Path, kind: str) -> bool:
    """Whether a zip's members are stored as they are; compressed ones cannot be mapped."""
    if kind != "zip":
        return False
    with zipfile.ZipFile(file) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
