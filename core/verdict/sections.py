"""A verdict as artifacts record it."""

from __future__ import annotations

import msgspec

from ..records import Number, Record


class FiguresSection(Record, frozen=True, kw_only=True):
    """The fields of `Figures`; None for infinite or undefined values."""

    max_abs: Number | None
    rel_l2: Number | None
    cosine: Number | None
    cosine_min: Number | None
    sqnr_db: Number | None
    finite: bool
    centred_rel_l2: Number | None = None
    centred_sqnr_db: Number | None = None


class ThresholdsSection(Record, frozen=True, kw_only=True):
    """The fields of `Thresholds`; earlier versions judged no centred figures."""

    over_torch: Number
    rel_l2_floor: Number
    rel_l2_limit: Number
    centred_floor: Number | msgspec.UnsetType = msgspec.UNSET
    centred_limit: Number | msgspec.UnsetType = msgspec.UNSET
    cosine_min: Number


class LayerSection(Record, frozen=True, kw_only=True):
    """The fields of `LayerFigure`."""

    name: str
    rel_l2: Number | None
    torch_rel_l2: Number | None
    bound: Number


class VerdictSection(Record, frozen=True, kw_only=True):
    """The fields of `Verdict`."""

    status: str
    reason: str
    precision: str
    figures: FiguresSection
    torch: FiguresSection
    thresholds: ThresholdsSection
    images: tuple[str, ...]
    resolutions: tuple[str, ...]
    backend: str
    layers: tuple[LayerSection, ...] = ()
    first_bad_layer: str | None = None
