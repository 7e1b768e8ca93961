"""Results of several files become runs: what was measured on one machine with one set of versions."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import ArtifactError
from ...core.plain_text import storable_line
from ..sweep.result import Absent, Environment, Result
from ..sweep.store import Sweep, read_sweep, results_file


@dataclass(frozen=True)
class Run:
    """Results that were taken in one environment.

    Attributes:
        label: what the report calls it: the machine, and the date where that alone is not enough.
        environment: the machine, its versions, the command.
        results: in the order of their cells.
        absent: backends without a cell.
        files: where they stood.
        baseline: the run that others are compared with.
    """

    label: str
    environment: Environment
    results: tuple[Result, ...]
    absent: tuple[Absent, ...]
    files: tuple[Path, ...]
    baseline: bool = False

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.results if result.measured]


@dataclass(frozen=True)
class Loaded:
    """All that a report shows: runs by date, and what a reader of the files should know."""

    runs: tuple[Run, ...]
    notices: tuple[str, ...]

    @property
    def baseline(self) -> Run | None:
        return next((run for run in self.runs if run.baseline), None)


def load(results: Sequence[str | os.PathLike[str]], baseline: str | os.PathLike[str] | None = None) -> Loaded:
    """Reads and merges results; neither the order of the files nor naming one twice makes a difference.

    Files of one environment are one run as long as no cell was measured in two of them; else each is a run of its own,
    as is the baseline always. Without `baseline` the earliest of several runs is it.

    Args:
        results: folders that `fvexport sweep` wrote, or files in them.
        baseline: one more, that the others are compared with.

    Raises:
        ArtifactError: nothing is there, a line is no result, or no result is in any of them.
    """
    files = {file.resolve(): file for file in map(results_file, results)}
    notices: list[str] = []
    runs: list[Run] = []
    if baseline is not None:
        file = results_file(baseline)
        files.pop(file.resolve(), None)
        found = _parts(_read(file, notices))
        if len(found) > 1:
            raise ArtifactError(
                f"the baseline {file} was measured in {len(found)} environments; give one with the results of one"
            )
        runs = [replace(run, baseline=True) for run in found]
    parts = [run for file in sorted(files.values()) for run in _parts(_read(file, notices))]
    runs += _merged(parts)
    if not any(run.results for run in runs):
        names = ", ".join(str(file) for file in results)
        raise ArtifactError(f"no cell has ended in {names}; let `fvexport sweep` run longer")
    runs.sort(key=lambda run: (run.environment.date, run.environment.id, [str(file) for file in run.files]))
    if baseline is None and len(runs) > 1:
        runs[0] = replace(runs[0], baseline=True)
    return Loaded(tuple(_labelled(runs)), tuple(sorted(notices)))


def _read(file: Path, notices: list[str]) -> Sweep:
    sweep = read_sweep(file)
    with file.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                name = shown_path(file)
                notices.append(
                    f"the last line of {name} was cut off and is left out; the sweep was killed or still runs"
                )
    return sweep


def _parts(sweep: Sweep) -> list[Run]:
    """A file's results by environment."""
    unknown = {result.environment for result in sweep.results} - sweep.environments.keys()
    if unknown:
        raise ArtifactError(f"{sweep.path} has results of environment {min(unknown)}, but no line that describes it")
    return [
        Run(
            label="",
            environment=environment,
            results=tuple(sorted((r for r in sweep.results if r.environment == key), key=by_cell)),
            absent=tuple(sorted((a for a in sweep.absent if a.environment == key), key=_by_backend)),
            files=(sweep.path,),
        )
        for key, environment in sweep.environments.items()
    ]


def by_cell(result: Result) -> tuple[object, ...]:
    """Order of results: ours before peers, then by curve, batch and size."""
    cell = result.cell
    return cell.kind, cell.series, cell.llm or "", cell.batch, cell.pixels, cell.resolution, cell.id


def _by_backend(absent: Absent) -> tuple[str, str, str, str]:
    return absent.kind, absent.backend, absent.precision or "", absent.reason


def _merged(parts: Iterable[Run]) -> list[Run]:
    """Parts of one environment in one run where they agree, each alone where they do not."""
    same: dict[str, list[Run]] = defaultdict(list)
    for part in parts:
        same[part.environment.id].append(part)
    merged: list[Run] = []
    for group in same.values():
        runs = _without_copies(group)
        results = {result.cell.id: result for run in runs for result in run.results}
        if all(results[result.cell.id] == result for run in runs for result in run.results):
            first = min(runs, key=lambda run: (run.environment.date, run.environment.command))
            absent = {_by_backend(a): a for run in runs for a in run.absent}
            merged.append(
                replace(
                    first,
                    results=tuple(sorted(results.values(), key=by_cell)),
                    absent=tuple(absent[key] for key in sorted(absent)),
                    files=tuple(sorted(file for run in runs for file in run.files)),
                )
            )
        else:
            merged += runs
    return merged


def _without_copies(runs: Sequence[Run]) -> list[Run]:
    """Leaves out runs whose results all stand in another one; of equal ones the first by name stays."""
    ordered = sorted(runs, key=lambda run: (-len(run.results), run.files))
    kept: list[Run] = []
    for run in ordered:
        if not any(set(run.results) <= set(other.results) for other in kept):
            kept.append(run)
    return kept


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """The shortest labels that tell the runs apart."""
    choices: tuple[Callable[[Run], str], ...] = (
        lambda run: machine(run.environment),
        lambda run: f"{machine(run.environment)}, {run.environment.date[:10]}",
        lambda run: f"{machine(run.environment)}, {run.environment.date[:16].replace('T', ' ')}",
        lambda run: (
            f"{machine(run.environment)}, {run.environment.date[:16].replace('T', ' ')}, {shown_path(run.files[0])}"
        ),
    )
    labels: list[str] = []
    for choice in choices:
        labels = [choice(run) for run in runs]
        if len(set(labels)) == len(labels):
            break
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def shown_path(path: os.PathLike[str]) -> str:
    """A file's name as a page or table can hold it."""
    return storable_line(os.fspath(path))


def machine(environment: Environment) -> str:
    """A machine in a few words: its GPU, else its processor and the cores that were usable."""
    if environment.gpus:
        first = environment.gpus[0].partition(",")[0].strip()
        return first if len(environment.gpus) == 1 else f"{len(environment.gpus)} x {first}"
    cpu = environment.cpu
    cores = cpu.get("usable") or cpu.get("cores")
    return f"{cpu.get('model') or 'unknown CPU'}" + (f", {cores} cores" if cores else "")
