"""Images done so far, counted over all workers for the driver's progress bar."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ..core.progress import NotedProgress, Progress
from ..export.features.pace import Pace

PAUSE_SECONDS = 0.5


class _Count:
    """An actor."""

    def __init__(self) -> None:
        self.done = self.failed = 0

    def add(self, done: int, failed: int) -> None:
        self.done, self.failed = self.done + done, self.failed + failed

    def get(self) -> tuple[int, int]:
        return self.done, self.failed


def counter(ray: Any) -> Any:
    """A handle of a new counter at 0, on the driver's node."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    return ray.remote(_Count).options(num_cpus=0, scheduling_strategy=here).remote()


@contextlib.contextmanager
def reported(ray: Any, count: Any, progress: Progress, done: int, total: int) -> Iterator[None]:
    """Calls `progress` twice a second, from a thread.

    Images that are encoded again after a worker was lost are counted again, so the number stops at the total.

    Args:
        ray: the module.
        count: of `counter`.
        progress: called as `encode`, and told the pace in words.
        done: images that earlier runs encoded.
        total: images in all.
    """
    ended, pace = threading.Event(), Pace(done, total)

    def poll() -> None:
        while not ended.wait(PAUSE_SECONDS):
            with contextlib.suppress(Exception):  # the cluster ends, or is busy: the next look tells more
                new, failed = ray.get(count.get.remote(), timeout=5)
                now = min(total, done + new)
                if isinstance(progress, NotedProgress):
                    progress.note(pace.note(now, failed))
                progress("encode", now, total)

    progress("encode", done, total)
    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)
