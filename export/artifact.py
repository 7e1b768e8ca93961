"""The artifact: a folder that is opened with checks, and written whole or not at all.

    encoder.onnx        the graph
    encoder.onnx.data   its weights, found beside it wherever the folder goes
    encoder.plan        a TensorRT engine of it, and encoder.layers.json what that was compiled to (`fvexport trt`)
    manifest.json       what it is, how it was made, and the verdict

This folder is the only thing that passes between commands.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ArtifactError, one_line
from ..core.hashing import file_sha256
from ..core.held_folder import HeldFolder
from ..core.input_file import check_regular, read_json, read_text
from ..core.output_path import (
    FORCE,
    check_place,
    is_leftover,
    os_errors,
    put_folder,
    remove_leftovers,
    scratch_beside,
    waiting_folder,
)
from ..core.shell import quoted
from .manifest import FileEntry, Manifest

MODEL_FILE = "encoder.onnx"
DATA_FILE = "encoder.onnx.data"
PLAN_FILE = "encoder.plan"
LAYERS_FILE = "encoder.layers.json"
BLOCK_SCALES_FILE = "block_scales.safetensors"
"""Factors of block outputs over the checkpoint's, in artifacts that carry their stream at another scale."""

MANIFEST_FILE = "manifest.json"
OWN_FILES = frozenset((MODEL_FILE, DATA_FILE, PLAN_FILE, LAYERS_FILE, BLOCK_SCALES_FILE, MANIFEST_FILE))
DESKTOP_FILES = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))
"""Of file managers, which put them into every folder that is looked at."""
OPENINGS = 5
"""How often an artifact that another run replaces at the same moment is opened."""
AGAIN = "export it again with `fvexport onnx --force`"


class _ReplacedError(ArtifactError):
    """Another run replaced the artifact while it was read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} was replaced by another run while it was read; run the command again")


@dataclass(frozen=True)
class Artifact:
    """An opened artifact.

    Attributes:
        path: its folder.
        manifest: its manifest.
        held: the folder as it was opened; None if this process has just written it.
    """

    path: Path
    manifest: Manifest
    held: HeldFolder | None = field(default=None, repr=False, compare=False)

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
        given = Path(path)
        problem: ArtifactError | None = None
        for _ in range(OPENINGS):
            folder = waiting_folder(given) or given  # where another run has moved it away for a moment
            try:
                return cls._opened(folder, verify=verify)
            except ArtifactError as error:
                if not isinstance(error, _ReplacedError) and os.path.lexists(folder):
                    raise
                problem = error
        assert problem is not None
        raise problem

    @classmethod
    def _opened(cls, folder: Path, *, verify: bool) -> Artifact:
        try:
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise ArtifactError(f"{folder} is a file; an artifact is the folder that `fvexport onnx --out` writes")
            held = HeldFolder(folder)
        except FileNotFoundError:
            raise ArtifactError(f"no artifact at {folder}; make one with `fvexport onnx --out {folder}`") from None
        except OSError as error:
            raise ArtifactError(f"cannot open {folder}: {error.strerror or error}") from None
        try:
            text = read_text(folder / MANIFEST_FILE)
        except FileNotFoundError:
            if not held.is_at(folder):
                raise _ReplacedError(folder) from None
            raise ArtifactError(f"{folder} holds no {MANIFEST_FILE}, so it is no artifact of fvexport") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"cannot read {folder / MANIFEST_FILE} ({error}); {AGAIN}") from None
        artifact = cls(folder, Manifest.from_json(text, str(folder / MANIFEST_FILE)), held)
        with artifact.one_version():
            artifact._check_files(verify)
        return artifact

    @contextlib.contextmanager
    def one_version(self) -> Iterator[None]:
        """Raises ArtifactError if the folder was replaced since it was opened, whatever else the block raises.

        Within the block, files of the artifact are read: without this, the manifest could be of one version and the
        weights of another.
        """
        try:
            yield
        except Exception:
            if not self.is_current():
                raise _ReplacedError(self.path) from None
            raise
        if not self.is_current():
            raise _ReplacedError(self.path)

    def is_current(self) -> bool:
        """Whether the folder at `path` is the one that was opened."""
        return self.held is None or self.held.is_at(self.path)

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
    """Raises ArtifactError unless a file that the manifest names is a regular file.

    Commands copy an artifact's files, and runtimes read them: a link would give both what it leads to. So the only
    links that are accepted are those of the Hugging Face cache, whose files are
    `models--<id>/snapshots/<commit>/<path>`, each a link to `models--<id>/blobs/<hash>`.
    """
    try:
        if file.is_symlink():
            target, folders = file.resolve(), file.parent.resolve().parents
            if not any(folder.name == "snapshots" and target.parent == folder.parent / "blobs" for folder in folders):
                raise ArtifactError(
                    f"{file} is a link to {target}, and would give away what it leads to; put the file itself there "
                    f"(`cp -rL {quoted(file.parent)} COPY` copies a folder so)"
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
    remove_leftovers(out)
    check_place(out, need_bytes)
    if out.exists() or out.is_symlink():
        empty = out.is_dir() and not any(out.iterdir())
        if not empty:
            _check_replaceable(out)
        if not empty and not force:
            raise ArtifactError(f"{out} exists; {FORCE}")


def is_artifact(folder: Path) -> bool:
    """Whether the folder is an artifact, whole or damaged, and holds nothing else: whether it may be replaced."""
    try:
        _check_replaceable(folder)
    except ArtifactError:
        return False
    return True


def _check_replaceable(folder: Path) -> None:
    """Raises ArtifactError for what is no artifact, and for an artifact that holds files which no export writes."""
    try:
        entries = sorted(folder.iterdir())
        named = _files_named(folder)
        foreign = [] if named is None else [entry for entry in entries if not _is_own(entry, named)]
    except OSError:  # a file, a link to nothing, a folder or a manifest that cannot be read
        named, foreign = None, []
    if named is None:
        raise ArtifactError(f"{folder} exists and is no artifact of fvexport; choose another --out")
    if foreign:
        raise ArtifactError(
            f"{folder} holds {one_line(foreign[0].name)}, which is no file of an artifact; move it away or choose "
            "another --out"
        )


def _files_named(folder: Path) -> frozenset[str] | None:
    """The files that the manifest of a folder names; None if no version of fvexport wrote it.

    Raises OSError if there is no manifest, or none that can be read.
    """
    try:
        manifest = read_json(folder / MANIFEST_FILE)
    except ValueError:  # empty, cut off or damaged: of an artifact if the graph is beside it
        return frozenset() if (folder / MODEL_FILE).is_file() else None
    if not isinstance(manifest, dict) or not {"schema_version", "checkpoint", "files"} <= manifest.keys():
        return None
    return frozenset(manifest["files"]) if isinstance(manifest["files"], dict) else frozenset()


def _is_own(entry: Path, named: frozenset[str]) -> bool:
    """Whether an export wrote that entry of an artifact's folder, or it is nothing that anybody misses."""
    if entry.name in OWN_FILES | DESKTOP_FILES | named:
        return entry.is_symlink() or not entry.is_dir()
    return is_leftover(entry)


@contextlib.contextmanager
def writing(out: Path, *, force: bool, ours: Callable[[Path], bool] = is_artifact) -> Iterator[Path]:
    """A new folder to fill; takes the place of `out` when the block ends well, else vanishes.

    Killed at any moment, `out` is the old artifact or the new one. What a killed run left behind
    is removed by the next one.

    Args:
        out: the place.
        force: replace what another run has written there meanwhile.
        ours: whether a folder that is there may be replaced.

    Raises:
        ArtifactError: the operating system refused (a full disk, a lost permission), or `out` must not be replaced.
    """
    with os_errors(out), scratch_beside(out) as scratch:
        scratch.mkdir()
        yield scratch
        _sync(scratch)
        put_folder(scratch, out, force=force, ours=ours)


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
