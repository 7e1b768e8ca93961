"""Writing a result: check its place before the work, make it in a scratch folder, and rename it when it is whole.

The scratch folder `.NAME.writing-xxxxxxxx` lies beside the result and holds

    NAME        what is being written
    lock        locked while the run lives, whichever container or user it runs in
    replaced    the old folder, for a moment, where the system cannot exchange two names

What a killed run left is removed by the next run with the same output. Where the file system has no locks, nobody can
tell a live run from a killed one, and leftovers stay.

Only a regular file, a link, an empty folder or a folder of the kind that is written is ever replaced. Of a link it is
the link itself.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import random
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .cleanup import surely, undone
from .errors import ArtifactError, FvexportError
from .input_file import kind_of
from .locks import try_lock

LOCK, REPLACED = "lock", "replaced"
TRIES = 100
"""How often a name is tried that other runs take or free at the same moment."""
LOOKS = 5
"""How often a folder must be found to be none of ours: another run may replace it just then."""
PAUSE_SECONDS = 0.05
"""The longest wait between two of these tries."""
FORCE = "replace it with --force (force=True) or choose another --out (out)"
_SCRATCH_NAME = re.compile(r"\..*\.writing-[0-9a-f]{8}", re.DOTALL)
_ANOTHER_WAS_FASTER = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_AT_CWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2  # of Linux' renameat2


# --- before the work --------------------------------------------------------------------------------


def check_place(out: Path, need_bytes: int) -> None:
    """Raises ArtifactError if `out` cannot be written, or its disk has less than `need_bytes` free."""
    parent = out.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {out}: {parent} is not a folder; choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {out}: no permission in {parent}; choose another --out")
    try:
        _new_name(out).exists()
    except OSError as error:  # a name that is too long
        raise ArtifactError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    usage = shutil.disk_usage(parent)
    free = usage.free
    if free < need_bytes and usage.total == 0:  # /proc, /sys
        raise ArtifactError(f"cannot write {out}: the file system of {parent} takes no files; choose another --out")
    if free < need_bytes:
        raise ArtifactError(
            f"cannot write {out}: {_megabytes(need_bytes)} MB needed, {_megabytes(free)} MB free on its disk; "
            "free some space or choose another --out"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f}" if count >= 1e7 else f"{count / 1e6:.3g}"


def check_file(out: Path, *, force: bool, need_bytes: int = 0) -> None:
    """Raises ArtifactError if the file `out` cannot be written.

    Args:
        out: the file.
        force: an existing file may be replaced.
        need_bytes: that its disk must have free.
    """
    if out.name in ("", ".."):
        raise ArtifactError(f"cannot write {out}: it is a folder; name a file with --out")
    check_place(out, need_bytes)
    check_no_special_file(out)
    if os.path.lexists(out) and not force:
        raise ArtifactError(f"{out} exists; {FORCE}")


def check_no_special_file(out: Path) -> None:
    """Raises ArtifactError if a folder, device, FIFO or socket is at `out`, or a link to one."""
    try:
        found = kind_of(out.lstat().st_mode)
        if out.is_symlink():
            # /dev/stdout links into /proc, to whatever the stream is.
            through_proc = os.fspath(out.readlink()).startswith("/proc/")
            found = "a link to an open stream" if through_proc else kind_of(out.stat().st_mode)
    except FileNotFoundError:
        return  # nothing there, or a link to nothing
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    if found is not None:
        raise ArtifactError(f"{out} is {found}, not a regular file; choose another --out")


# --- while working ----------------------------------------------------------------------------------


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A path in a new folder beside `out` with the same name, to be written and then put at `out`.

    Makes the folder of `out`, and removes what killed runs left in it. At the end the scratch folder is removed with
    everything in it. Errors of the block that name the path name `out` instead.

    Raises OSError where the scratch folder cannot be made.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    made = _Scratch()
    with undone(made.remove):
        try:
            made.make(out)
            scratch = made.folder / out.name
            try:
                yield scratch
            except FvexportError as error:
                error.args = (str(error).replace(str(scratch), str(out)), *error.args[1:])
                raise
        finally:
            surely(made.remove)


def remove_leftovers(out: Path, first: Callable[[Path], object] | None = None) -> None:
    """Removes the scratch folders of killed runs that wrote `out`; puts an old folder back that one had moved away.

    Args:
        out: the place.
        first: called with each of these folders before it is removed.
    """
    for folder in _scratch_folders(out):
        with suppress(OSError):  # another user's, or another run removes it too
            _remove_leftover(folder, out, first)


def waiting_folder(out: Path) -> Path | None:
    """The old folder that a run moved away from `out`, and did not replace yet; None if there is none."""
    if os.path.lexists(out):
        return None
    found = (folder / REPLACED for folder in _scratch_folders(out))
    return next((folder for folder in found if folder.is_dir()), None)


@contextmanager
def os_errors(out: Path) -> Iterator[None]:
    """Turns an OSError while writing `out` into ArtifactError."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(os.fsdecode(error.filename)).absolute()
        if named and not named.is_relative_to(out.absolute().parent):
            raise  # about another file
        raise ArtifactError(f"cannot write {out}: {why_not_written(error, out.absolute().parent)}") from error


def why_not_written(error: OSError, folder: Path, *, elsewhere: str = "choose another --out") -> str:
    """The reason and the fix, for an error of writing in `folder`."""
    number = error.errno
    if number is None:  # NumPy's `tofile` and others keep the number to themselves
        number = _likely_number(folder)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; free some space or {elsewhere}"
    if number == errno.EFBIG:
        return f"the file would be larger than this user's limit (ulimit -f); raise it or {elsewhere}"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many open files; raise the limit with `ulimit -n`"
    reason = error.strerror or str(error)
    if number in (errno.EACCES, errno.EPERM):
        return f"{reason}; check the permissions of {folder} or {elsewhere}"
    return f"{reason}; {elsewhere}"


def _likely_number(folder: Path) -> int | None:
    with suppress(OSError, ImportError, ValueError):
        if shutil.disk_usage(folder).free < 1 << 20:
            return errno.ENOSPC
        import resource

        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            return errno.EFBIG
    return None


# --- at the end -------------------------------------------------------------------------------------


def put_file(scratch: Path, out: Path, *, force: bool = True) -> None:
    """Renames a finished file to `out`; without `force` only if nothing has come there meanwhile.

    Raises:
        ArtifactError: something that must not be replaced is there.
        OSError: the system refused.
    """
    check_no_special_file(out)
    if force:
        scratch.replace(out)
        return
    try:
        _rename_to_free_name(scratch, out)
    except FileExistsError:
        raise _taken(out) from None


def put_folder(scratch: Path, out: Path, *, force: bool, ours: Callable[[Path], bool]) -> None:
    """Renames a finished folder to `out`.

    A reader sees the old folder or the new one. The old one ends in the scratch folder.

    Args:
        scratch: as `scratch_beside` gave it.
        out: the place.
        force: replace a folder that is there; without it, only an empty one.
        ours: whether a folder may be replaced.

    Raises:
        ArtifactError: something that must not be replaced is there.
        OSError: the system refused.
    """
    foreign = 0
    for tried in range(TRIES):
        if tried:  # other runs rename it too: each waits another while, so that they part
            time.sleep(random.uniform(0, PAUSE_SECONDS))
        empty = _is_empty_folder(out)
        if not os.path.lexists(out) or (empty and not out.is_symlink()):
            try:
                if empty and sys.platform == "win32":
                    out.rmdir()
                scratch.rename(out)  # replaces an empty folder, and nothing else
            except OSError as error:
                if error.errno not in _ANOTHER_WAS_FASTER:
                    raise
                continue
            return
        if not empty:
            if not out.is_dir() or not ours(out):
                foreign += 1
                if foreign < LOOKS:
                    continue
                raise ArtifactError(f"{out} exists and is not what this command writes; choose another --out")
            if not force:
                raise _taken(out)
        try:
            if not _renameat2(scratch, out, _EXCHANGE):
                _replace_in_two_steps(scratch, out)
            return
        except OSError as error:
            if error.errno not in (*_ANOTHER_WAS_FASTER, errno.ENOENT):
                raise
    raise ArtifactError(f"cannot write {out}: other runs write it too; wait for them or choose another --out")


def remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a whole folder; a missing path is no error."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():  # `rmtree` needs several descriptors, of which none may be left
        with suppress(OSError):
            for inner in list(path.iterdir()):
                remove(inner)
            path.rmdir()


def _taken(out: Path) -> ArtifactError:
    return ArtifactError(f"another run has written {out} meanwhile; {FORCE}")


def _rename_to_free_name(scratch: Path, out: Path) -> None:
    """Renames a file; raises FileExistsError if the name is taken."""
    if sys.platform == "win32":
        scratch.rename(out)
        return
    if _renameat2(scratch, out, _NO_REPLACE):
        return
    # Without renameat2, or on a file system without this flag: an empty file takes the name first.
    os.close(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        scratch.replace(out)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Renames with a flag of Linux' renameat2; False where the system or the file system lacks it.

    Raises OSError if it can, and refuses.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform.startswith("linux") else None
    if call is None:
        return False
    if call(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):  # EPERM: a container's filter
        return False
    raise OSError(number, os.strerror(number), os.fspath(target))


def _replace_in_two_steps(scratch: Path, out: Path) -> None:
    """Replaces a folder without an atomic exchange.

    If this run is killed in between, `waiting_folder` finds the old folder, and the next run puts it back.
    """
    old = scratch.with_name(REPLACED)
    remove(old)  # of a try before this one, when another run was faster
    out.rename(old)
    try:
        scratch.rename(out)
    except BaseException:
        with suppress(OSError):  # another run was faster
            old.rename(out)
        raise
    remove(old)


def _is_empty_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not any(path.iterdir())
    except OSError:
        return False


# --- scratch folders --------------------------------------------------------------------------------


def _new_name(out: Path) -> Path:
    return out.absolute().parent / f".{out.name}.writing-{secrets.token_hex(4)}"


def _scratch_folders(out: Path) -> list[Path]:
    """The scratch folders of all runs that write `out`, live or killed."""
    try:
        beside = list(out.absolute().parent.glob(f".{glob.escape(out.name)}.writing-*"))
    except OSError:
        return []
    return [path for path in beside if _is_scratch_folder(path)]


def _is_scratch_folder(path: Path) -> bool:
    return _SCRATCH_NAME.fullmatch(path.name) is not None and not path.is_symlink() and path.is_dir()


def is_leftover(path: Path) -> bool:
    """Whether a path is a scratch folder that holds no finished result which a run had moved away."""
    return _is_scratch_folder(path) and (path / LOCK).is_file() and not os.path.lexists(path / REPLACED)


class _Scratch:
    """A scratch folder and the lock that says that this run lives.

    Attributes:
        folder: known before it is made, so that it can be removed whenever this run is interrupted.
        descriptor: of the lock; None where the file system has no locks.
    """

    def __init__(self, folder: Path = Path(), descriptor: int | None = None) -> None:
        self.folder, self.descriptor = folder, descriptor

    def make(self, out: Path) -> None:
        """Makes a folder beside `out` and locks it; raises OSError."""
        for _ in range(TRIES):
            self.folder = _new_name(out)
            self.folder.mkdir()
            lock = self.folder / LOCK
            try:
                self.descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:  # another run took the empty folder for a leftover
                continue
            locked = try_lock(self.descriptor)
            if locked is None:
                self._close()
                lock.unlink()  # other runs leave a folder without a lock alone
                return
            if locked and os.path.lexists(lock):
                return
            self._close()  # another run locked it first, and removes it as a leftover
        raise OSError(errno.EBUSY, "other runs remove its temporary files", os.fspath(out))

    def remove(self) -> None:
        """Removes the folder, its lock last: if this run is killed meanwhile, the next one goes on."""
        if self.folder == Path():
            return
        with suppress(OSError):
            if not self._empty():
                self._close()  # for one more descriptor; with content it is no folder that a run has just made
                self._empty()
        for _ in range(2):  # Windows removes no open file
            with suppress(OSError):
                (self.folder / LOCK).unlink(missing_ok=True)
                self.folder.rmdir()
            # Not before the lock has no name: the run that has just made this folder would take it for its own.
            self._close()

    def _empty(self) -> bool:
        """Removes all but the lock; False if something stays."""
        with suppress(OSError):
            for path in list(self.folder.iterdir()):
                if path.name != LOCK:
                    remove(path)
            return all(path.name == LOCK for path in self.folder.iterdir())
        return False

    def _close(self) -> None:
        if self.descriptor is not None:
            descriptor, self.descriptor = self.descriptor, None
            os.close(descriptor)


def _remove_leftover(folder: Path, out: Path, first: Callable[[Path], object] | None) -> None:
    """Removes a scratch folder whose lock nobody holds."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        folder.rmdir()  # killed before it had its lock; a folder with content stays
        return
    if not try_lock(descriptor):
        os.close(descriptor)
        return
    if first is not None:
        first(folder)
    old = folder / REPLACED
    if old.is_dir() and not os.path.lexists(out):
        old.rename(out)
    _Scratch(folder, descriptor).remove()
