"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Has glibc keep blocks of up to 32 MB that are freed, for the whole process; does nothing elsewhere.

    By default such blocks go back to the system and come again page by page: about a quarter of the processor time of
    decoding photographs.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 1 << 30)
