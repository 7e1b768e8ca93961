"""The files of a sweep: lines that are appended one by one, and read back whatever killed the writer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import ArtifactError
from ...core.input_file import parse_json
from ...core.records import Name, RecordError, Text, parse
from ...core.records import Record as BaseRecord
from ..json_lines import append_lines, check_torn_line, complete_lines
from .result import Absent, Cell, Environment, Record, Result, from_line, to_line
from .windows import TimedWindow

RESULTS_FILE = "results.jsonl"
ROUNDS_FILE = "rounds.jsonl"
RESULTS_BEGIN = '{"schema": '
ROUNDS_BEGIN = '{"environment": "'


@dataclass
class Sweep:
    """All that stands in a results file.

    Attributes:
        path: the file.
        environments: by id, in the order in which they came.
        absent: backends without a cell.
        results: the last of each cell in each environment.
    """

    path: Path
    environments: dict[str, Environment] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Reads a folder that `fvexport sweep --out` wrote, or its results file.

    Of a cell that was skipped and measured later, the later line counts. A last line that was cut off by a kill is
    left out.

    Raises:
        ArtifactError: nothing is there, or a line is no result.
    """
    file = results_file(path)
    environments: dict[str, Environment] = {}
    absent: dict[tuple[str, str, str | None, str], Absent] = {}
    results: dict[tuple[str, str], Result] = {}
    for record in _records(file):
        if isinstance(record, Environment):
            environments.setdefault(record.id, record)
        elif isinstance(record, Absent):
            absent[record.environment, record.backend, record.precision, record.kind] = record
        else:
            results[record.environment, record.cell.id] = record
    return Sweep(file, environments, list(absent.values()), list(results.values()))


def results_file(path: str | os.PathLike[str]) -> Path:
    """The results file that `path` names, or holds; raises ArtifactError where there is none."""
    file = Path(path)
    if os.path.isdir(file):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        file = file / RESULTS_FILE
    if not os.path.exists(file):  # noqa: PTH110
        raise ArtifactError(f"no results at {file}; make them with `fvexport sweep --out {file.parent}`")
    return file


def check_torn_lines(folder: Path) -> None:
    """Raises ArtifactError, before anything is measured, where adding lines would remove one that no sweep wrote."""
    for name, begins in ((RESULTS_FILE, RESULTS_BEGIN), (ROUNDS_FILE, ROUNDS_BEGIN)):
        try:
            check_torn_line(folder / name, begins)
        except OSError as error:
            raise ArtifactError(
                f"cannot read {folder / name} ({error.strerror or error}); choose another --out"
            ) from None


def append(file: Path, *records: Record) -> None:
    """Adds lines that are on the disk when this returns."""
    append_lines(file, [to_line(record) for record in records], begins=RESULTS_BEGIN)


class _WindowOf(BaseRecord, frozen=True, kw_only=True):
    """Whose window a line is."""

    environment: Name
    cell: Text


class Rounds:
    """The windows of every round as they are taken: what a killed sweep goes on from.

    Args:
        out: the sweep's folder.
        environment: windows of another one do not count.
    """

    def __init__(self, out: Path, environment: str) -> None:
        self.file, self.environment = out / ROUNDS_FILE, environment
        self.windows: dict[str, list[TimedWindow]] = {}
        try:
            for number, line in complete_lines(self.file):
                try:
                    self._read(parse_json(line))
                except ValueError as error:
                    raise ArtifactError(
                        f"line {number} of {self.file} is damaged ({error}); remove that file"
                    ) from None
        except OSError as error:
            raise ArtifactError(f"cannot read {self.file}: {error.strerror or error}; remove that file") from None

    def of(self, cell: Cell) -> list[TimedWindow]:
        """The windows of a cell, by round."""
        return list(self.windows.get(cell.id, ()))

    def references(self, cells: Sequence[Cell]) -> set[str]:
        """The ids of the cells that windows of `cells` were compared with."""
        return {window.reference for cell in cells for window in self.of(cell) if window.reference}

    def append(self, taken: Mapping[str, TimedWindow]) -> None:
        """Adds one round, by cell id; on the disk when this returns."""
        lines = []
        for cell, window in taken.items():
            self.windows.setdefault(cell, []).append(window)
            lines.append(json.dumps({"environment": self.environment, "cell": cell} | asdict(window)))
        append_lines(self.file, lines, begins=ROUNDS_BEGIN)

    def _read(self, data: Any) -> None:
        """Adds the window of one line; raises ValueError for what no sweep writes."""
        whose = parse(data, _WindowOf)
        if whose.environment != self.environment:
            return
        window, known = parse(data, TimedWindow), self.windows.setdefault(whose.cell, [])
        if known and known[-1].round >= window.round:
            raise RecordError(f"$.round: expected more than {known[-1].round}, the cell's last, found {window.round}")
        if bool(window.parts_ms) != whose.cell.startswith("ttft "):
            raise RecordError("$.parts_ms: expected for cells of kind ttft and no others")
        if bool(window.reference) != (window.reference_ms is not None):
            raise RecordError("$.reference_ms: expected beside a reference and nowhere else")
        known.append(window)


def _records(file: Path) -> Iterator[Record]:
    try:
        for number, line in complete_lines(file):
            yield from_line(line, f"line {number} of {file}")
    except OSError as error:
        raise ArtifactError(f"cannot read {file} ({error.strerror or error}); name a file that you may read") from None
