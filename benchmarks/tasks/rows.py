"""Results as JSON lines: one row per item, added as it is done and taken up where an interrupted run ended.

A row is written with one call and flushed, so that a killed run leaves at most half a line at the end. Starting again
drops that, and the rows of items that failed (they are tried again); every other row stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import numpy as np
from msgspec import UNSET, Meta, UnsetType

from ...core.errors import ArtifactError
from ...core.input_file import parse_json
from ...core.locks import locked
from ...core.output_path import check_file, os_errors, put_file, scratch_beside
from ...core.records import Record, parse
from ..json_lines import check_torn_line, complete_lines, drop_torn_line
from .items import Item
from .retrieval import unpacked

Row = dict[str, Any]

BEGINS = '{"encoder": "'
"""What every row begins with."""


def check_rows(out: Path) -> None:
    """Raises ArtifactError, before a model is loaded, if `out` cannot be written or is no file of results."""
    check_file(out, force=True)
    try:
        for _ in _known_rows(out):
            pass
    except OSError as error:
        raise ArtifactError(f"cannot read {out} ({error.strerror or error}); choose another --out") from None


class Rows:
    """The result file of a run, open for adding.

    Args:
        out: the file; it is made where there is none.
        runs: encoder's name -> fingerprint of everything that its rows depend on. Rows of encoders that are not named
            stay untouched.

    Raises:
        ArtifactError: it cannot be written, is no such file, holds rows of other settings, or another run writes it.
    """

    def __init__(self, out: Path, runs: Mapping[str, str]) -> None:
        self.out = out
        self.runs = dict(runs)
        self.kept = 0
        self._done: dict[tuple[str, int], str] = {}
        check_file(out, force=True)
        lock = out.with_name(f".{out.name}.lock")
        with os_errors(out), contextlib.ExitStack() as held:
            out.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(
                locked(lock, f"another run is writing {out}; wait for it or choose another --out", keep=False)
            )
            self._stream = held.enter_context(self._open())
            self._held = held.pop_all()

    def _open(self) -> BinaryIO:
        stale = False
        for row in self._rows():
            if self._is_stale(row):
                stale = True
            else:
                self._done[row["encoder"], row["line"]] = row.get("key", "")
                self.kept += row["encoder"] in self.runs
        if stale:
            with scratch_beside(self.out) as scratch:
                with scratch.open("wb") as fresh:
                    fresh.writelines(_line(row) for row in self._rows() if not self._is_stale(row))
                    fresh.flush()
                    os.fsync(fresh.fileno())
                put_file(scratch, self.out)
        stream = self.out.open("ab+")
        drop_torn_line(stream)
        return stream

    def _rows(self) -> Iterator[Row]:
        for row in _known_rows(self.out):
            wanted = self.runs.get(row["encoder"])
            if wanted is not None and row["run"] != wanted:
                raise ArtifactError(
                    f"{self.out} holds answers with {row['encoder']} under other settings or weights; take the same to "
                    "go on, or another --out"
                )
            yield row

    def _is_stale(self, row: Row) -> bool:
        """Whether an item failed, and is asked for again."""
        return row["encoder"] in self.runs and "error" in row

    def has(self, encoder: str, item: Item) -> bool:
        """Whether the item has a row with that encoder; raises ArtifactError where its line has changed since."""
        key = self._done.get((encoder, item.line))
        if key is not None and key != item.key:
            raise ArtifactError(
                f"{self.out} answers another line {item.line} than the data holds now; choose another --out"
            )
        return key is not None

    def add(self, encoder: str, item: Item, content: Mapping[str, Any]) -> None:
        """Writes an item's row."""
        named = {} if item.id is None else {"id": item.id}
        image = item.images[0] if len(item.images) == 1 else list(item.images)
        asked = {"question": item.question} if item.question else {}
        row = {"encoder": encoder, "line": item.line, **named, "image": image, **asked, **content}
        with os_errors(self.out):
            self._stream.write(_line(row | {"key": item.key, "run": self.runs[encoder]}))
            self._stream.flush()
        self._done[encoder, item.line] = item.key

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk was told of when it refused the row
            self._held.close()


class _Known(Record, frozen=True, kw_only=True):
    """What is read of a row again.

    Attributes:
        encoder, line: whose row of which item.
        run: fingerprint of everything that it depends on.
        key: of its item, see `Item.key`.
        error: why there is no result.
        answer, token_ids: of a model that was asked.
        features: see `retrieval.packed`.
    """

    encoder: str
    line: Annotated[int, Meta(ge=1, le=1 << 53)]
    run: str
    key: str = ""
    error: str | UnsetType = UNSET
    answer: str | UnsetType = UNSET
    token_ids: tuple[Annotated[int, Meta(ge=0, le=1 << 31)], ...] | UnsetType = UNSET
    features: str | UnsetType = UNSET

    def check(self) -> None:
        """Raises ValueError for a row that is no result: either an error, or an answer, or finite features."""
        if sum(found is not UNSET for found in (self.error, self.answer, self.features)) != 1:
            raise ValueError("expected one of error, answer and features")
        if self.answer is UNSET and self.token_ids is not UNSET:
            raise ValueError("expected an answer beside token_ids")
        if self.features is not UNSET and not np.isfinite(unpacked(self.features)).all():
            raise ValueError("expected finite features")


def read_rows(out: Path, encoder: str) -> Iterator[Row]:
    """The rows with an encoder, one in memory at a time; raises ArtifactError if the file cannot be read."""
    try:
        for _, text in complete_lines(out):
            row = _parsed(text)
            if row is not None and row["encoder"] == encoder:
                yield row
    except OSError as error:
        raise ArtifactError(f"cannot read {out} ({error.strerror or error}); name a file that you may read") from None


def _known_rows(out: Path) -> Iterator[Row]:
    """The rows of a file; raises ArtifactError for a line that no run wrote, OSError as `complete_lines`."""
    check_torn_line(out, BEGINS, lambda text: _parsed(text) is not None)
    for number, text in complete_lines(out):
        row = _parsed(text)
        if row is None:
            raise ArtifactError(f"{out}, line {number} is no result of this command; choose another --out")
        yield row


def _line(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a path that is no UTF-8
        return json.dumps(row).encode() + b"\n"


def _parsed(text: str) -> Row | None:
    """The row of a line; None if no run wrote it."""
    try:
        row = parse_json(text)
        parse(row, _Known).check()
    except ValueError:
        return None
    return cast("Row", row)
