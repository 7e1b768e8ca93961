"""CPU quota and memory limit of the control groups (cgroups) that this process runs in, as containers set them.

A process obeys its own group and all groups above it, so the tightest of them counts. The files are read each time,
because limits can change while a process runs. Nothing here raises.

Sources: Linux's documentation of cgroups, versions 1 and 2 (admin-guide/cgroup-v1, admin-guide/cgroup-v2.rst), and
proc(5) for `/proc/self/cgroup` and `/proc/self/mountinfo`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


class MemoryLimit(NamedTuple):
    """A group's limit in bytes, and what its processes use of it, not counting cached files that can be dropped."""

    bytes: int
    used: int


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that this process can use, such as 1.5; None without a quota.

    Args:
        root: the folder that contains `proc` and the mounted cgroups.
    """
    quotas = []
    for folder in _groups("cpu", root):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        quota, period = (_integer(word) for word in (*words, "", "")[:2])
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limits(root: Path = ROOT) -> list[MemoryLimit]:
    """The limit of each group that has one, from the process's own group upwards.

    `memory.high` counts as a limit: the kernel slows a group above it down until it stands still.

    Args:
        root: see `cpu_quota`.
    """
    found = []
    for folder in _groups("memory", root):
        stat = dict(line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        words = [_read(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        # In version 1 this includes groups above, which a container may not see.
        limits = [_integer(word) for word in (*words, stat.get("hierarchical_memory_limit", ""))]
        usage = _integer(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")) or 0
        prefix = "total_" if "total_inactive_file" in stat else ""  # version 1: with the groups below
        cached = sum(_integer(stat.get(f"{prefix}{kind}_file", "")) or 0 for kind in ("active", "inactive"))
        limit = min((limit for limit in limits if limit is not None), default=None)
        if limit is not None:
            found.append(MemoryLimit(limit, max(usage - cached, 0)))
    return found


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the process's group and of the groups above it, as far as they are mounted, in both versions."""
    own = _own_groups(root)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        if kind[0] == "cgroup" and controller not in kind[2].split(","):
            continue
        group = own.get(controller if kind[0] == "cgroup" else "")
        if group is None:
            continue
        top, shown = root / _unescaped(mount[4]).lstrip("/"), _unescaped(mount[3])
        # A container often sees its own group at the mount point, under a path that only its host knows.
        below = PurePosixPath(group).relative_to(shown if PurePosixPath(group).is_relative_to(shown) else "/")
        folder = top if ".." in below.parts else top / below
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder


def _own_groups(root: Path) -> dict[str, str]:
    """Controller -> path of this process's group in its hierarchy; version 2's has the name ''."""
    found: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _unescaped(text: str) -> str:
    """A path of mountinfo, in which blanks and backslashes are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(file: Path) -> str:
    """The content of a file of the kernel's, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    return ""


def _integer(word: str) -> int | None:
    """A number, or None for `max`, nothing, and text."""
    with contextlib.suppress(ValueError):
        return int(word)
    return None
