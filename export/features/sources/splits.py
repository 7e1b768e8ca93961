"""Ranges of about equal length, cut where a file or row group ends."""

from __future__ import annotations

import numpy as np

from ....core.errors import ConfigError


def cut(total: int, rows: int, ends: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Ranges (start, stop) that cover 0 to `total`, each of about `rows`.

    Args:
        total: images in all.
        rows: images per range; the last range may be shorter.
        ends: places, in ascending order, where a cut is best. The one nearest to a full range is taken, if that makes
            a range of at least half and at most one and a half times `rows`.
    """
    if rows < 1:
        raise ConfigError(f"a range needs at least one image; found {rows}")
    ends = np.empty(0, np.int64) if ends is None else np.asarray(ends)
    found = []
    start = 0
    while start < total:
        least, most = start + -(-rows // 2), start + rows + rows // 2
        low, high = np.searchsorted(ends, [least, most + 1])
        near = ends[low:high]
        stop = int(near[np.argmin(np.abs(near - (start + rows)))]) if len(near) else start + rows
        stop = min(stop, total)
        found.append((start, stop))
        start = stop
    return found
