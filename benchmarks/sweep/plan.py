"""Which cells a sweep has, in which order, and which backends have none here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...core import hardware
from ...core.errors import ConfigError, first_line
from ...core.plain_text import plain_line, storable_line
from ...export.backend_table import BACKENDS, BackendInfo, get_backend, why_absent
from ...export.precision import QUANTIZED, Precision
from ..peers.table import PEERS, get_peer, why_peer_absent
from .messages import Weights
from .result import Absent, Cell, Kind
from .sweep_options import SweepOptions

EAGER_FORMS = ("train", "channels-last", "fused")
ORDER: tuple[Precision, ...] = ("fp32", "int8", "bf16", "fp16", "fp8")
"""Of precisions, the most telling first."""
NATIVE = (1024, 1024)
ANYRES_TILES = 5


@dataclass(frozen=True)
class Plan:
    """What will be measured.

    Attributes:
        groups: cells measured in the same rounds; the most telling group first, and in it the most telling cell.
        absent: backends, or their precisions, that have no cell.
    """

    groups: list[list[Cell]]
    absent: list[Absent]

    @property
    def cells(self) -> list[Cell]:
        return [cell for group in self.groups for cell in group]


def make_plan(options: SweepOptions, weights: Weights, environment: str) -> Plan:
    """The cells of `options` on this machine; `environment` is the id under which absent backends are noted.

    Raises ConfigError where nothing is left to measure.
    """
    absent: dict[tuple[Kind, str, str | None], Absent] = {}

    def note(kind: Kind, backend: str, precision: Precision | None, reason: str, install: str = "") -> None:
        missing = Absent(backend, precision, plain_line(reason), install, environment, kind)
        absent.setdefault((kind, backend, precision), missing)

    rows = []
    named = dict.fromkeys(get_backend(name) for name in options.backends or ())  # an alias may repeat a name
    for row in BACKENDS if options.backends is None else named:
        reason = _why_absent(row)
        if reason is None:
            rows.append(row)
        else:
            note("ours", row.name, None, reason, row.install)
    pairs: list[tuple[BackendInfo, Precision]] = []
    for row in rows:
        for precision in ORDER if options.precisions is None else options.precisions:
            if precision in row.precisions:
                pairs.append((row, precision))
            elif options.precisions is not None:
                note("ours", row.name, precision, f"does not run {precision} natively")
    threads = options.threads or hardware.usable_threads()
    base = _Base(weights, threads, options.samples)
    groups = []
    for batch in sorted(options.batches):
        for height, width in _ordered(options.resolutions):
            cells = [c for row, p in pairs for c in base.ours(row, p, (height, width, batch))]
            if options.peers:
                for peer in PEERS:
                    for precision in peer.precisions:
                        if options.precisions is not None and precision not in options.precisions:
                            continue
                        reason = why_peer_absent(peer, precision, height, width, batch)
                        if reason is None:
                            cells.append(base.cell("peer", peer.name, precision, (height, width, batch)))
                        else:
                            note("peer", peer.name, precision, reason, get_backend(peer.target).install)
            groups.append(sorted(cells, key=_rank))
    groups += _ttft_groups(options, pairs, base, note)
    groups = [group for group in groups if group]
    if not any(cell.kind != "peer" for group in groups for cell in group):
        why = next((f"{a.backend}: {a.reason}" for a in absent.values() if a.kind == "ours"), "no backend was named")
        raise ConfigError(f"nothing to measure here ({why}); `fvexport doctor` says what can run")
    return Plan(groups, list(absent.values()))


@dataclass(frozen=True)
class _Base:
    """What all cells of a sweep share."""

    weights: Weights
    threads: int
    samples: int

    def cell(self, kind: Kind, backend: str, precision: Precision, size: tuple[int, int, int], **own: Any) -> Cell:
        """The cell of a `size` (height, width, batch); `own` are further fields of it."""
        height, width, batch = size
        weights = self.weights
        return Cell(
            kind=kind, backend=backend, precision=precision, height=height, width=width, batch=batch,
            threads=self.threads, variant=weights.variant, checkpoint=storable_line(weights.checkpoint),
            weights=weights.sha256[:12],
            samples=self.samples if precision in QUANTIZED else None, **own,
        )  # fmt: skip

    def ours(self, row: BackendInfo, precision: Precision, size: tuple[int, int, int]) -> Iterator[Cell]:
        """The cells of one row of the table: `eager` has three."""
        for form in EAGER_FORMS if row.name == "eager" else ("",):
            yield self.cell("ours", row.name, precision, size, form=form)


def _why_absent(row: BackendInfo) -> str | None:
    try:
        return why_absent(row)
    except (Exception, SystemExit) as error:  # it imports the runtime, which may be broken in any way
        return f"{row.module} fails to import: {first_line(error)}"


def _ordered(resolutions: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """The smallest (quick, and shows that all runs), the native one, then the others from small to large."""
    rest = sorted(set(resolutions), key=lambda side: side[0] * side[1])
    first = [rest[0]] + ([NATIVE] if NATIVE in rest[1:] else [])
    return first + [size for size in rest if size not in first]


def compiles(cell: Cell) -> bool:
    """Whether a cell's backend, or the one a peer runs on, compiles for a minute or more before its first image."""
    return get_backend(get_peer(cell.backend).target if cell.kind == "peer" else cell.backend).compiles


def _rank(cell: Cell) -> tuple[bool, int, bool, int]:
    """Sorts the cells of a group, those that compile first last; the first becomes the reference of the others."""
    form = EAGER_FORMS.index(cell.form) if cell.form else 0
    return compiles(cell), ORDER.index(cell.precision), cell.kind == "peer", form


def _ttft_groups(
    options: SweepOptions, pairs: list[tuple[BackendInfo, Precision]], base: _Base, note: object
) -> list[list[Cell]]:
    """One group for each language model and resolution; at the native one, or else the largest, also AnyRes."""
    assert callable(note)
    if options.llms and importlib.util.find_spec("transformers") is None:
        for llm in options.llms:
            note("ttft", llm, None, "transformers is not installed", "pip install transformers")
        return []
    sizes = _ordered(options.resolutions)
    anyres = NATIVE if NATIVE in sizes else max(sizes, key=lambda side: side[0] * side[1])
    groups = []
    for llm in options.llms:
        for height, width in sizes:
            for tiles in (1, ANYRES_TILES) if (height, width) == anyres else (1,):
                cells = [
                    base.cell(
                        "ttft", row.name, precision, (height, width, 1), form=form, llm=llm,
                        prompt_tokens=options.prompt_tokens, tiles=tiles,
                    )
                    for row, precision in pairs
                    for form in (("train", "channels-last") if row.name == "eager" else ("",))
                ]  # fmt: skip
                groups.append(sorted(cells, key=_rank))
    return groups
