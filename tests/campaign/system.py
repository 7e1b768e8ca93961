"""What the faults do to a process and its disks: limits, another user, namespaces, mounts (Linux)."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cases import Skipped
from commands import Place

NOBODY = 54321
"""A user id without an entry in the list of users."""

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise Skipped(f"{name} is not allowed here ({os.strerror(error)}); run as root")


def own_mounts() -> None:
    """Mounts of this process and its children are seen by nobody else from now on."""
    _call("unshare", CLONE_NEWNS)
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)


@contextmanager
def next_child_is_process_1() -> Iterator[None]:
    """The child that is started in the block is process 1 of a new namespace, as in a container."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    _call("unshare", CLONE_NEWPID)
    try:
        yield
    finally:
        _call("setns", own, CLONE_NEWPID)
        os.close(own)


def mount_small_disk(folder: Path, size: int) -> None:
    """An empty disk of `size` bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def mount_process_table() -> None:
    """`/proc` of the own namespace of process ids."""
    _call("mount", b"proc", b"/proc", b"proc", 0, None)


def make_root_read_only(writable: Path) -> None:
    """A read-only root file system, with /tmp and /dev/shm, and only `writable` to write to."""
    path = os.fsencode(writable)
    _call("mount", path, path, None, MS_BIND, None)
    _call("mount", None, b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    _call("mount", b"none", b"/dev/shm", b"tmpfs", MS_RDONLY, None)
    os.chdir(writable)  # by its new mount


def fill_disk(folder: Path, leave: int = 0) -> None:
    """Writes a file that leaves `leave` bytes free on the disk of `folder`."""
    with (folder / "filler").open("ab") as stream:
        size = shutil.disk_usage(folder).free - leave
        if size > 0:
            os.posix_fallocate(stream.fileno(), stream.tell(), size)


def become_nobody() -> None:
    """Makes this process another user's, without rights but to read what its interpreter needs."""
    if os.geteuid() != 0:
        raise Skipped("only root can become another user")
    keep_capabilities, dac_read_search = 8, 2
    _libc.prctl(keep_capabilities, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # The interpreter may be in root's home, and the command imports more of it.
    version, bits = 0x20080522, 1 << dac_read_search
    header = (ctypes.c_uint32 * 2)(version, 0)
    data = (ctypes.c_uint32 * 6)(bits, bits, 0, 0, 0, 0)
    _call("capset", header, data)


def give_to_nobody(place: Place) -> None:
    """Makes all folders of a place that user's; raises Skipped if that user cannot reach them."""
    if os.geteuid() == 0:
        for folder in place.root.parents:
            if not folder.stat().st_mode & 0o001:
                raise Skipped(f"{folder} is closed to other users; choose another --out")
        for path in (place.root, *place.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def limit(kind: int, value: int) -> None:
    """Sets the soft limit; the hard one stays."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def address_space() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
