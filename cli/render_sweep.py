"""What `fvexport sweep` prints: a table of the cells, what has none and why, and the next command."""

from __future__ import annotations

from collections.abc import Collection

from ..benchmarks.report.headline import speedup
from ..benchmarks.report.speedup import BASELINE, beside_eager
from ..benchmarks.report.write import Report
from ..benchmarks.sweep.result import Result
from ..benchmarks.sweep.run import SweepReport
from ..core.phrases import counted, first_few
from ..core.shell import quoted
from . import printing


def sweep(found: SweepReport, report: Report) -> None:
    """A table for each resolution, what has no figures and why, and the next command to type."""
    eager = {r.cell.id for r in found.results if r.cell.series == BASELINE}
    beside = dict(zip((r.cell.id for r in found.results), beside_eager(found.results), strict=True))
    printing.write_line(
        f"{found.measured} cells measured in {found.seconds:.0f} s" if found.measured else "nothing to do"
    )
    for place in dict.fromkeys(map(_place, found.results)):
        results = [result for result in found.results if _place(result) == place]
        rows = [_row(beside[result.cell.id], eager) for result in results]
        header = ("", "ms", "images/s", "over eager", "SQNR, dB", "MB")
        printing.table(header, rows, title=_title(results))
    told = _reasons(found.results)
    for entry in found.absent:
        words = " ".join(filter(None, (entry.backend, entry.precision)))
        told.append(f"{words} is absent: {entry.reason}" + (f"; `{entry.install}`" if entry.install else ""))
    printing.notices(told)
    where = quoted(found.out)
    printing.write_line(f"report: {quoted(report.html)} (also .md and .csv)")
    printing.write_line(f"next: fvexport report {where} OTHER_SWEEP  # another machine or date, with the differences")


def _reasons(results: list[Result]) -> list[str]:
    """Why cells have no figures or doubtful ones; those that share a reason in one sentence."""
    cells: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.reason:
            batch = f" b{result.cell.batch}" if result.cell.batch > 1 else ""
            name = f"{result.cell.resolution}{batch} {result.cell.series}"
            cells.setdefault((result.status, result.reason), []).append(name)
    return [f"{first_few(names, printing.MAX_NAMES)}: {status}, {reason}" for (status, reason), names in cells.items()]


def _title(results: list[Result]) -> str:
    cell, tokens = results[0].cell, next((r.tokens for r in results if r.tokens), None)
    images = "one image" if cell.batch == 1 else f"{cell.batch} images"
    llm = f", to the first token of {cell.llm} after {cell.prompt_tokens} tokens of text" if cell.llm else ""
    seen = f", {counted(tokens, 'visual token')}" if tokens else ""
    return f"{cell.resolution}: {images} a call, {counted(cell.threads, 'thread')}{seen}{llm}"


def _place(result: Result) -> tuple[object, ...]:
    """What has to agree for a speed-up to mean something."""
    cell = result.cell
    return cell.llm, cell.prompt_tokens, cell.resolution, cell.batch, cell.threads


def _row(result: Result, eager: Collection[str]) -> tuple[str, ...]:
    cell, latency = result.cell, result.latency
    if latency is None:
        return (cell.series, result.status, "", "", "", "")
    parity = result.parity
    sqnr = "" if parity is None else "equal" if parity.rel_l2 == 0 else _number(parity.strict_sqnr_db, ".1f")
    return (
        cell.series, f"{latency.p50_ms:.4g}" + ("?" if result.status == "unstable" else ""),
        _number(result.images_per_second, ".4g"), _speedup(result, eager),
        sqnr if parity is None or parity.status == "pass" else f"{sqnr} {parity.status}".strip(),
        _number(result.peak_host_mb, ".0f"),
    )  # fmt: skip


def _speedup(result: Result, eager: Collection[str]) -> str:
    """Over eager, round by round, as the report has it; nothing where eager was not measured beside it."""
    found = speedup(result)
    if found is None or result.latency is None or result.latency.reference not in eager:
        return ""
    return f"{found.value:.2f}x"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
