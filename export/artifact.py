"""The artifact: a folder that is opened with checks, and written whole or not at all.

    encoder.onnx        the graph
    encoder.onnx.data   its weights, found beside it wherever the folder goes
    encoder.plan        a TensorRT engine of it, and encoder.layers.json what that was compiled to (`fvexport trt`)
    manifest.json       what it is, how it was made, and the verdict

This folder is the only thing that passes between commands.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ArtifactError
from ..core.hashing import file_sha256
from ..core.input_file import check_regular, read_text
from ..core.output_path import check_place, new_scratch, os_errors, prepare, remove, scratch_beside
from .manifest import FileEntry, Manifest

MODEL_FILE = "encoder.onnx"
DATA_FILE = "encoder.onnx.data"
PLAN_FILE = "encoder.plan"
LAYERS_FILE = "encoder.layers.json"
MANIFEST_FILE = "manifest.json"
AGAIN = "export it again with `fvexport onnx --force`"


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its folder, and its manifest."""

    path: Path
    manifest: Manifest

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path.absolute(), self.manifest)  # wherever the other process is

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL_FILE

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Artifact:
        """Opens a folder that `fvexport onnx` wrote.

        Args:
            path: the folder.
            verify: read every file and compare its SHA-256, not only its size.

        Raises:
            ArtifactError: not an artifact, a damaged manifest, a file that is gone, was changed or is a link, or a
                graph that fvexport would not have written.
        """
        folder = Path(path)
        try:
            _finish_swap(folder)
            exists = folder.exists()
        except OSError as error:
            raise ArtifactError(f"cannot open {folder}: {error.strerror or error}") from None
        if not exists:
            raise ArtifactError(f"no artifact at {folder}; make one with `fvexport onnx --out {folder}`")
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is a file; an artifact is the folder that `fvexport onnx --out` writes")
        try:
            text = read_text(folder / MANIFEST_FILE)
        except FileNotFoundError:
            raise ArtifactError(f"{folder} holds no {MANIFEST_FILE}, so it is no artifact of fvexport") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"cannot read {folder / MANIFEST_FILE} ({error}); {AGAIN}") from None
        artifact = cls(folder, Manifest.from_json(text, str(folder / MANIFEST_FILE)))
        artifact._check_files(verify)
        return artifact

    def _check_files(self, verify: bool) -> None:
        if MODEL_FILE not in self.manifest.files:
            raise ArtifactError(f"{self.path / MANIFEST_FILE} names no {MODEL_FILE}; {AGAIN}")
        for name, entry in self.manifest.files.items():
            if not name or Path(name).name != name:
                raise ArtifactError(f"{self.path / MANIFEST_FILE} names {name!r}, outside the folder; {AGAIN}")
            file = self.path / name
            _check_member(file)
            size = file.stat().st_size
            if size != entry.bytes:
                raise ArtifactError(f"{file} has {size} bytes instead of {entry.bytes}; {AGAIN}")
            if verify and file_sha256(file) != entry.sha256:
                raise ArtifactError(f"{file} was changed after its export (SHA-256 differs); {AGAIN}")
        from .onnx_file import read_graph

        read_graph(self.model_path, self.manifest)


def _check_member(file: Path) -> None:
    """Raises ArtifactError unless a file that the manifest names is a regular file, and no link.

    Commands copy an artifact's files, and runtimes read them: a link would give both what it leads to.
    """
    try:
        if stat.S_ISLNK(file.lstat().st_mode):
            raise ArtifactError(
                f"{file} is a link, and would give away what it leads to; put the file itself there "
                "(`cp -rL` copies a folder so)"
            )
        check_regular(file)
    except (FileNotFoundError, ValueError):
        raise ArtifactError(f"{file} is gone; copy the folder whole, or {AGAIN}") from None
    except OSError as error:
        raise ArtifactError(f"{file} {error.strerror or error}; copy the folder whole, or {AGAIN}") from None


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and SHA-256 of every file of a folder but the manifest."""
    return {
        file.name: FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST_FILE
    }


# --- writing -----------------------------------------------------------------------------------


def check_writable(out: Path, *, force: bool, need_bytes: int = 0) -> None:
    """Fails before any work where the artifact could not be written at the end.

    Raises:
        ArtifactError: `out` exists and `force` is off, is something other than an artifact, lies
            where nothing can be written, or on a disk with less than `need_bytes` free.
    """
    if out.name in ("", ".."):
        raise ArtifactError(f"cannot write {out}: give --out the name of a folder of its own")
    try:
        _finish_swap(out)
        new_scratch(out).exists()
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    if out.exists() or out.is_symlink():
        empty = out.is_dir() and not any(out.iterdir())
        if not empty and not (out / MANIFEST_FILE).is_file():
            raise ArtifactError(f"{out} exists and is no artifact of fvexport; choose another --out")
        if not empty and not force:
            raise ArtifactError(f"{out} exists; replace it with --force (force=True) or choose another --out (out)")
    check_place(out, need_bytes)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to fill; takes its place when the block ends well, else vanishes.

    Killed at any moment, `out` is the old artifact or the new one. What a killed run left behind
    is removed by the next one.

    Raises:
        ArtifactError: the operating system refused (a full disk, a lost permission).
    """
    with os_errors(out), scratch_beside(out) as scratch:
        prepare(out)
        scratch.mkdir()
        yield scratch
        _sync(scratch)
        _swap(scratch, out)


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _swap(new: Path, out: Path) -> None:
    """Puts `new` at `out`; the old folder, if any, ends at `new`'s name for the caller to remove."""
    if not out.exists():
        new.rename(out)
    elif not _exchange(new, out):
        # No atomic exchange here: the old folder waits under a name that `_finish_swap` knows.
        old = out.parent / f".{out.name}.replaced"
        remove(old)
        out.rename(old)
        new.rename(out)
        remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two names in one step (Linux renameat2); False where the system or disk cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _finish_swap(out: Path) -> None:
    """Ends what a run killed in `_swap` began: the old folder comes back, or goes if the new one stands."""
    old = out.parent / f".{out.name}.replaced"
    if old.is_dir():
        with contextlib.suppress(OSError):
            if out.exists():
                remove(old)
            else:
                old.rename(out)
