"""Error statistics between a candidate's features and the reference's.

All features share a constant part, the mean over tokens and pictures: 0.7 to 0.9 of their norm in the models that we
measured. An error relative to the whole features therefore says little about what tells one picture from another. The
centred figures leave that mean, per channel, out of the signal:

    centred relative L2 = sqrt( largest, over pictures, of mean over tokens ||candidate - reference||^2
                              / mean over tokens and pictures ||reference - mean||^2 )

The error is not centred, which is the stricter choice: a constant error shifts every embedding that the language model
reads, so it counts in full. Sums are in float64 and are collected picture by picture.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

VARIATION = 1e-5
"""Least standard deviation of features, relative to their root mean square, that is not the rounding of float32."""


@dataclass(frozen=True)
class Figures:
    """How far a candidate is from the reference; the worst picture's.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: ||candidate - reference|| / ||reference||.
        cosine: mean over tokens of the cosine between the two.
        cosine_min: that of the worst token.
        sqnr_db: signal over error, 20 log10(1 / rel_l2), in dB.
        finite: whether every value of the candidate is finite.
        centred_rel_l2: the error relative to what varies in the reference (see the module); None if nothing varies,
            and in records of earlier versions.
        centred_sqnr_db: 20 log10(1 / centred_rel_l2), in dB.
    """

    max_abs: float
    rel_l2: float
    cosine: float
    cosine_min: float
    sqnr_db: float
    finite: bool
    centred_rel_l2: float | None = None
    centred_sqnr_db: float | None = None

    @property
    def strict_sqnr_db(self) -> float:
        """The lower of the plain and the centred SQNR, in dB; -inf if a value is infinite or undefined."""
        if not self.finite:
            return -math.inf
        return self.sqnr_db if self.centred_sqnr_db is None else min(self.sqnr_db, self.centred_sqnr_db)

    def with_centred(self, rel_l2: float | None) -> Figures:
        """The same with another centred relative L2 error."""
        return replace(self, centred_rel_l2=rel_l2, centred_sqnr_db=None if rel_l2 is None else decibels(rel_l2))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinite and undefined values as None, which JSON can hold."""
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Figures:
        """The inverse of `to_dict`, for finite figures; earlier versions recorded no centred ones."""
        return cls(**{"centred_rel_l2": None, "centred_sqnr_db": None, **data})


BROKEN = Figures(math.nan, math.nan, math.nan, math.nan, math.nan, False, math.nan, math.nan)
"""Figures of a candidate with infinite or undefined values."""
DISAGREES = Figures(math.inf, math.inf, -1.0, -1.0, -math.inf, True, math.inf, -math.inf)
"""Figures beside a reference with such values: nothing agrees with it, and no comparison with NaN may pass."""


def decibels(rel_l2: float) -> float:
    """A relative error as SQNR: 20 log10(1 / rel_l2), in dB."""
    return -20 * math.log10(rel_l2) if 0 < rel_l2 < math.inf else (math.inf if rel_l2 == 0 else -math.inf)


@dataclass
class _Signal:
    """Moments of one group's reference, merged picture by picture (Chan, Golub and LeVeque 1979).

    Attributes:
        pictures: those that are counted; a repeated one counts once.
        tokens: number of tokens.
        mean: (C,) over tokens and pictures.
        varying: sum over tokens of ||reference - mean||^2.
        error: largest mean over a picture's tokens of ||candidate - reference||^2.
    """

    pictures: set[Hashable] = field(default_factory=set)
    tokens: int = 0
    mean: np.ndarray | float = 0.0
    varying: float = 0.0
    error: float = 0.0

    def count(self, picture: Hashable, reference: np.ndarray) -> None:
        """Adds a picture's tokens (N, C), float64, unless it was counted before."""
        if picture in self.pictures:
            return
        self.pictures.add(picture)
        mean, known = reference.mean(0), self.tokens
        shift = mean - self.mean
        self.tokens = known + len(reference)
        self.varying += float(np.square(reference - mean).sum())
        self.varying += float(np.square(shift).sum()) * known * len(reference) / self.tokens
        self.mean = self.mean + shift * (len(reference) / self.tokens)

    @property
    def varying_power(self) -> float:
        """Mean over tokens of ||reference - mean||^2; 0 where that is only rounding."""
        power = self.varying / self.tokens
        constant = float(np.square(self.mean).sum())
        return power if power > VARIATION**2 * (power + constant) else 0.0

    @property
    def ratio(self) -> float | None:
        """Root mean square of the features over that of their varying part; None if nothing varies."""
        power = self.varying_power
        return math.sqrt(1 + float(np.square(self.mean).sum()) / power) if power else None


class Comparison:
    """Collects the features of several pictures, and gives the worst figures.

    Holds sums only. Groups keep features apart that share no mean: pictures at different resolutions.
    """

    def __init__(self) -> None:
        self._plain: Figures | None = None
        self._groups: dict[Hashable, _Signal] = {}

    def add(
        self, reference: np.ndarray, candidate: np.ndarray, *, picture: Hashable, group: Hashable = None,
        seen: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Adds the features of one picture, both (N, C).

        Args:
            reference, candidate: the features.
            picture: identifies it. If it was added before, its reference counts once and its error again.
            group: pictures that share a mean.
            seen: (N,) bool, the tokens to judge; all by default. The others only have to be finite.

        Raises ValueError if the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ValueError(f"shapes differ: reference {reference.shape}, candidate {candidate.shape}")
        if not np.isfinite(candidate).all():
            self._merge(BROKEN)
        elif not np.isfinite(reference).all():
            self._merge(DISAGREES)
        else:
            a, b = reference.astype(np.float64), candidate.astype(np.float64)
            if seen is not None:
                a, b = a[seen], b[seen]
            signal = self._groups.setdefault(group, _Signal())
            signal.count(picture, a)
            signal.error = max(signal.error, float(np.square(b - a).sum()) / len(a))
            self._merge(_plain(a, b))

    @property
    def figures(self) -> Figures:
        """The worst figures of what was added, which is at least one picture."""
        assert self._plain is not None
        centred = [math.sqrt(s.error / p) for s in self._groups.values() if (p := s.varying_power)]
        return worst([self._plain, *(self._plain.with_centred(each) for each in centred)])

    @property
    def ratio(self) -> float | None:
        """Largest ratio of a centred relative L2 error to a plain one; None if nothing varies.

        It depends on the reference alone: its root mean square over that of its varying part.
        """
        return max((r for s in self._groups.values() if (r := s.ratio) is not None), default=None)

    def _merge(self, figures: Figures) -> None:
        self._plain = figures if self._plain is None else worst([self._plain, figures])


def compare(reference: np.ndarray, candidate: np.ndarray) -> Figures:
    """The worst figures of several pictures (B, N, C), whose mean the centred ones leave out.

    Raises ValueError if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: reference {reference.shape}, candidate {candidate.shape}")
    found = Comparison()
    for picture, (a, b) in enumerate(zip(reference, candidate, strict=True)):
        found.add(a, b, picture=picture)
    return found.figures


def worst(figures: Sequence[Figures]) -> Figures:
    """The worst of each statistic over several pictures or resolutions."""
    if not all(f.finite for f in figures):
        return next(f for f in figures if not f.finite)
    centred = max((f.centred_rel_l2 for f in figures if f.centred_rel_l2 is not None), default=None)
    return Figures(
        max_abs=max(f.max_abs for f in figures),
        rel_l2=max(f.rel_l2 for f in figures),
        cosine=min(f.cosine for f in figures),
        cosine_min=min(f.cosine_min for f in figures),
        sqnr_db=min(f.sqnr_db for f in figures),
        finite=True,
    ).with_centred(centred)


def relative_l2(reference: np.ndarray, candidate: np.ndarray) -> float:
    """||candidate - reference|| / ||reference|| of finite arrays of one shape; infinite if only the reference is 0."""
    error, signal = (
        float(np.linalg.norm(x.astype(np.float64, copy=False))) for x in (candidate - reference, reference)
    )
    return error / signal if signal else (0.0 if error == 0 else math.inf)


def _plain(a: np.ndarray, b: np.ndarray) -> Figures:
    """The figures of one picture (N, C), finite float64, but for the centred ones."""
    rel_l2 = relative_l2(a, b)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    dots = (a * b).sum(-1)
    # A token of zeros has no direction: it agrees with zeros alone.
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (a == b).all(-1))
    return Figures(
        max_abs=float(np.abs(b - a).max(initial=0.0)),
        rel_l2=rel_l2,
        cosine=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        sqnr_db=decibels(rel_l2),
        finite=True,
    )
