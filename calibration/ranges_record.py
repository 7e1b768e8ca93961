"""`ranges.json`, and the header of the statistics beside it, as structs."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from ..core.records import Document, Number, Record

Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]
Peak: TypeAlias = Annotated[float, Meta(ge=0, le=3.5e38)]
"""A largest absolute value in float32; NaN and infinity are none."""


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


class KeyEntries(Record, frozen=True, kw_only=True):
    """See `Key`, whose attributes these are."""

    checkpoint: str
    height: Count
    width: Count
    data: str
    samples: Count
    rows: Count
    framing: str = "pad"


class StatisticsHeader(Record, frozen=True, kw_only=True):
    """The metadata of a file of statistics, see `Stats`.

    Attributes:
        histograms: the taps that have one, in order.
        rows: by tap with moments, how many rows were summed.
    """

    format: Literal[1]
    key: KeyEntries
    source: str
    done: Count
    amax: dict[str, Peak]
    histograms: list[str]
    rows: dict[str, Annotated[int, Meta(ge=1, lt=1 << 53)]]
    variant: str
    checkpoint_source: str

    def __post_init__(self) -> None:
        if self.done > self.key.samples:
            raise ValueError(f"{self.done} of {self.key.samples} pictures done")
