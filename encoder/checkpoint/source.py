"""Finds a checkpoint: a file, a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.home import expand_home
from ...core.progress import Progress, silent
from .converted import ADAPTER_FILES, refuse_adapter
from .messages import shown, unfit
from .settings import CONFIG_FILES
from .weights_files import SUFFIXES, Located, beside, choose_weights, parse_json


def locate(source: str | Path, *, revision: str | None = None, progress: Progress = silent) -> Located:
    """Finds a checkpoint by path or hub id; an existing path always wins.

    Raises:
        CheckpointError: nothing there, unreadable, or not on the hub.
    """
    text = str(source)
    if not text.strip():
        raise unfit("checkpoint", "its path is empty", "give a file, a folder or a hub id such as apple/FastVLM-0.5B")
    path = expand_home(text)
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


def _from_folder(source: str, folder: Path) -> Located:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise unfit(source, f"cannot be listed ({shown(error.strerror)})", "check its permissions") from None
    weights = choose_weights(source, names, lambda name: parse_json(source, folder / name))
    return _located(source, folder / weights, folder, beside(names, weights))


def _located(source: str, weights: Path, folder: Path, notices: tuple[str, ...] = ()) -> Located:
    if ADAPTER_FILES.fullmatch(weights.name):
        described = ["adapter_config.json"] if os.path.lexists(folder / "adapter_config.json") else []
        refuse_adapter(source, [weights.name, *described], lambda name: parse_json(source, folder / name))

    def optional(name: str) -> Path | None:
        return path if os.path.lexists(path := folder / name) else None

    configs = _read_configs(source, folder)
    return Located(source, weights, _fetch_from(source, folder), optional, configs, notices=notices)


def _fetch_from(source: str, folder: Path) -> Callable[[str], Path]:
    def fetch(name: str) -> Path:
        path = folder / name
        if not os.path.lexists(path):  # never raises, unlike `Path.exists`
            raise unfit(source, f"the shard {shown(name)} is missing", "download that file too")
        return path

    return fetch


def _read_configs(source: str, folder: Path) -> dict[str, Mapping[str, Any]]:
    # A link to nothing, or a folder, is no reason to assume what the file would have said.
    return {name: parse_json(source, folder / name) for name in CONFIG_FILES if os.path.lexists(folder / name)}


def _looks_like_hub_id(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None and not text.endswith((*SUFFIXES, ".json"))
