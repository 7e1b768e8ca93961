"""What the tests of every kind of source check."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest


def assert_source(source: Any) -> list[Any]:
    """Length, ids, parts, splits and pickles agree with each other; returns the items."""
    items = list(source)
    assert len(source) == len(items) == len({item.id for item in items})
    assert list(source) == items, "a second iteration"
    assert list(source.ids()) == [item.id for item in items]
    assert all((item.data is None) != (item.error is None) for item in items)
    assert list(pickle.loads(pickle.dumps(source))) == items
    assert pickle.loads(pickle.dumps(source)).digest == source.digest
    size = len(items)
    for start, stop in {(0, size), (0, size // 2), (size // 2, size), (size // 3, size - size // 4), (size, size)}:
        part = pickle.loads(pickle.dumps(source.part(start, stop)))
        assert list(part) == items[start:stop] and len(part) == stop - start
        inner = (stop - start) // 2
        assert list(part.part(inner, stop - start)) == items[start + inner : stop], "a part of a part"
    for rows in (1, 2, 3, size + 1):
        ranges = source.splits(rows)
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])] and ranges[-1][1] == size
        assert all(0 < stop - start <= rows + rows // 2 for start, stop in ranges)
    return items


@pytest.fixture(scope="session")
def check_source() -> Callable[[Any], list[Any]]:
    return assert_source
