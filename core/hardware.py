"""The machine below: processor, memory, GPUs. Nothing here raises; what cannot be found out is None or empty."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from .cgroups import cpu_quota, memory_limits

CPU_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16",
)  # fmt: skip
X86 = ("x86_64", "amd64", "i386", "i686")


def cpu() -> dict[str, Any]:
    """The processor: model, cores, cores usable by this process, features worth knowing, and a container's quota."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags.update(value.split())
    features = [f for f in CPU_FEATURES if f in flags]
    found = {"model": model, "cores": os.cpu_count() or 1, "usable": len(usable_cpus()), "features": features}
    quota = cpu_quota()
    return found if quota is None else found | {"quota": round(quota, 3)}


def is_x86() -> bool:
    """Whether the processor is Intel's or AMD's."""
    return platform.machine().lower() in X86


def products_saturate() -> bool:
    """Whether 8-bit products saturate here: on x86 without VNNI, a sum of two uint8 x int8 products is cut to 16 bits.

    ARM's instructions and VNNI's add up in 32 bits. False on systems that do not list the processor's features.
    Source: VPMADDUBSW in Intel's "Software Developer's Manual", volume 2.
    """
    return sys.platform == "linux" and is_x86() and not any("vnni" in feature for feature in cpu()["features"])


def usable_cpus() -> list[int]:
    """Numbers of the logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> list[int]:
    """One logical processor of each physical core that this process may use: threads gain nothing from siblings."""
    seen, first = set[str](), []
    for number in usable_cpus():
        siblings = str(number)
        with contextlib.suppress(OSError):
            siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text().strip()
        if siblings not in seen:
            seen.add(siblings)
            first.append(number)
    return first


def usable_threads() -> int:
    """Threads that one computation gains from: one per physical core, within the container's CPU quota.

    More threads than the quota use it up early in each period, and all of them then wait for the next.
    """
    return quota_threads() or len(usable_cores())


def quota_threads() -> int | None:
    """Threads that the CPU quota allows, rounded up; None if it allows all cores: a library's default is best then."""
    quota = cpu_quota()
    threads = len(usable_cores()) if quota is None else math.ceil(quota)
    return threads if threads < len(usable_cores()) else None


def usable_processes() -> int:
    """Processes of one thread each that can run at once: one per logical processor, within the CPU quota."""
    quota = cpu_quota()
    return len(usable_cpus()) if quota is None else min(len(usable_cpus()), math.ceil(quota))


def gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU; asks the driver's own tool, since torch may be a CPU build, then torch."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    try:
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (Exception, SystemExit):
        return []


def cuda_driver() -> ctypes.CDLL | None:
    """NVIDIA's driver library, of which torch may know nothing (a CPU build); None where there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if hasattr(driver, "cuInit") else None  # a stub of that name may have nothing in it


def cuda_version() -> tuple[int, int] | None:
    """Major and minor CUDA version that the driver runs, or None without one."""
    driver, version = cuda_driver(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def has_cuda_gpu() -> bool:
    """Whether NVIDIA's driver sees a GPU; asked of the driver, since torch may be a CPU build."""
    driver, count = cuda_driver(), ctypes.c_int(0)
    if driver is None:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def memory_available() -> int | None:
    """Bytes that a new process can have before something is swapped or killed, within the container's limit."""
    machine = proc_bytes("meminfo", "MemAvailable") or _physical_memory()
    left = (max(limit.bytes - limit.used, 0) for limit in memory_limits())
    return min((size for size in (machine, *left) if size is not None), default=None)


def memory_total() -> int | None:
    """Bytes of the machine, or the container's limit."""
    return memory_limit() or _physical_memory()


def memory_limit() -> int | None:
    """Bytes that the container's memory limit allows; None if it does not restrict this machine."""
    limit, machine = min((limit.bytes for limit in memory_limits()), default=None), _physical_memory()
    return None if limit is None or (machine is not None and limit >= machine) else limit


def _physical_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def proc_bytes(file: str, entry: str) -> int | None:
    """An entry of a file below /proc that is in kB, in bytes; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return None
