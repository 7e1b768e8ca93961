"""`ship`: an artifact's files in Ray's object store, for nodes that do not have its folder."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ArtifactError, UnavailableError
from ..core.input_file import open_regular, read_bytes
from ..export.artifact import MANIFEST_FILE, Artifact

if TYPE_CHECKING:
    import ray

PIECE_BYTES = 256 << 20
"""Most bytes of one object: a node's object store must have room for it."""


@dataclass(frozen=True)
class ShippedArtifact:
    """An artifact in Ray's object store; a pickle holds references, not the files.

    Attributes:
        path: the folder that it was read from, absolute.
        manifest_sha256: of its manifest, which holds the hashes of all other files.
        files: each file's content, in pieces.
    """

    path: str
    manifest_sha256: str
    files: dict[str, list[ray.ObjectRef[Any]]]

    def open(self) -> Artifact:
        """The artifact in its own folder if this node has the same one there, else unpacked, once per node.

        It is unpacked into a temporary folder that only this user can read, and every file's hash is compared.

        Raises:
            ArtifactError: what arrived is not what was shipped.
            UnavailableError: the temporary folder cannot be written, or belongs to somebody else.
        """
        if _manifest_sha256(Path(self.path)) == self.manifest_sha256:
            return Artifact.open(self.path)
        try:
            return self._unpacked(_private_folder())
        except OSError as error:
            raise UnavailableError(
                f"cannot unpack the artifact in {tempfile.gettempdir()} ({error.strerror or error}); free some space "
                "there, set TMPDIR on the nodes, or put the artifact on storage that all nodes see"
            ) from error

    def _unpacked(self, home: Path) -> Artifact:
        import filelock
        import ray

        folder = home / self.manifest_sha256[:32]
        with filelock.FileLock(f"{folder}.lock"):
            if _manifest_sha256(folder) == self.manifest_sha256:
                return Artifact.open(folder)
            for leftover in home.glob(f"{folder.name}.*.part"):  # of a worker that was killed; the lock is ours
                shutil.rmtree(leftover, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            scratch = home / f"{folder.name}.{secrets.token_hex(4)}.part"
            scratch.mkdir(mode=0o700)
            try:
                for name, pieces in self.files.items():
                    with (scratch / Path(name).name).open("xb") as file:
                        for piece in pieces:
                            file.write(ray.get(piece))
                if _manifest_sha256(scratch) != self.manifest_sha256:
                    raise ArtifactError("the artifact was damaged on its way to this node; run the command again")
                Artifact.open(scratch, verify=True)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return Artifact.open(folder)


def ship(artifact: str | os.PathLike[str] | Artifact) -> ShippedArtifact:
    """Puts an artifact's files into the object store of the Ray cluster that this process is connected to.

    Give the result to `EncodeImages` in the place of a folder. It lives as long as this process is connected.

    Raises ArtifactError if it is no usable artifact, or was replaced meanwhile.
    """
    import ray

    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    files: dict[str, list[ray.ObjectRef[Any]]] = {}
    with opened.one_version():
        content = read_bytes(opened.path / MANIFEST_FILE)
        files[MANIFEST_FILE] = [ray.put(np.frombuffer(content, np.uint8))]
        for name in opened.manifest.files:
            with open_regular(opened.path / name) as stream:
                files[name] = [
                    ray.put(np.frombuffer(piece, np.uint8)) for piece in iter(lambda: stream.read(PIECE_BYTES), b"")
                ]
    return ShippedArtifact(os.fspath(opened.path.absolute()), hashlib.sha256(content).hexdigest(), files)


def _manifest_sha256(folder: Path) -> str | None:
    """Of the manifest in a folder; None if there is none."""
    try:
        return hashlib.sha256(read_bytes(folder / MANIFEST_FILE)).hexdigest()
    except OSError:
        return None


def _private_folder() -> Path:
    """The user's own folder for artifacts, which nobody else can write."""
    user = getattr(os, "getuid", lambda: 0)()
    home = Path(tempfile.gettempdir(), f"fvexport-artifacts-{user}")
    home.mkdir(mode=0o700, exist_ok=True)
    found = home.lstat()
    if os.name == "posix" and (not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077):
        raise UnavailableError(f"{home} is open to other users; remove it, or set TMPDIR on the nodes")
    return home
