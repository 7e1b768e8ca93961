"""From a cell's windows to its line."""

from __future__ import annotations

import statistics

from ...core.plain_text import plain_line
from .messages import File
from .result import Result, Ttft
from .round_group import CellWorker
from .sweep_options import Measuring
from .windows import summarize, unstable_reason


def measured_result(member: CellWorker, file: File, how: Measuring, environment: str, date: str) -> Result:
    """The result of a cell that has windows; `unstable` where they disagree or are too few."""
    info = member.info
    latency = summarize(member.windows, how, info.timer)
    return Result(
        cell=member.cell,
        status="ok" if latency.stable else "unstable",
        reason="" if latency.stable else unstable_reason(latency, how, "the budget ended"),
        environment=environment,
        date=date,
        computes=plain_line(info.computes),
        latency=latency,
        tokens=info.tokens,
        build_s=file.seconds,
        load_s=info.load_s,
        first_ms=info.first_ms,
        peak_host_mb=info.peak_host_mb,
        run_host_mb=member.run_host_mb,
        peak_gpu_mb=member.gpu_mb,
        energy_j=statistics.fmean(member.energy) if member.energy else None,
        parity=info.parity,
        ttft=_ttft(member),
        artifact_mb=file.mb,
    )


def _ttft(member: CellWorker) -> Ttft | None:
    parts = [part for window in member.windows for part in window.parts_ms]
    if not parts:
        return None
    encoder, connector, prefill = (statistics.median(part) for part in zip(*parts, strict=True))
    total = statistics.median(sum(part) for part in parts)
    return Ttft(encoder, connector, prefill, total, member.info.tokens, member.cell.prompt_tokens or 0)
