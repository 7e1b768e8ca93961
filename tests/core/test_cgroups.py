"""Quotas and limits of cgroups: as container engines lay them out, and with a real group where one can be made."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvexport.core import hardware
from fvexport.core.cgroups import MemoryLimit, cpu_quota, memory_limits

Tree = dict[str, str]
V1_MOUNTS = (
    "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 {shown} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "34 31 0:31 {shown} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)
V1_GROUPS = "4:memory:{group}\n3:cpuset:{group}\n2:cpu,cpuacct:{group}\n1:name=systemd:{group}\n"
V2_MOUNT = "24 20 0:22 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
POD = "/kubepods/burstable/pod1a-2b/0123456789abcdef"


def make_tree(root: Path, files: Tree) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def v1(shown: str, group: str) -> Tree:
    return {
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + V1_MOUNTS.format(shown=shown),
        "proc/self/cgroup": V1_GROUPS.format(group=group),
    }


def v2(shown: str, group: str) -> Tree:
    return {"proc/self/mountinfo": V2_MOUNT.format(shown=shown), "proc/self/cgroup": f"0::{group}\n"}


def v1_quota(folder: str, quota: int, period: int = 100000) -> Tree:
    at = f"sys/fs/cgroup/cpu,cpuacct{folder}"
    return {f"{at}/cpu.cfs_quota_us": f"{quota}\n", f"{at}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no /proc"),
        pytest.param(v1("/", "/") | v1_quota("", -1), None, id="v1, no quota"),
        pytest.param(v1("/docker/ab", "/docker/ab") | v1_quota("", 150000), 1.5, id="v1, docker"),
        pytest.param(v1("/", "/docker/ab") | v1_quota("/docker/ab", 50000), 0.5, id="v1, from the host"),
        pytest.param(v1("/docker/ab", "/") | v1_quota("", 50000), 0.5, id="v1, cgroup namespace"),
        pytest.param(
            v1("/", POD) | v1_quota(POD, -1) | v1_quota(str(Path(POD).parent), 300000) | v1_quota("/kubepods", 800000),
            3, id="v1, a limit on the pod",
        ),
        pytest.param(v1("/", "/gone") | v1_quota("", 200000), 2, id="v1, a group that is not visible"),
        pytest.param(v1("/", "/../../x") | v1_quota("", 200000), 2, id="v1, outside the namespace"),
        pytest.param(v1("/", "/") | v1_quota("", 50000, 0), None, id="v1, no period"),
        pytest.param(v2("/", "/") | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, id="v2, max"),
        pytest.param(v2("/", "/") | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5, id="v2, cgroup namespace"),
        pytest.param(
            v2("/", "/a.slice/b.scope")
            | {
                "sys/fs/cgroup/a.slice/b.scope/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a.slice/cpu.max": "25000 20000\n",
            },
            1.25, id="v2, nested",
        ),
        pytest.param(v2("/", "/x:y") | {"sys/fs/cgroup/x:y/cpu.max": "100000 100000"}, 1, id="v2, a colon in the path"),
        pytest.param(
            {
                "proc/self/mountinfo": V1_MOUNTS.format(shown="/")
                + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
                "proc/self/cgroup": V1_GROUPS.format(group="/s") + "0::/s\n",
            }
            | v1_quota("/s", 70000),
            0.7, id="hybrid",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": "24 20 0:22 / /my\\040cgroups rw - cgroup2 cgroup2 rw\n",
                "proc/self/cgroup": "0::/\n", "my cgroups/cpu.max": "100000 50000\n",
            },
            2, id="v2, a blank in the mount point",
        ),
        pytest.param(v2("/", "/") | {"sys/fs/cgroup/cpu.max": "no number\n"}, None, id="v2, text"),
        pytest.param(
            {"proc/self/mountinfo": "\x00 - cgroup2\n1 - \n", "proc/self/cgroup": "::\n:\n0"}, None, id="garbage"
        ),
    ],
)  # fmt: skip
def test_cpu_quota(tmp_path: Path, files: Tree, expected: float | None) -> None:
    assert cpu_quota(make_tree(tmp_path, files)) == expected


def test_memory_v1(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory"
    stat = "inactive_file 1\nhierarchical_memory_limit 500\ntotal_inactive_file 30\ntotal_active_file 20\n"
    files = v1("/docker/ab", "/docker/ab") | {
        f"{at}/memory.limit_in_bytes": "1000\n", f"{at}/memory.usage_in_bytes": "300\n", f"{at}/memory.stat": stat,
    }  # fmt: skip
    assert memory_limits(make_tree(tmp_path, files)) == [MemoryLimit(500, 250)]


def test_memory_v2(tmp_path: Path) -> None:
    at = "sys/fs/cgroup"
    files = v2("/", "/a/b") | {
        f"{at}/a/b/memory.max": "max\n", f"{at}/a/b/memory.high": "700\n", f"{at}/a/b/memory.current": "100\n",
        f"{at}/a/b/memory.stat": "anon 60\nactive_file 10\ninactive_file 200\n",
        f"{at}/a/memory.max": "900\n", f"{at}/a/memory.high": "max\n", f"{at}/a/memory.current": "650\n",
        f"{at}/memory.max": "max\n",
    }  # fmt: skip
    assert memory_limits(make_tree(tmp_path, files)) == [MemoryLimit(700, 0), MemoryLimit(900, 650)]


@pytest.mark.parametrize(
    ("quota", "cores", "threads", "limited", "processes"),
    [
        (None, 4, 4, None, 8), (0.1, 4, 1, 1, 1), (1.0, 4, 1, 1, 1), (2.5, 4, 3, 3, 3), (4.0, 4, 4, None, 4),
        (16.0, 4, 4, None, 8),
    ],
)  # fmt: skip
def test_threads_within_a_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int, threads: int, limited: int | None, processes: int
) -> None:
    monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
    monkeypatch.setattr(hardware, "usable_cores", lambda: list(range(cores)))
    monkeypatch.setattr(hardware, "usable_cpus", lambda: list(range(2 * cores)))
    assert hardware.usable_threads() == threads
    assert hardware.quota_threads() == limited
    assert hardware.usable_processes() == processes


def test_memory_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    total, available = hardware.memory_total(), hardware.memory_available()
    if total is None or available is None:
        pytest.skip("this system does not report its memory")
    monkeypatch.setattr(hardware, "memory_limits", lambda: [MemoryLimit(2**63 - 4096, 10**9)])
    assert (hardware.memory_total(), hardware.memory_limit()) == (total, None)
    monkeypatch.setattr(hardware, "memory_limits", lambda: [MemoryLimit(10**8, 4 * 10**7), MemoryLimit(10**9, 10**6)])
    assert (hardware.memory_total(), hardware.memory_available(), hardware.memory_limit()) == (10**8, 6 * 10**7, 10**8)
    monkeypatch.setattr(hardware, "memory_limits", lambda: [MemoryLimit(10**8, 2 * 10**8)])
    assert hardware.memory_available() == 0


# --- a real group ---------------------------------------------------------------------------------


@pytest.fixture
def real_group() -> Iterator[dict[str, Path]]:
    """Controller -> a new group with half a processor and 3 GB; skips where none can be made."""
    root, name = Path("/sys/fs/cgroup"), f"fvexport-test-{uuid.uuid4().hex}"
    if (root / "cgroup.controllers").exists():
        folders, files = [root / name], {"cpu.max": "50000 100000", "memory.max": "3000000000"}
    else:
        folders = [root / "cpu" / name, root / "memory" / name]
        files = {"cpu.cfs_quota_us": "50000", "memory.limit_in_bytes": "3000000000"}
    made: list[Path] = []
    try:
        for folder in folders:
            folder.mkdir()
            made.append(folder)
        found = {name: folder / name for name in files for folder in folders if (folder / name).exists()}
        if len(found) < len(files):
            pytest.skip("no cgroup with these controllers can be made here")
        for name, value in files.items():
            found[name].write_text(value)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    else:
        yield {folder.parent.name: folder for folder in folders}
    finally:
        for folder in made:
            folder.rmdir()


def test_a_real_group(real_group: dict[str, Path]) -> None:
    code = (
        "from fvexport.core import hardware as h, cgroups as c\n"
        "print(c.cpu_quota(), h.usable_threads(), h.usable_processes(), h.memory_limit(), h.memory_total())\n"
        "held = bytearray(b'x') * 400_000_000\n"
        "print(h.memory_available())"
    )
    join = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in real_group.values())
    command = ["sh", "-c", f'{join} exec "$@"', "_", sys.executable, "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout.split("\n")
    limit = 3_000_000_000 // os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PAGE_SIZE")
    assert lines[0] == f"0.5 1 1 {limit} {limit}"
    assert 2_300_000_000 < int(lines[1]) < 2_600_000_000
