"""A checkpoint's files: which of a folder's or a repository's files are read, and what was found.

Used by `source` for local paths and by `hub` for repositories.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.errors import CheckpointError
from ...core.input_file import read_json
from .converted import ADAPTER_FILES, refuse_adapter
from .messages import shown, some, unfit
from .prefixes import is_ema

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".index.json"
LONGEST_NAME = 255
"""Bytes of a file's name, of any common file system."""

# The file names of the five published forms; a whole file is preferred to its shards.
PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# A trainer's files that have the suffix of weights.
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*|mm_projector)\.(bin|pth?)")


@dataclass(frozen=True)
class Located:
    """A checkpoint that was found, before any tensor is read.

    Attributes:
        source: as the user gave it.
        weights: the weights file, or the index of its shards.
        fetch: file name -> local path, downloading it if necessary; raises CheckpointError.
        optional: the same for a file that may be missing: None if it is.
        configs: the JSON files beside the weights, parsed.
        revision: the hub's commit, None for a local path.
        notices: sentences about weights that were found beside it and are not read.
    """

    source: str
    weights: Path
    fetch: Callable[[str], Path]
    optional: Callable[[str], Path | None]
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: str | None = None
    notices: tuple[str, ...] = ()


def choose_weights(source: str, names: Collection[str], read: Callable[[str], Mapping[str, Any]] | None = None) -> str:
    """The weights file among a folder's file names; raises CheckpointError if none or several fit.

    `read` opens a JSON file of the folder, to name an adapter's base model.
    """
    for name in PREFERRED:
        if name in names:
            return name
    refuse_adapter(source, names, read)
    candidates = sorted(n for n in names if "/" not in n and n.endswith(SUFFIXES) and not _NOT_WEIGHTS.fullmatch(n))
    tensors_only = [n for n in candidates if n.endswith(".safetensors")]
    for group in (tensors_only, candidates):
        if len(group) == 1:
            return group[0]
    if candidates:
        raise unfit(source, f"holds {len(candidates)} weights files ({some(candidates)})", "give the path of one")
    found = f"found {some(sorted(names))}" if names else "it is empty"
    raise unfit(
        source,
        f"holds no weights: {found}",
        "give a folder with model.safetensors, its shards and their index, or one .pt, .pth or .bin file",
    )


def beside(names: Iterable[str], weights: str) -> tuple[str, ...]:
    """Sentences about other weights in the folder: adapters and averaged (EMA) weights are not read."""
    others = [name for name in sorted(names) if "/" not in name and name != weights and not is_ema(weights)]
    adapters = [name for name in others if ADAPTER_FILES.fullmatch(name) and not name.endswith(".json")]
    averaged = [name for name in others if name.endswith(SUFFIXES) and is_ema(name)]
    found = []
    if adapters:
        found.append(f"The adapter beside {weights} ({some(adapters)}) was not applied.")
    if averaged:
        found.append(f"Averaged (EMA) weights beside {weights} ({some(averaged)}) were not read.")
    return tuple(found)


def check_shard_name(source: str, index: str, name: object) -> str:
    """A shard's file name as an index gives it; raises CheckpointError unless it stays in the folder."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    bad = not parts or re.search(r"[\\:\0\ud800-\udfff]", str(name)) or parts[0] == "/" or ".." in parts
    if bad or any(len(part.encode()) > LONGEST_NAME for part in parts):
        raise unfit(
            source,
            f"{index} names the shard {shown(name)!r}, which cannot be in its folder",
            "put the shards beside it",
        )
    return str(name)


def unreadable(source: str, path: Path, error: OSError) -> CheckpointError:
    """The error for a file that cannot be opened or read."""
    fix = "check its permissions, and where it links to" if path.is_symlink() else "check its permissions"
    if error.errno in (errno.EINVAL, errno.EFBIG):  # of `input_file`, which says what the file is
        fix = "replace it by the original"
    return unfit(source, f"{path.name} cannot be read ({shown(error.strerror)})", fix)


def parse_json(source: str, path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; raises CheckpointError for anything else."""
    try:
        content = read_json(path)
    except OSError as error:
        raise unreadable(source, path, error) from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise unfit(source, f"{path.name} is not a JSON object", "replace it by the original")
    return content
