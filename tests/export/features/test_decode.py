"""Batches that are decoded ahead: their order, what cannot be read, and how the reading ends."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import ConfigError
from fvexport.encoder.preprocess import Preprocessor
from fvexport.export.features.decode import BatchReader
from fvexport.export.features.sources.source import Item

PREPROCESSOR = Preprocessor(64, 64)


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (70, 60), (level, level, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=40, deadline=None)
@given(bad=st.lists(st.booleans(), max_size=20), size=st.integers(1, 9), workers=st.integers(1, 5), slow=st.booleans())
def test_every_image_comes_once_and_in_order(bad: list[bool], size: int, workers: int, slow: bool) -> None:
    items = [
        Item(f"{index}", None, "lost") if wrong and index % 2 else Item(f"{index}", b"x" if wrong else png(index))
        for index, wrong in enumerate(bad)
    ]
    seen = 0
    with BatchReader(items, PREPROCESSOR, size, workers) as batches:
        for batch in batches:
            if slow:
                time.sleep(0.001)  # long enough for every buffer to be filled
            assert batch.ids == [item.id for item in items[seen : seen + size]]
            assert [reason is not None for reason in batch.reasons] == bad[seen : seen + size]
            wanted = [PREPROCESSOR.pixels(item.data) for item in items[seen : seen + size] if not bad[int(item.id)]]
            assert batch.pixels.shape == (len(wanted), 3, 64, 64)
            assert all((one == other).all() for one, other in zip(batch.pixels, wanted, strict=True))
            seen += len(batch.ids)
    assert seen == len(items)


def test_reasons_name_the_image() -> None:
    items = [Item("shard/000", b"<html>"), Item("gone", None, "gone was lost"), Item("a.png", Path("missing/a.png"))]
    with BatchReader(items, PREPROCESSOR, 3) as batches:
        (batch,) = batches
    assert batch.reasons[0] is not None and batch.reasons[0].startswith("shard/000 is a web page")
    assert batch.reasons[1:] == ["gone was lost", "no image at missing/a.png: check the path"]


def test_what_the_source_raises_arrives_after_what_came_before() -> None:
    def broken() -> Iterator[Item]:
        yield Item("0", png(0))
        raise ConfigError("the source broke")

    with BatchReader(broken(), PREPROCESSOR, 1) as batches:
        iterator = iter(batches)
        assert next(iterator).ids == ["0"]
        with pytest.raises(ConfigError, match="the source broke"):
            next(iterator)


def test_no_more_is_read_than_the_buffers_hold_and_threads_end() -> None:
    read = []

    def endless() -> Iterator[Item]:
        index = 0
        while True:
            read.append(index)
            yield Item(f"{index}", png(index % 256))
            index += 1

    before = threading.active_count()
    with BatchReader(endless(), PREPROCESSOR, 2, workers=3) as batches:
        next(iter(batches))
        time.sleep(0.2)
        assert len(read) <= 2 * (1 + 3)  # one batch is in use, and three wait
    assert threading.active_count() == before


def test_an_impossible_number_of_workers() -> None:
    for count in (0, -1, 10_000):
        with pytest.raises(ConfigError, match="--workers"):
            BatchReader([], PREPROCESSOR, 1, count)


def test_pixels_keep_while_the_next_batches_are_decoded() -> None:
    items = [Item(f"{index}", png(index)) for index in range(64)]
    with BatchReader(items, PREPROCESSOR, 4, workers=4) as batches:
        for number, batch in enumerate(batches):
            before = batch.pixels.copy()
            time.sleep(0.005)
            assert np.array_equal(before, batch.pixels), number
