"""Many texts in little memory, and ranges."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fvexport.export.features.sources.packed import PackedTexts, TextPacker
from fvexport.export.features.sources.splits import cut

texts = st.lists(st.one_of(st.sampled_from(["", "a", "ä", "\udce9", "写真/🐈"]), st.text(max_size=5)), max_size=30)


def packed(values: list[str]) -> PackedTexts:
    packer = TextPacker()
    for value in values:
        packer.append(value)
    return packer.packed()


@given(texts, st.integers(0, 30), st.integers(0, 30))
def test_texts_come_back(values: list[str], start: int, stop: int) -> None:
    kept = packed(values)
    assert list(kept) == values == [kept[index] for index in range(len(kept))]
    start, stop = sorted((min(start, len(values)), min(stop, len(values))))
    assert list(kept.part(start, stop)) == values[start:stop]


@given(texts)
def test_repeats_name_the_first_and_each_other(values: list[str]) -> None:
    expected = {(values.index(value), i) for i, value in enumerate(values) if values.index(value) != i}
    assert set(packed(values).repeats()) == expected
    folded = [value.casefold() for value in values]
    expected = {(folded.index(value), i) for i, value in enumerate(folded) if folded.index(value) != i}
    assert set(packed(values).repeats(str.casefold)) == expected


def test_equal_hashes_are_no_repeats() -> None:
    class Same(str):
        __hash__ = lambda self: 7  # noqa: E731

    assert list(packed(["a", "b", "c", "b"]).repeats(Same)) == [(1, 3)]


@given(st.integers(0, 200), st.integers(1, 50), st.lists(st.integers(0, 200)))
def test_ranges_cover_all_and_prefer_ends(total: int, rows: int, places: list[int]) -> None:
    ends = np.unique([place for place in places if place <= total])
    ranges = cut(total, rows, ends)
    assert [number for start, stop in ranges for number in range(start, stop)] == list(range(total))
    for start, stop in ranges[:-1]:
        assert rows / 2 <= stop - start <= rows * 1.5
        assert stop in ends or not any(start + rows / 2 <= end <= start + rows * 1.5 for end in ends)


def test_ranges_take_whole_shards() -> None:
    assert cut(40, 10, np.array([9, 20, 31, 40])) == [(0, 9), (9, 20), (20, 31), (31, 40)]
