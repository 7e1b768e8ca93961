"""One definition of the table of cells, for HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core.plain_text import plain_line
from ..sweep.result import Result
from .formatting import decibels, three, times
from .headline import speedup
from .intervals import Interval
from .load import Run
from .series import DASHES

Importance = Literal["main", "more"]


@dataclass(frozen=True)
class Entry:
    """A cell of the table: what is read, what it is sorted by (None goes last), and a longer text for the pointer."""

    text: str
    key: float | str | None
    title: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its title, unit or meaning, whether it holds numbers, and whether paper has room for it."""

    title: str
    meaning: str
    entry: Callable[[Result], Entry]
    number: bool = True
    importance: Importance = "main"


def _number(value: float | None, digits: Callable[[float], str] = three) -> Entry:
    return Entry("", None) if value is None else Entry(digits(value), value)


def _sqnr(name: str) -> Callable[[Result], Entry]:
    def entry(result: Result) -> Entry:
        parity = result.parity
        if parity is None:
            return Entry("", None)
        if parity.sqnr_db is None and parity.rel_l2 == 0:
            return Entry("exact", math.inf, "equal bit by bit")
        level: float | None = getattr(parity, name)
        return Entry(decibels(level).removesuffix(" dB"), level)

    return entry


def _speedup(result: Result) -> Entry:
    interval: Interval | None = speedup(result)
    if interval is None:
        return Entry("", None)
    if interval.low is None or interval.high is None:
        return Entry(times(interval.value), interval.value, "too few rounds for an interval")
    return Entry(times(interval.value), interval.value, f"95 %: {times(interval.low)} to {times(interval.high)}")


def _parity(result: Result) -> Entry:
    parity = result.parity
    return Entry("", None) if parity is None else Entry(parity.status, parity.status)


def _cosine(result: Result) -> Entry:
    cosine = result.parity.cosine if result.parity else None
    return Entry("", None) if cosine is None else Entry(f"{cosine:.6f}", cosine)


def _latency(name: str) -> Callable[[Result], Entry]:
    return lambda result: _number(getattr(result.latency, name) if result.latency else None)


def _runner(result: Result) -> Entry:
    cell = result.cell
    llm = f" + {cell.llm}" if cell.llm else ""
    return Entry(f"{cell.runner}{llm}", f"{cell.kind} {cell.runner}{llm}", result.computes)


COLUMNS: tuple[Column, ...] = (
    Column("backend", "what ran it", _runner, number=False),
    Column(
        "precision",
        "of weights and activations",
        lambda r: Entry(r.cell.precision, float(list(DASHES).index(r.cell.precision))),
        number=False,
    ),
    Column("resolution", "pixels", lambda r: Entry(r.cell.resolution, float(r.cell.pixels))),
    Column("batch", "images per call", lambda r: Entry(str(r.cell.batch), r.cell.batch)),
    Column("p50, ms", "median time of one call", _latency("p50_ms")),
    Column("p90, ms", "of one call", _latency("p90_ms")),
    Column("p99, ms", "of one call", _latency("p99_ms"), importance="more"),
    Column("images/s", "from the median", lambda r: _number(r.images_per_second if r.cell.kind != "ttft" else None)),
    Column("speed-up", "over the reference cell, median of the ratios within rounds", _speedup),
    Column("SQNR, dB", "signal over error against eager float32", _sqnr("sqnr_db")),
    Column("centred, dB", "the same without the features' constant part", _sqnr("centred_sqnr_db")),
    Column("cosine", "mean over tokens, worst photograph", _cosine, importance="more"),
    Column("parity", "whether it is still the same model", _parity, number=False),
    Column("host, MB", "largest resident memory", lambda r: _number(r.peak_host_mb)),
    Column("GPU, MB", "largest GPU memory", lambda r: _number(r.peak_gpu_mb)),
    Column("energy, J", "of the GPU for one image", lambda r: _number(r.energy_j), importance="more"),
    Column("file, MB", "that it runs", lambda r: _number(r.artifact_mb), importance="more"),
    Column("build, s", "export and calibration, done once", lambda r: _number(r.build_s), importance="more"),
    Column("load, s", "until it is ready", lambda r: _number(r.load_s), importance="more"),
    Column("first, ms", "the first call", lambda r: _number(r.first_ms), importance="more"),
    Column(
        "tokens", "visual tokens of one image", lambda r: _number(r.tokens, lambda v: f"{v:.0f}"), importance="more"
    ),
    Column("threads", "of one call", lambda r: Entry(str(r.cell.threads), r.cell.threads), importance="more"),
    Column("status", "ok, or why not", lambda r: Entry(r.status, r.status, r.reason), number=False),
)


@dataclass(frozen=True)
class Table:
    """Columns that hold anything, and a row for each result."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    results: tuple[Result, ...]


def table(run: Run) -> Table:
    """Every cell of a run; columns that would be empty are left out."""
    rows = [[column.entry(result) for column in COLUMNS] for result in run.results]
    kept = [index for index in range(len(COLUMNS)) if any(row[index].text for row in rows)]
    return Table(
        tuple(COLUMNS[index] for index in kept), tuple(tuple(row[index] for index in kept) for row in rows), run.results
    )


# --- for programs ------------------------------------------------------------------------------

CSV_COLUMNS = (
    "machine", "date", "kind", "backend", "form", "precision", "height", "width", "tiles", "batch", "threads",
    "variant", "checkpoint", "weights", "samples", "llm", "prompt_tokens", "status", "reason", "p50_ms", "p90_ms",
    "p99_ms", "mean_ms", "min_ms", "calls", "rounds", "timer", "spread", "images_per_second", "speedup",
    "speedup_low", "speedup_high", "parity", "sqnr_db", "centred_sqnr_db",
    "cosine", "cosine_min", "rel_l2", "centred_rel_l2",
    "tokens", "peak_host_mb",
    "run_host_mb", "peak_gpu_mb", "energy_j", "artifact_mb", "build_s", "load_s", "first_ms", "ttft_encoder_ms",
    "ttft_connector_ms", "ttft_prefill_ms", "ttft_total_ms", "computes",
)  # fmt: skip


FORMULA_STARTS = tuple("=+-@＝＋－＠")
"""A spreadsheet takes a cell that starts like this for a formula."""


def to_csv(runs: Sequence[Run]) -> str:
    """A line for each cell of each run; what was not measured is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows(_csv_row(run, result) for result in run.results)
    return buffer.getvalue()


def _csv_row(run: Run, result: Result) -> dict[str, Any]:
    cell, latency, parity, ttft = result.cell, result.latency, result.parity, result.ttft
    over = speedup(result)
    row: dict[str, Any] = {"machine": run.label}
    for source in (cell, latency, parity, result):
        row |= {name: getattr(source, name) for name in CSV_COLUMNS if hasattr(source, name)}
    row["parity"] = parity.status if parity else None
    if latency:
        row |= {"calls": latency.count, "rounds": len(latency.windows)}
    if over:
        row |= {"speedup": over.value, "speedup_low": over.low, "speedup_high": over.high}
    if ttft:
        row |= {f"ttft_{part}_ms": getattr(ttft, f"{part}_ms") for part in ("encoder", "connector", "prefill", "total")}
    return {name: _literal(row.get(name)) for name in CSV_COLUMNS}


def _literal(value: Any) -> Any:
    """`value`; a text that a spreadsheet would compute gets an apostrophe in front.

    Source: OWASP, "CSV Injection".
    """
    if not isinstance(value, str):
        return value
    plain = plain_line(value)
    return f"'{plain}" if plain.lstrip().startswith(FORMULA_STARTS) else plain
