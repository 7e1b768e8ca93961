"""Block sizes by kernel, architecture, dtype and shape: the committed table, and what a user's own search found.

`configs/<kernel>.json` holds rows in order; the first that fits counts, and the last fits everything. `fvexport tune`
writes a file of its own for one GPU and one set of versions, which goes before the table. Nothing is ever measured
while a model runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.cache import cache_folder, is_trusted
from ..core.input_file import read_json
from ..core.records import Record, parse
from ..core.versions import versions_of
from .dispatch import OPS

CONFIGS = Path(__file__).parent / "configs"
GROWING = ("m", "tokens", "batch", "height", "width")
"""Sizes that come with the image: a search made at one counts up to it from the power of two below."""


@dataclass(frozen=True)
class Config:
    """How a kernel is compiled and cut into programs.

    Attributes:
        blocks: its constexpr block sizes by name.
        num_warps, num_stages: Triton's own.
    """

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def arguments(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_dict`."""
        return {"blocks": dict(self.blocks), "num_warps": self.num_warps, "num_stages": self.num_stages}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Reads what `to_dict` wrote, or a row of a table."""
        blocks = {str(name): int(size) for name, size in data["blocks"].items()}
        return cls(blocks, int(data["num_warps"]), int(data["num_stages"]))


@dataclass(frozen=True)
class Row:
    """One row of a committed table.

    Attributes:
        config: what it chooses.
        why: the reason; whether it was measured, and where.
        arch: architectures it is for (`sm_90`), all where empty.
        dtype: `half` (float16, bfloat16), `float32`, or None for both.
        sizes: inclusive bounds by name of size, or of a product of sizes (`batch*height`); None is no bound.
    """

    config: Config
    why: str
    arch: tuple[str, ...] = ()
    dtype: str | None = None
    sizes: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def fits(self, arch: str, dtype: str, sizes: Mapping[str, int]) -> bool:
        if (self.arch and arch not in self.arch) or self.dtype not in (None, dtype):
            return False
        return all(
            (low is None or _size(name, sizes) >= low) and (high is None or _size(name, sizes) <= high)
            for name, (low, high) in self.sizes.items()
        )


def _size(name: str, sizes: Mapping[str, int]) -> int:
    """A size by its name, or a product of sizes: `batch*height*width`."""
    return math.prod(sizes[factor] for factor in name.split("*"))


@functools.lru_cache
def committed(op: str) -> tuple[Row, ...]:
    """The rows of `configs/<op>.json`."""
    data = json.loads((CONFIGS / f"{op}.json").read_text(encoding="utf-8"))
    return tuple(
        Row(
            Config.from_dict(row), row["why"], tuple(row.get("arch", ())), row.get("dtype"),
            {name: (low, high) for name, (low, high) in row.get("sizes", {}).items()},
        )
        for row in data["rows"]
    )  # fmt: skip


def default_config(op: str, arch: str, dtype: str, sizes: Mapping[str, int]) -> Config:
    """The committed table's choice for an architecture (`sm_90`), `half` or `float32`, and sizes by name."""
    return next(row for row in committed(op) if row.fits(arch, dtype, sizes)).config


def config_for(op: str, x: Tensor, sizes: Mapping[str, int]) -> Config:
    """The block sizes for a call on `x`: the user's own search where there was one, else the committed table's."""
    tables = committed(op), tuned(x.device) if x.device.type == "cuda" else None
    key = (op, x.device, x.dtype, *sizes.items())
    known = _chosen.get(key)
    if known is not None and known.committed is tables[0] and known.tuned is tables[1]:
        return known.config
    found = tables[1] and tables[1].get(key_of(op, x.dtype, sizes))
    config = found or default_config(op, arch_of(x.device), dtype_class(x.dtype), sizes)
    if len(_chosen) >= MOST_CHOSEN:
        _chosen.clear()
    _chosen[key] = _Chosen(tables[0], tables[1], config)
    return config


@dataclass(frozen=True)
class _Chosen:
    """A choice that was made before, and the tables that it came from: it counts as long as they are the same."""

    committed: tuple[Row, ...]
    tuned: dict[str, Config] | None
    config: Config


BOUNDS = {
    "BLOCK_M": (16, 256), "BLOCK_N": (16, 256), "BLOCK_K": (16, 128), "BLOCK_H": (16, 128), "GROUP_M": (4, 16),
    "BLOCK": (256, 4096), "SPLITS": (1, 16), "SPLIT_N": (1, 4), "PERSISTENT": (0, 1),
    "ROWS": (1, 8), "GROUPS": (1, 32), "BLOCK_W": (4, 64), "BLOCK_C": (16, 256),
    "num_warps": (1, 16), "num_stages": (1, 6),
}  # fmt: skip
"""Smallest and largest value of each size that is tried; sizes of other names stay as they are."""

MOST_CHOSEN = 4096
_chosen: dict[tuple[Any, ...], _Chosen] = {}


def dtype_class(dtype: torch.dtype) -> str:
    """`half` or `float32`, as the tables know dtypes."""
    return "float32" if dtype == torch.float32 else "half"


@functools.lru_cache
def arch_of(device: torch.device) -> str:
    """`sm_90` for a GPU of compute capability 9.0, `interpreter` for the CPU."""
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.lru_cache
def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; 0 for anything else."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


# --- what a user's search found ---------------------------------------------------------------------


def key_of(op: str, dtype: torch.dtype, sizes: Mapping[str, int]) -> str:
    """What a search is kept under: `linear half k=768 m=1024 n=3072`; sizes of the image go up to a power of two."""
    classes = {name: 1 << (size - 1).bit_length() if name in GROWING else size for name, size in sizes.items()}
    return " ".join([op, dtype_class(dtype), *(f"{name}={classes[name]}" for name in sorted(classes))])


def cache_file(device: torch.device) -> Path:
    """Where searches on this GPU with these versions are kept: $XDG_CACHE_HOME/fvexport/kernels/<GPU>-<hash>.json."""
    identity = json.dumps(environment_of(device), sort_keys=True)
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name(device)).strip("-").lower()
    return cache_folder("kernels") / f"{gpu}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"


def environment_of(device: torch.device) -> dict[str, Any]:
    """What a search holds for: the GPU, its capability, and the versions that compile for it and run there."""
    return {
        "gpu": torch.cuda.get_device_name(device),
        "arch": arch_of(device),
        "cuda": torch.version.cuda,
        "kernels": kernels_digest(),
        **versions_of("torch", "triton"),
    }


@functools.lru_cache
def kernels_digest() -> str:
    """SHA-256 of the kernels' sources: a changed kernel makes an old search void."""
    digest = hashlib.sha256()
    for name in sorted([*sources(), "fp8.py", "tiles.py"]):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]


def sources() -> Iterator[str]:
    """The files that hold kernels."""
    yield from (f"{op}.py" for op in OPS)


@functools.lru_cache
def tuned(device: torch.device) -> dict[str, Config]:
    """The user's own search for this GPU, by key; empty where there is none, or none that can be read or trusted."""
    file = cache_file(device)
    return {key: row.config for key, row in read_tuned(file).items()} if is_trusted(file) else {}


class TunedRow(Record, frozen=True, kw_only=True):
    """What a search found: a configuration, and its time and the committed one's in milliseconds."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int
    ms: float | None = None
    default_ms: float | None = None

    @property
    def config(self) -> Config:
        return Config(self.blocks, self.num_warps, self.num_stages)


class _TunedFile(Record, frozen=True, kw_only=True):
    configs: dict[str, TunedRow]


def read_tuned(file: Path) -> dict[str, TunedRow]:
    """Rows of a cache file, by key, without those that no search makes; empty where there is none that can be read.

    It is a cache: what is left out is searched for again.
    """
    try:
        rows = parse(read_json(file), _TunedFile).configs
    except (OSError, ValueError):
        return {}
    return {key: row for key, row in rows.items() if key.partition(" ")[0] in OPS and _is_possible(key, row.config)}


def _is_possible(key: str, config: Config) -> bool:
    """Whether a search could find this: the sizes of a committed row, each within its bounds or as committed."""
    known = [row.config.arguments for row in committed(key.partition(" ")[0])]
    found = config.arguments
    if not any(found.keys() == row.keys() for row in known):
        return False
    return all(
        (low <= size <= high) or any(row.get(name) == size for row in known)
        for name, size in found.items()
        for low, high in [BOUNDS.get(name, (1, 0))]
    )
