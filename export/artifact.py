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
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ArtifactError, first_line
from ..core.hashing import file_sha256
from ..core.output_path import check_place, new_scratch, os_errors, prepare, remove, scratch_beside
from ..core.shell import quoted
from .manifest import FileEntry, Manifest

if TYPE_CHECKING:
    import onnx

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
            ArtifactError: not an artifact, a damaged manifest, a file that is gone or was
                changed, or weights that the graph looks for outside the folder.
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
            text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
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
            if Path(name).name != name:
                raise ArtifactError(f"{self.path / MANIFEST_FILE} names {name!r}, outside the folder; {AGAIN}")
            file = self.path / name
            if not _is_file(file):
                raise ArtifactError(f"{file} is gone; copy the folder whole, or {AGAIN}")
            check_link(file)
            size = file.stat().st_size
            if size != entry.bytes:
                raise ArtifactError(f"{file} has {size} bytes instead of {entry.bytes}; {AGAIN}")
            if verify and file_sha256(file) != entry.sha256:
                raise ArtifactError(f"{file} was changed after its export (SHA-256 differs); {AGAIN}")
        check_external_data(self.model_path)


def check_external_data(model_path: Path) -> None:
    """Raises ArtifactError where the ONNX file is unreadable or its weights lie outside its folder."""
    import onnx

    try:
        model = onnx.load(str(model_path), load_external_data=False)
    except Exception as error:  # protobuf raises its own DecodeError, onnx others
        raise ArtifactError(f"{model_path} is not a readable ONNX file ({first_line(error)}); {AGAIN}") from None
    nodes = [node for function in model.functions for node in function.node]
    for tensor in (*_tensors(model.graph), *_node_tensors(nodes)):
        location = next((e.value for e in tensor.external_data if e.key == "location"), None)
        if location is None:
            continue
        file = model_path.parent / location
        if Path(location).name != location:
            raise ArtifactError(
                f"{model_path} looks for weights at {location!r}, outside its folder; do not use it unless you made it"
            )
        if not _is_file(file):
            raise ArtifactError(f"{file} is gone, which holds the weights of {model_path.name}; {AGAIN}")
        check_link(file)


def check_link(file: Path) -> None:
    """Raises ArtifactError if an artifact's file is a link, unless into the blobs of the Hugging Face cache it is in.

    That cache has files as `models--<id>/snapshots/<commit>/<path>`, each a link to `models--<id>/blobs/<hash>`.
    """
    if not file.is_symlink():
        return
    target = file.resolve()
    folder = file.parent.resolve()
    if any(parent.name == "snapshots" and target.parent == parent.parent / "blobs" for parent in folder.parents):
        return
    raise ArtifactError(
        f"{file} is a link to {target}, and an artifact's files must not lead elsewhere; copy it to a file "
        f"(`cp -rL {quoted(file.parent)} COPY` copies the whole artifact)"
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name too long for the disk


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
