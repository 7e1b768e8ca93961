"""Where a checkpoint lies: a file, a folder, or the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.progress import Progress, silent
from .converted import ADAPTER_FILES, refuse_adapter
from .messages import shown, some, unfit
from .prefixes import is_ema
from .settings import CONFIG_FILES

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".index.json"

# What the five forms are published as; a whole file goes before its own shards.
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
        fetch: file name -> local path, downloading it if need be; raises CheckpointError.
        optional: the same for a file that need not be there: None where it is not.
        configs: the JSON files beside the weights, parsed.
        revision: the hub's commit, None for a local path.
        notices: what a person has to know of other files that were there.
    """

    source: str
    weights: Path
    fetch: Callable[[str], Path]
    optional: Callable[[str], Path | None]
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: str | None = None
    notices: tuple[str, ...] = ()


def locate(source: str | Path, *, revision: str | None = None, progress: Progress = silent) -> Located:
    """Finds a checkpoint by path or hub id; an existing path always wins.

    Raises:
        CheckpointError: nothing there, unreadable, or not on the hub.
    """
    text = str(source)
    if not text.strip():
        raise unfit("checkpoint", "its path is empty", "give a file, a folder or a hub id such as apple/FastVLM-0.5B")
    path = Path(text).expanduser()
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError) as error:
        raise unfit(text, f"cannot be looked at ({shown(error)})", "check the path and its permissions") from None
    if exists and revision is not None:
        raise unfit(text, f"revision {revision!r} was asked of a local path", "leave out the revision")
    if is_folder:
        return _from_folder(text, path)
    if is_file:
        return _located(text, path, path.parent)
    if exists:
        raise unfit(text, "is neither a file nor a folder", "give a file, a folder or a hub id")
    if isinstance(source, str) and _looks_like_hub_id(source):
        from .hub import locate_on_hub  # here, because it imports huggingface_hub

        return locate_on_hub(source, revision=revision, progress=progress)
    if match := re.match(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)", text):
        raise unfit(text, "is an address, not a hub id", f"give {match[1]} alone")
    raise unfit(
        text, "no such file or folder", "check the path, or give a hub id such as apple/FastVLM-0.5B to download"
    )


def choose_weights(source: str, names: Collection[str], read: Callable[[str], Mapping[str, Any]] | None = None) -> str:
    """The file to read among a folder's file names; raises CheckpointError where none or several fit.

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
    """What a person has to know of other weights in the folder: adapters and averaged (EMA) ones are not read."""
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
    if not parts or "\\" in str(name) or ":" in str(name) or parts[0] == "/" or ".." in parts:
        raise unfit(
            source, f"{index} names the shard {shown(name)!r}, which is not in its folder", "put the shards beside it"
        )
    return str(name)


def parse_json(source: str, path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; raises CheckpointError for anything else."""
    try:
        content = json.loads(path.read_bytes())  # bytes, so that a byte order mark and UTF-16 are understood
    except OSError as error:
        mend = "check its permissions, and where it links to" if path.is_symlink() else "check its permissions"
        raise unfit(source, f"{path.name} cannot be read ({shown(error.strerror)})", mend) from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise unfit(source, f"{path.name} is not a JSON object", "replace it by the original")
    return content


def _from_folder(source: str, folder: Path) -> Located:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise unfit(source, f"cannot be listed ({shown(error.strerror)})", "check its permissions") from None
    weights = choose_weights(source, names, lambda name: parse_json(source, folder / name))
    return _located(source, folder / weights, folder, beside(names, weights))


def _located(source: str, weights: Path, folder: Path, notices: tuple[str, ...] = ()) -> Located:
    if ADAPTER_FILES.fullmatch(weights.name):
        described = ["adapter_config.json"] if (folder / "adapter_config.json").is_file() else []
        refuse_adapter(source, [weights.name, *described], lambda name: parse_json(source, folder / name))

    def optional(name: str) -> Path | None:
        return path if (path := folder / name).is_file() else None

    configs = _read_configs(source, folder)
    return Located(source, weights, _fetch_from(source, folder), optional, configs, notices=notices)


def _fetch_from(source: str, folder: Path) -> Callable[[str], Path]:
    def fetch(name: str) -> Path:
        path = folder / name
        if not path.is_file():
            raise unfit(source, f"the shard {shown(name)} is missing", "download that file too")
        return path

    return fetch


def _read_configs(source: str, folder: Path) -> dict[str, Mapping[str, Any]]:
    # A link to nothing, or a folder, is no reason to assume what the file would have said.
    return {name: parse_json(source, folder / name) for name in CONFIG_FILES if os.path.lexists(folder / name)}


def _looks_like_hub_id(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None and not text.endswith((*SUFFIXES, ".json"))
