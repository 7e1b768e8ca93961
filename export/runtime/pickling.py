"""What holds a runtime's session, between processes: pickled as how it was opened, and refused after a fork.

A session is memory and threads of one process. Pickles, deep copies and spawned workers therefore open the artifact
again, by its path. A forked process inherits the memory without the threads: PyTorch's OpenMP threads then wait for
each other forever, and the other runtimes promise nothing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import ArtifactError, FvexportError, UnavailableError
from ...core.records import plain
from ..artifact import MODEL_FILE, Artifact
from ..manifest import Manifest


@dataclass(frozen=True)
class Recipe:
    """How an object was opened.

    Attributes:
        folder: of the artifact, absolute, since the current directory may change.
        fingerprint: of the artifact (see `fingerprint`).
        arguments: by name, all but the artifact. A checkpoint that is a local path is absolute; one that was given as
            an object is pickled with its weights.
    """

    folder: Path
    fingerprint: str
    arguments: dict[str, Any]

    def __deepcopy__(self, _memo: object) -> Recipe:
        return self  # nothing here changes, and a checkpoint can be large


class Opened:
    """Base of classes whose first argument is an opened artifact, and which hold a runtime's session of it.

    Thread-safe: what a subclass keeps from one call to the next is locked or read only.
    """

    _recipe: Recipe
    _pid: int

    def _opened(self, artifact: Artifact, **arguments: Any) -> None:
        """Remembers how the object was opened, and in which process."""
        checkpoint = arguments.get("checkpoint")
        if isinstance(checkpoint, (str, os.PathLike)) and Path(checkpoint).exists():
            arguments["checkpoint"] = str(Path(checkpoint).absolute())
        self._recipe = Recipe(artifact.path.absolute(), fingerprint(artifact.manifest), arguments)
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._recipe)

    def check_process(self) -> None:
        """Raises UnavailableError in a process that was forked off after the object was made."""
        if os.getpid() != self._pid:
            raise UnavailableError(
                f"this {type(self).__name__} was made before the process forked, which leaves its runtime's threads "
                f"behind; make one in each worker, or start workers with multiprocessing's 'spawn'"
            )


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 of what features depend on: the ONNX file and its weights, the checkpoint, and the preprocessing.

    An engine that is built beside the file, or a verdict that is added, is no other artifact.
    """
    files = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith(MODEL_FILE)}
    parts = [files, manifest.checkpoint.sha256, manifest.input, manifest.output, manifest.preprocessor]
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()


class Unopened:
    """What a worker has in the place of an object that it could not open again: any use raises the reason.

    An error while a worker reads a task ends the worker, and `multiprocessing.Pool` would wait for that task forever.
    """

    def __init__(self, cls: Any, recipe: Recipe, reason: FvexportError) -> None:
        self._made_by = cls, recipe
        self._reason = reason

    def __call__(self, *_: object, **_named: object) -> Any:
        """Raises the reason."""
        raise self._reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for methods that no class has to have
            raise AttributeError(name)
        if callable(getattr(self._made_by[0], name, None)):  # a pickled method is looked up while the task is read
            return self
        raise self._reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._made_by


def _reopen(cls: Any, recipe: Recipe) -> Any:
    """The object anew; in a worker of multiprocessing one that raises at its first use, if it cannot be opened.

    Raises FvexportError elsewhere if it cannot.
    """
    try:
        return _opened_again(cls, recipe)
    except FvexportError as error:
        if multiprocessing.parent_process() is None:
            raise
        return Unopened(cls, recipe, error)


def _opened_again(cls: Any, recipe: Recipe) -> Any:
    """The object anew, of the artifact in the same folder; raises ArtifactError if that is gone or another one."""
    if not recipe.folder.exists():
        raise ArtifactError(
            f"no artifact at {recipe.folder}, which this {cls.__name__} was made of; move it back, or make another "
            f"{cls.__name__} from where it is now"
        )
    artifact = Artifact.open(recipe.folder)
    if fingerprint(artifact.manifest) != recipe.fingerprint:
        raise ArtifactError(
            f"{recipe.folder} was replaced after this {cls.__name__} was made of it; make another {cls.__name__}"
        )
    return cls(artifact, **recipe.arguments)


def check_torch_forked(threads: int) -> None:
    """Raises UnavailableError where PyTorch would hang: in a process forked off after `torch_computed` was called.

    Args:
        threads: that PyTorch would compute with; one needs none of the threads that the fork left behind.
    """
    if _torch_pid not in (None, os.getpid()) and threads > 1:
        raise UnavailableError(
            "PyTorch computed in this process's parent before the fork, and would wait for threads that were left "
            "behind; start workers with multiprocessing's 'spawn', or call torch.set_num_threads(1) in them first"
        )


def torch_computed() -> None:
    """Remembers that PyTorch computes in this process."""
    global _torch_pid  # noqa: PLW0603  # as the threads are
    if _torch_pid is None:
        _torch_pid = os.getpid()


_torch_pid: int | None = None
