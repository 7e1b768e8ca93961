"""When an artifact passes: its error against what PyTorch itself loses in the same precision.

The rule is that of Polygraphy's and flash-attention's tests: an error has a meaning only beside the error that the
precision itself makes. Both the plain and the centred relative L2 error (see `figures`) have to be within their bounds,
so the stricter of the two decides. Every verdict comes from `judge`: of exports, of `fvexport parity`, of sweeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .figures import Figures, decibels

Status = Literal["pass", "fail", "non-finite"]
BoundFigure = Literal["stricter", "plain"]
"""Which SQNR a bound in dB is about: the lower of the plain and the centred one, or (in files of earlier versions) the
plain one."""


@dataclass(frozen=True)
class Thresholds:
    """When an artifact of one precision passes.

    Attributes:
        over_torch: relative L2 error allowed, as a multiple of PyTorch's own in that precision.
        rel_l2_floor: always allowed: below it, differences are the noise of summation order.
        rel_l2_limit: never allowed beyond, whatever PyTorch loses.
        centred_floor, centred_limit: the same of the centred relative L2 error.
        cosine_min: that the worst token must reach.
    """

    over_torch: float
    rel_l2_floor: float
    rel_l2_limit: float
    centred_floor: float
    centred_limit: float
    cosine_min: float

    def are_equal(self, figures: Figures) -> bool:
        """Whether features differ by no more than the noise of summation order."""
        return figures.rel_l2 <= self.rel_l2_floor

    def bound(self, torch_rel_l2: float | None) -> float:
        """The relative L2 error allowed beside PyTorch's own; None if PyTorch's is not finite."""
        return min(self.rel_l2_limit, max(self.rel_l2_floor, self._beside(torch_rel_l2)))

    def centred_bound(self, torch_rel_l2: float | None) -> float:
        """The centred relative L2 error allowed beside PyTorch's own; None if PyTorch's is not finite."""
        return min(self.centred_limit, max(self.centred_floor, self._beside(torch_rel_l2)))

    def bounds(self, torch: Figures) -> tuple[float, float]:
        """The plain and the centred relative L2 error allowed beside PyTorch's figures."""
        if not torch.finite:
            return self.bound(None), self.centred_bound(None)
        return self.bound(torch.rel_l2), self.centred_bound(torch.centred_rel_l2)

    def _beside(self, torch_rel_l2: float | None) -> float:
        return 0.0 if torch_rel_l2 is None or not math.isfinite(torch_rel_l2) else self.over_torch * torch_rel_l2


THRESHOLDS: dict[str, Thresholds] = {
    "fp32": Thresholds(
        over_torch=2, rel_l2_floor=1e-5, rel_l2_limit=1e-3, centred_floor=2e-5, centred_limit=2e-3, cosine_min=0.99999
    ),
    "fp16": Thresholds(
        over_torch=2, rel_l2_floor=2e-3, rel_l2_limit=3e-2, centred_floor=2.5e-3, centred_limit=4e-2, cosine_min=0.999
    ),
    "bf16": Thresholds(
        over_torch=2, rel_l2_floor=1.6e-2, rel_l2_limit=1.5e-1, centred_floor=2.7e-2, centred_limit=2.5e-1,
        cosine_min=0.98,
    ),
    # 3 dB of what the same quantization loses in PyTorch, as measured at export; never under 14 and 11 dB.
    "int8": Thresholds(
        over_torch=1.41, rel_l2_floor=1e-2, rel_l2_limit=2e-1, centred_floor=1.6e-2, centred_limit=3.2e-1,
        cosine_min=0.95,
    ),
    "fp8": Thresholds(
        over_torch=1.41, rel_l2_floor=2e-2, rel_l2_limit=2.8e-1, centred_floor=3.2e-2, centred_limit=4.5e-1,
        cosine_min=0.9,
    ),
}  # fmt: skip
"""By precision. The centred floors and limits follow what PyTorch loses in either figure, see docs/parity.md."""


def unmeasured(thresholds: Thresholds) -> Figures:
    """Stands for PyTorch's figures if they were never measured: every bound is then its limit."""
    plain, centred = (x / thresholds.over_torch for x in (thresholds.rel_l2_limit, thresholds.centred_limit))
    cosine = thresholds.cosine_min
    return Figures(0.0, plain, cosine, cosine, decibels(plain), True, centred, decibels(centred))


def judge(
    figures: Figures, torch: Figures, thresholds: Thresholds, *, bound_db: float | None = None,
    bound_figure: BoundFigure = "stricter",
) -> tuple[Status, str]:  # fmt: skip
    """Status and one sentence.

    Args:
        figures: of the artifact.
        torch: of PyTorch in the same precision, or `unmeasured`.
        thresholds: of the precision.
        bound_db: SQNR in dB that the user asked for.
        bound_figure: the SQNR that `bound_db` is about.
    """
    if not figures.finite:
        also = "" if torch.finite else "; PyTorch overflows in this precision too"
        return "non-finite", f"the artifact's output has infinite or undefined values{also}"
    plain, centred = thresholds.bounds(torch)
    # Comparisons are written so that an undefined figure fails too.
    if not figures.rel_l2 <= plain:
        return "fail", f"relative L2 error {figures.rel_l2:.1e} is over the bound of {plain:.1e}"
    if figures.centred_rel_l2 is not None and not figures.centred_rel_l2 <= centred:
        return "fail", f"centred relative L2 error {figures.centred_rel_l2:.1e} is over the bound of {centred:.1e}"
    if not figures.cosine_min >= thresholds.cosine_min:
        return "fail", f"the worst token's cosine {figures.cosine_min:.6f} is under {thresholds.cosine_min}"
    found_db = figures.sqnr_db if bound_figure == "plain" else figures.strict_sqnr_db
    if bound_db is not None and not found_db >= bound_db:
        return "fail", f"SQNR {found_db:.1f} dB is under the {bound_db:.1f} dB asked for"
    reason = f"relative L2 error {figures.rel_l2:.1e} within {plain:.1e}"
    if figures.centred_rel_l2 is not None:
        reason += f", centred {figures.centred_rel_l2:.1e} within {centred:.1e}"
    return "pass", reason
