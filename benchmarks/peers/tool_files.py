"""Files that another tool makes of the weights: made once, kept beside a note of the tool's settings."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import io
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ...core.errors import UnavailableError
from ...core.input_file import read_json
from ...core.records import Name, Record, Text, matching, parse, plain
from ...core.versions import versions_of
from ...encoder.checkpoint import Checkpoint
from .photos import Photographs

MADE_FILE = "made.json"


@dataclass(frozen=True)
class Job:
    """What a tool is given.

    Attributes:
        photographs: the calibration inputs.
        checkpoint: loads the weights.
        fp32: our FP32 file of them.
    """

    photographs: Photographs
    checkpoint: Callable[[], Checkpoint]
    fp32: Path


@dataclass(frozen=True)
class Tool:
    """One row.

    Attributes:
        settings: in words.
        make: writes into the empty folder it is given, and returns the model's path.
        needs: modules that must be installed.
        install: the command that installs them.
    """

    settings: str
    make: Callable[[Job, Path], Path]
    needs: tuple[str, ...] = ()
    install: str = ""


@dataclass(frozen=True)
class Made:
    """A file that a tool made.

    Attributes:
        path: the model.
        size: bytes of it and its weights.
        seconds: it took to make.
        versions: of the tools at that time.
        reused: it stood in the folder already.
    """

    path: Path
    size: int
    seconds: float
    versions: dict[str, str]
    reused: bool


class _Note(Record, frozen=True, kw_only=True):
    """What is written beside a file when it has been made."""

    path: Annotated[
        str,
        matching(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99})*\Z", "a path in the folder"),
    ]
    settings: Text
    seconds: Annotated[float, Meta(ge=0, le=1e12)]
    versions: dict[Name, Name]


def _read_note(note: Path) -> _Note | None:
    """None if there is none, or none that can be read: the file is then made again."""
    try:
        return parse(read_json(note), _Note)
    except (OSError, ValueError):
        return None


def make(tool: Tool, job: Job, folder: Path) -> Made:
    """Runs a tool, or takes the file it left in `folder` with the same settings.

    Raises UnavailableError where the tool is not installed and has left no file.
    """
    note = folder / MADE_FILE
    known = _read_note(note)
    if known is not None and known.settings == tool.settings and (path := folder / known.path).is_file():
        return Made(path, _size(path), known.seconds, known.versions, reused=True)
    missing = [name for name in tool.needs if _absent(name)]
    if missing:
        raise UnavailableError(f"{missing[0]} is not installed: {tool.install}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    try:
        with _quiet():
            path = tool.make(job, folder)
    finally:
        release()
    made = _Note(
        path=str(path.relative_to(folder)), settings=tool.settings, seconds=time.perf_counter() - start,
        versions=versions_of("fvexport", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
                             "nvidia-modelopt"),
    )  # fmt: skip
    note.write_text(json.dumps(plain(made), indent=2) + "\n", encoding="utf-8")
    return Made(path, _size(path), made.seconds, made.versions, reused=False)


def release() -> None:
    """Returns freed heap memory to the system, which glibc does not do by itself."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _absent(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is None or spec.origin is None  # without an origin it is a folder that happens to have the name


def _size(model: Path) -> int:
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.stem}.*"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars and remarks of the tools off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
