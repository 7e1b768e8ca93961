"""One operator's candidates: compared with float64, recorded, timed side by side, and told as plain data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.errors import first_line
from ....core.gpus import get_gpu
from ....kernels.ceilings import Ceilings
from ....kernels.timing import SAMPLE_MS, CaptureError, Clock, Replay, Timing, check_alive, paired
from .cases import Case, ends

ALLOWED = 2.0
"""Error of a candidate over that of PyTorch's plain form in the same dtype, both against float64."""
CASE_S = 0.4
"""Seconds to time one operator's candidates in, beside recording their graphs."""


def case_row(
    case: Case, clock: Clock, top: Ceilings, gpu: str | None = None, seconds: float = CASE_S
) -> dict[str, Any]:
    """Compares and times one operator's candidates: plain data.

    `times_ms` are medians by candidate, see `figures` for what follows from them. `errors` are relative L2 distances
    from float64; `wrong` candidates, whose result is another, and `failed` ones, which did not run, are not timed.
    """
    with torch.inference_mode():
        checked = check(case)
        fine = {name: runs for name, runs in {**case.kernels, **case.rivals}.items() if checked.fine(name)}
        replays, failed = replays_of(fine, clock, copies=0 if seconds else 1)
        timings = timed(replays, clock, seconds)
    row = {
        "count": case.count, "kernels": list(case.kernels), "errors": checked.errors, "clock": clock.name,
        "wrong": checked.wrong, "failed": checked.failed | failed, "floor_ms": top.floor_ms(case.flops, case.bytes),
        "sheet_floor_ms": _sheet_floor_ms(case, gpu),
    }  # fmt: skip
    row["timings"] = [timing.to_dict() for timing in timings]
    return row | figures(medians(timings), case.kernels, case.chosen)


@dataclass(frozen=True)
class Checked:
    """Candidates against float64: relative L2 distances, those too far away, and what kept others from running."""

    errors: dict[str, float]
    wrong: dict[str, float]
    failed: dict[str, str]

    def fine(self, name: str) -> bool:
        return name in self.errors and name not in self.wrong


def check(case: Case) -> Checked:
    """Runs every candidate once on memory that held NaN, and compares with float64."""
    reference = case.reference()
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, runs in {**case.rivals, **case.kernels}.items():
        try:
            result = _poisoned(runs[0], reference)
            found[name] = error_of(result, reference)
        except Exception as error:  # a rival this PyTorch or GPU has not, or a kernel that does not take this size
            failed[name] = first_line(error)
            if torch.cuda.is_available():
                check_alive()
    plain = next((found[name] for name in case.rivals if name in found), 0.0)
    eps = torch.finfo(result.dtype).eps if found else 0.0
    # Of float32 sums, the order alone makes more than one eps on some processors.
    limit = max(ALLOWED * plain, 2 * eps if found and result.dtype == torch.float32 else eps)
    return Checked(found, {name: error for name, error in found.items() if not error <= limit}, failed)


def _poisoned(run: Callable[[], Tensor], reference: Tensor) -> Tensor:
    """The result of `run`, whose memory was full of NaN before: what it does not write is not finite."""
    shape = run().shape  # also compiles what is not yet compiled
    held = [
        torch.full(shape, float("nan"), dtype=dtype, device=reference.device) for dtype in (torch.half, torch.float)
    ]
    del held
    return run()


def error_of(result: Tensor, reference: Tensor) -> float:
    """Relative L2 distance of a result, at the rows that `ends` takes, from those in float64."""
    found = ends(result).double().reshape(reference.shape)
    return float((found - reference).norm() / reference.norm())


def replays_of(
    candidates: Mapping[str, Sequence[Callable[[], object]]], clock: Clock, copies: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Graphs of the candidates by name, and why others have none."""
    replays, failed = {}, {}
    for name, runs in candidates.items():
        try:
            replays[name] = Replay(runs, copies=copies, clock=clock)
        except CaptureError as error:
            failed[name] = str(error)
    return replays, failed


def timed(replays: Mapping[str, Callable[[], object]], clock: Clock, seconds: float) -> list[Timing]:
    """Times graphs side by side for about so many seconds; with 0 each runs three times."""
    if not replays:
        return []
    return paired(replays, budget_s=seconds, clock=clock, sample_ms=SAMPLE_MS if seconds else 0.0)


def figures(times: Mapping[str, float], ours: Collection[str], chosen: str | None) -> dict[str, Any]:
    """What a row says of milliseconds by candidate.

    `ms` is the chosen kernel's time, or the fastest one's where PyTorch is chosen; `speedup` the fastest rival's over
    it. None where there is no such candidate.
    """
    rivals = {name: ms for name, ms in times.items() if name not in ours}
    kernels = {name: ms for name, ms in times.items() if name in ours}
    best = min(rivals, key=lambda name: rivals[name], default=None)
    fastest = min(kernels, key=lambda name: kernels[name], default=None)
    ms = times.get(chosen or fastest or "")
    best_ms = None if best is None else rivals[best]
    return {
        "used": chosen is not None, "chosen": chosen, "times_ms": dict(times), "ms": ms, "best_rival": best,
        "best_rival_ms": best_ms, "fastest_kernel": fastest,
        "speedup": None if ms is None or best_ms is None else best_ms / ms,
    }  # fmt: skip


def medians(timings: Sequence[Timing]) -> dict[str, float]:
    """Milliseconds by candidate."""
    return {timing.name: timing.median_ms for timing in timings}


def _sheet_floor_ms(case: Case, gpu: str | None) -> float | None:
    if gpu is None:
        return None
    sheet = get_gpu(gpu)
    rate = sheet.tflops if case.op != "depthwise" else sheet.fp32_tflops or float("inf")
    return 1e3 * max(case.flops / (1e12 * rate), case.bytes / (1e9 * sheet.bandwidth))
