"""How many threads PyTorch computes with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ConfigError
from .hardware import quota_threads

MAX_THREADS = 1024
"""More than one computation gains from, and few enough that every system starts them."""

_lock = threading.Lock()
_uses = 0
_before = 0
_own = threading.local()


def check_threads(count: int | None) -> None:
    """Raises ConfigError for a number of threads that no backend can compute with; None is the backend's choice."""
    if count is not None and not 1 <= count <= MAX_THREADS:
        raise ConfigError(f"threads must be from 1 to {MAX_THREADS} (found {count})")


def fewer_torch_threads() -> int | None:
    """Threads that a container's CPU quota leaves PyTorch; None if it takes no more than that by itself."""
    import torch

    quota = quota_threads()
    return quota if quota is not None and quota < torch.get_num_threads() else None


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """PyTorch computes with `count` threads; by default with as many as before, within the container's CPU quota.

    The setting belongs to the process as much as to the thread: the last of concurrent uses restores what was set
    before the first. The default changes nothing inside another use.
    """
    global _before, _uses  # noqa: PLW0603  # as PyTorch's setting is
    import torch

    counts: list[int] = _own.__dict__.setdefault("counts", [])
    if count is None and not counts:
        count = fewer_torch_threads()
    if not count:
        yield
        return
    with _lock:
        if _uses == 0:
            _before = torch.get_num_threads()
        _uses += 1
        torch.set_num_threads(count)
    counts.append(count)
    try:
        yield
    finally:
        counts.pop()
        with _lock:
            _uses -= 1
            torch.set_num_threads(counts[-1] if counts else _before)
