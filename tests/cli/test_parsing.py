"""Text of options -> values, or an error that shows the form that was expected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.cli.parsing import (
    parse_batch,
    parse_batch_span,
    parse_bytes,
    parse_resolution,
    parse_resolution_span,
    parse_seconds,
)
from fvexport.core.errors import ConfigError
from fvexport.export.export_options import ExportOptions


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["x", "X", " x "]))
def test_resolution_round_trip(height: int, width: int, times: str) -> None:
    assert parse_resolution(f"{height}{times}{width}") == (height, width)
    assert parse_resolution(str(height)) == (height, height)
    assert parse_resolution(ExportOptions(height=height, width=width).resolution) == (height, width)


@pytest.mark.parametrize(
    "text", ["", "x", "1024x", "x1024", "1x2x3", "-64", "64.0", "1e3", "big", "512*384", "²", "9" * 5000]
)
def test_no_resolution(text: str) -> None:
    with pytest.raises(ConfigError, match="1024 or 512x384"):
        parse_resolution(text)


@given(st.text(max_size=12))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_resolution, parse_batch):
        try:
            parse(text)
        except ConfigError as error:
            assert repr(text) in str(error)


@pytest.mark.parametrize(("text", "batch"), [("1", 1), ("16", 16), ("dynamic", None)])
def test_batch(text: str, batch: int | None) -> None:
    assert parse_batch(text) == batch


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GiB", 4 * 2**30), ("4 gib", 4 * 2**30), ("512MB", 512 * 10**6), ("2G", 2 * 10**9), ("1.5Ki", 1536), ("7", 7)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4TB", "0", "0GiB", "four", "9" * 5000])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="a size must look like 4GiB"):
        parse_bytes(text)


def test_spans() -> None:
    assert parse_batch_span("4") == (4, 4, 4)
    assert parse_batch_span("1:4:8") == (1, 4, 8)
    assert parse_resolution_span("256:512x384:1024") == ((256, 512, 1024), (256, 384, 1024))
    for text in ("", "1:2", "a:b:c", "1:2:3:4", "dynamic"):
        with pytest.raises(ConfigError, match="batch must be a number or MIN:OPT:MAX"):
            parse_batch_span(text)
    for text in ("", "1024", "256:512", "1:2:3:4"):
        with pytest.raises(ConfigError, match="must look like 256:1024:2048"):
            parse_resolution_span(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2 M ", 120)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "-3s", "1h30m", "nan s", "9" * 5000 + "s"])
def test_a_time_without_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must look like 90s"):
        parse_seconds(text)
