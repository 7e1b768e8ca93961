"""`ranges.json` as structs."""

from __future__ import annotations

from typing import Literal

from ..core.records import Document, Number, Record


class TensorRange(Record, frozen=True, kw_only=True):
    """One row of the report.

    Attributes:
        tap: `<module>` is its output, `<module>:in` its input.
        low, high: all that was seen.
        chosen_low, chosen_high: what the method keeps.
        spread: largest over typical channel, where channels were told apart: what equalization gains.
    """

    tap: str
    low: Number
    high: Number
    chosen_low: Number
    chosen_high: Number
    spread: Number | None


class SkippedImage(Record, frozen=True, kw_only=True):
    """A picture that could not be used, and why."""

    image: str
    reason: str


class StatisticsFile(Record, frozen=True, kw_only=True):
    """The file beside `ranges.json` that an export reads, and its SHA-256."""

    file: str
    sha256: str


class Ranges(Document, frozen=True, kw_only=True):
    """What a calibration found, as it is printed.

    Attributes:
        checkpoint, height, width, data, samples, rows, framing: what the ranges belong to, see `Key`.
        source: the pictures, as the user named them.
        variant, checkpoint_source: the architecture's name, and where the weights came from.
        method: how ranges were chosen.
        ranges: of the tensors that may be quantized, by tap.
        amax: largest absolute value of every activation that the model stores.
        skipped: pictures that could not be used.
        notices: sentences that a user should read; earlier versions wrote none.
    """

    schema_version: Literal[1] = 1
    checkpoint: str
    height: int
    width: int
    data: str
    samples: int
    rows: int
    framing: str = "pad"
    source: str
    variant: str
    checkpoint_source: str
    method: str
    ranges: dict[str, TensorRange]
    amax: dict[str, Number]
    skipped: tuple[SkippedImage, ...]
    notices: tuple[str, ...] = ()


class RangesFile(Ranges, frozen=True, kw_only=True):
    """`ranges.json`: the same, and the statistics that an export needs besides."""

    statistics: StatisticsFile
