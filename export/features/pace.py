"""How fast a run goes, in words: `31.2 images/s, 5 min left, 2 failed`."""

from __future__ import annotations

import time
from collections import deque

WINDOW_SECONDS = 30.0


class Pace:
    """The pace of the last half minute.

    Args:
        done: images that earlier runs encoded.
        total: images in all.
    """

    def __init__(self, done: int, total: int) -> None:
        self._total = total
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def note(self, done: int, failed: int) -> str:
        """What to say when `done` images are done, `failed` of them without features."""
        now = time.monotonic()
        if now - self._seen[-1][0] > 1 or len(self._seen) == 1:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        rate = (done - before) / max(now - began, 1e-9)
        words = []
        if rate > 0:
            words = [f"{rate:.3g} images/s" if rate < 1000 else f"{rate:.0f} images/s"]
            words.append(f"{duration((self._total - done) / rate)} left")
        if failed:
            words.append(f"{failed} failed")
        return ", ".join(words)


def duration(seconds: float) -> str:
    """`40 s`, `5 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
