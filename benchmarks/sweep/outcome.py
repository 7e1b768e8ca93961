"""From a cell's windows to its line."""

from __future__ import annotations

import statistics

from .cell_files import File
from .result import Parity, Result, Ttft
from .round_group import Live
from .sweep_options import Measuring
from .windows import summarize, unstable_reason


def measured_result(live: Live, file: File, how: Measuring, environment: str, date: str) -> Result:
    """The result of a cell that has windows; `unstable` where they disagree or are too few."""
    info = live.info
    latency = summarize(live.windows, how, info["timer"])
    return Result(
        live.cell,
        "ok" if latency.stable else "unstable",
        "" if latency.stable else unstable_reason(latency, how, "the budget ended"),
        environment,
        date,
        computes=info["computes"],
        latency=latency,
        tokens=info["tokens"],
        build_s=file.seconds,
        load_s=info["load_s"],
        first_ms=info["first_ms"],
        peak_host_mb=info["peak_host_mb"],
        run_host_mb=live.peaks.get("run_host_mb"),
        peak_gpu_mb=live.peaks.get("gpu_mb"),
        energy_j=statistics.fmean(live.energy) if live.energy else None,
        parity=Parity(**info["parity"]) if info["parity"] else None,
        ttft=_ttft(live),
        artifact_mb=file.mb,
    )


def _ttft(live: Live) -> Ttft | None:
    parts = [part for window in live.windows for part in window.parts_ms]
    if not parts:
        return None
    encoder, connector, prefill = (statistics.median(part) for part in zip(*parts, strict=True))
    total = statistics.median(sum(part) for part in parts)
    return Ttft(encoder, connector, prefill, total, live.info["tokens"], live.cell.prompt_tokens or 0)
