"""`.NAME.encoding`, the folder beside an output in which it grows, and from which an interrupted run goes on.

    run.json    the request; a run with another one is refused
    lock        locked while a run lives
    result      what becomes the output: a file, or a folder of shards; with `placing`, perhaps what was the output
    placing     the result is whole, and is or was about to be put in its place
    pending-*   features of the shard that is being filled

What is in it stays when a run ends early, unless nothing was encoded yet.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...core.cleanup import surely, undone
from ...core.errors import ArtifactError
from ...core.input_file import read_bytes
from ...core.locks import try_lock
from ...core.output_path import TRIES, os_errors, remove, why_not_written
from ...core.records import RecordError
from .request import Request, read_request

RUN, LOCK, RESULT, PLACING = "run.json", "lock", "result", "placing"
MAX_RUN_BYTES = 1 << 20
BEGIN_AGAIN = "begin again with --force (force=True)"


class WorkingFolder:
    """The working folder of `out`, held by this run. Raises ArtifactError for an `out` that can only be a folder.

    Attributes:
        out: the output.
        path: of the folder.
        resumed: whether an earlier run with the same request left something here.
        keep: leave it there at the end, for the next run; set if it was resumed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        if self.out.name in ("", ".."):
            raise ArtifactError(f"cannot write {out}: it is a folder; name what is to be written with --out (out)")
        self.path = self.out.with_name(f".{self.out.name}.encoding")
        self.resumed = False
        self.keep = False

    @property
    def result(self) -> Path:
        """What becomes the output."""
        return self.path / RESULT

    @contextmanager
    def held(self, request: Request, *, force: bool) -> Iterator[None]:
        """Makes the folder or goes on with an earlier run's, and removes it at the end unless `keep` is set.

        Args:
            request: of this run.
            force: drop what a run with another request left.

        Raises ArtifactError: another run holds it, or an earlier one had another request.
        """
        made = [folder for folder in self.out.parents if not folder.exists()]
        with os_errors(self.out):
            descriptor = self._lock()
        self.keep = os.path.lexists(self.path / RUN)  # until it is known that nothing of it is wanted

        def remove_all() -> None:
            self._clear()
            with suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()
                for folder in made:  # those that have nothing in them
                    folder.rmdir()

        with undone(lambda: None if self._has_work() else remove_all()):
            try:
                with os_errors(self.out):
                    self._begin(request, force=force)
                    self.keep = self.resumed
                yield
            finally:
                if not self.keep:
                    surely(remove_all)
                if descriptor is not None:
                    os.close(descriptor)

    def _has_work(self) -> bool:
        """Whether anything that took work is in the folder."""
        try:
            files = [path for path in self.path.rglob("*") if path.name not in (RUN, LOCK) and path.is_file()]
            return any(path.stat().st_size for path in files)
        except OSError:
            return True

    @property
    def placing(self) -> bool:
        """Whether an earlier run was about to put its result in place, or had done so."""
        return (self.path / PLACING).exists()

    def mark_placing(self) -> None:
        """Says that the result is whole; called just before it is put in place."""
        (self.path / PLACING).touch()

    def restart(self, request: Request) -> None:
        """Drops what an earlier run left."""
        self.resumed = self.keep = False
        self._clear()
        self._record(request)

    def size(self) -> int:
        """Bytes of what an earlier run left."""
        total = 0
        with suppress(OSError):  # another run is at work
            for path in self.path.rglob("*"):
                total += path.stat().st_size
        return total

    def unfinished(self) -> Request | None:
        """What the run that left the folder was asked for; None if none did. Raises ArtifactError if it is damaged."""
        try:
            return read_request(read_bytes(self.path / RUN, MAX_RUN_BYTES))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return None
            why = why_not_written(error, self.path, elsewhere="mend that and run the command again")
            raise ArtifactError(f"cannot read {self.path / RUN}: {why}") from None
        except (ValueError, RecordError) as error:
            raise ArtifactError(f"{self.path / RUN} is damaged ({error}); {BEGIN_AGAIN}") from None

    def _begin(self, request: Request, *, force: bool) -> None:
        try:
            earlier = self.unfinished()
        except ArtifactError:
            if not force:
                raise
            earlier = None
        differs = [] if earlier is None else earlier.differs(request)
        if differs and not force and self._has_work():
            raise ArtifactError(
                f"{self.path} holds an unfinished run of {self.out.name} with another {', another '.join(differs)}; "
                f"repeat the command that began it, or {BEGIN_AGAIN}"
            )
        if earlier is None or differs:
            self.restart(request)
        else:
            self.resumed = True

    def _record(self, request: Request) -> None:
        begun = self.path / f"{RUN}.new"
        begun.write_text(request.to_json())
        begun.replace(self.path / RUN)

    def _lock(self) -> int | None:
        """Makes the folder and locks it; None where the file system has no locks."""
        for _ in range(TRIES):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink():
                raise ArtifactError(f"{self.path} is a link; remove it")
            self.path.mkdir(exist_ok=True)
            lock = self.path / LOCK
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            except FileNotFoundError:  # the run that held it has just ended
                continue
            locked = try_lock(descriptor)
            if locked is False:
                os.close(descriptor)
                raise ArtifactError(f"another run writes {self.out}; wait for it, or choose another --out (out)")
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    if locked:
                        return descriptor
                    os.close(descriptor)
                    return None
            os.close(descriptor)
        raise ArtifactError(f"another run writes {self.out}; wait for it, or choose another --out (out)")

    def _clear(self) -> None:
        """Removes everything but the lock; the request last, so that a kill meanwhile leaves nothing without one."""
        with suppress(OSError):
            for path in sorted(self.path.iterdir(), key=lambda path: path.name == RUN):
                if path.name != LOCK:
                    remove(path)
