"""The table of candidates, each a tool's file on a runtime, and what is found out about one."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from ....core.errors import ConfigError
from ....core.verdict.figures import Figures
from ....kernels.timing import Timing
from ...peers.runners import Hint, Runtime
from ...peers.tool_files import Made
from .quantizers import TOOLS

BASELINE = "fp32-onnxruntime"


@dataclass(frozen=True)
class Candidate:
    """A tool's file on a runtime.

    Attributes:
        tool: a name of `TOOLS`.
        runtime: what runs it.
        hints: what OpenVINO may compute float operators in; of several, the faster is reported.
    """

    tool: str
    runtime: Runtime
    hints: tuple[Hint, ...] = ("f32",)


CANDIDATES: dict[str, Candidate] = {
    BASELINE: Candidate("fp32", "onnxruntime"),
    "fp32-openvino": Candidate("fp32", "openvino"),
    "bf16-openvino": Candidate("fp32", "openvino", ("bf16",)),
    "ort-default": Candidate("ort-default", "onnxruntime"),
    "ort-best": Candidate("ort-best", "onnxruntime"),
    "ort-our-layers": Candidate("ort-our-layers", "onnxruntime"),
    "nncf-default": Candidate("nncf-default", "openvino", ("f32", "bf16")),
    "nncf-transformer": Candidate("nncf-transformer", "openvino", ("f32", "bf16")),
    "modelopt-onnxruntime": Candidate("modelopt", "onnxruntime"),
    "modelopt-openvino": Candidate("modelopt", "openvino", ("f32", "bf16")),
    "ours-onnxruntime": Candidate("ours-onnxruntime", "onnxruntime"),
    "ours-openvino": Candidate("ours-openvino", "openvino", ("f32", "bf16")),
}


def chosen(only: str | None) -> list[str]:
    """The candidates to run, the baseline first; None is all of them. Raises ConfigError for an unknown name."""
    wanted = list(CANDIDATES) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in wanted if name not in CANDIDATES]
    if unknown:
        raise ConfigError(f"unknown candidate {unknown[0]!r} in --only; known are {', '.join(CANDIDATES)}")
    return [name for name in CANDIDATES if name in wanted or name == BASELINE]


@dataclass
class Row:
    """What is known of one candidate.

    Attributes:
        made: its file.
        figures: per hint, per test photograph, against the eager model.
        together: per hint, the worst of all photographs, whose common mean the centred figures leave out.
        probe_ms: per hint, where there are several.
        hint: the faster one.
        timing: beside all others.
        skipped: why there is no more.
    """

    name: str
    made: Made | None = None
    figures: dict[Hint, dict[str, Figures]] = field(default_factory=dict)
    together: dict[Hint, Figures] = field(default_factory=dict)
    probe_ms: dict[str, float] = field(default_factory=dict)
    hint: Hint | None = None
    timing: Timing | None = None
    skipped: str | None = None

    def sqnr_db(self, hint: Hint) -> tuple[float, float]:
        """Signal over error: of the worst photograph, and the mean."""
        values = [f.sqnr_db for f in self.figures[hint].values()]
        return min(values), statistics.fmean(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        candidate = CANDIDATES[self.name]
        result: dict[str, Any] = {
            "name": self.name, "runtime": candidate.runtime, "settings": TOOLS[candidate.tool].settings,
            "skipped": self.skipped, "hint": self.hint, "probe_ms": self.probe_ms,
            "timing": None if self.timing is None else self.timing.to_dict(),
        }  # fmt: skip
        if self.made is not None:
            made = self.made
            result |= {"bytes": made.size, "seconds_to_make": made.seconds, "made_with": made.versions}
        result["accuracy"] = {hint: self._accuracy(hint) for hint in self.figures}
        return result

    def _accuracy(self, hint: Hint) -> dict[str, Any]:
        figures = self.figures[hint]
        low, mean = self.sqnr_db(hint)
        return {
            "sqnr_db_worst": low, "sqnr_db_mean": mean,
            "sqnr_db": {name: f.sqnr_db for name, f in figures.items()},
            "worst": self.together[hint].to_dict(),
        }  # fmt: skip

    def __str__(self) -> str:
        if self.made is None or self.hint is None:
            return f"{self.name:21s} skipped: {self.skipped}"
        low, mean = self.sqnr_db(self.hint)
        floats = self.hint if CANDIDATES[self.name].runtime == "openvino" else ""
        centred = self.together[self.hint].centred_sqnr_db
        text = (
            f"{self.name:21s} {floats:5s} {low:7.2f} {mean:7.2f} {centred or math.nan:7.2f} {self.made.size / 1e6:8.1f}"
        )
        if (t := self.timing) is not None:
            text += f" {t.median_ms:9.1f} {t.speedup:7.2f}x [{t.speedup_p10:.2f}..{t.speedup_p90:.2f}]"
        return text


HEADER = (
    f"{'candidate':21s} {'float':5s} {'SQNR dB':>7s} {'mean':>7s} {'centred':>7s} {'MB':>8s} {'ms':>9s} {'faster':>8s}"
)
