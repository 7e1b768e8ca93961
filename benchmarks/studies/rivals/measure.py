"""Makes the files, compares each with the eager model, times all in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ....core.errors import UnavailableError, first_line
from ....core.progress import Progress, silent
from ....core.verdict.figures import Figures, compare
from ....encoder.checkpoint import Checkpoint, load_checkpoint
from ....encoder.config import get_variant
from ....export.artifact import MODEL_FILE
from ....export.backend_table import has_bf16
from ....export.runtime.eager_backend import EagerBackend
from ....kernels.timing import HostClock, paired
from ...peers.photos import Floats, Photographs
from ...peers.runners import Hint, Runner, load, why_absent
from ...peers.tool_files import Job, Made, make, release
from .candidates import BASELINE, CANDIDATES, Row
from .outliers import with_outliers
from .quantizers import TOOLS

TIMED_ON = "chelsea"
PROBE_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How candidates are made and measured.

    Attributes:
        resolution: side of the square in pixels.
        variant: name of the architecture.
        samples: images to calibrate on.
        rounds: of timing; 0 makes and compares only.
        threads: of each runtime.
        outliers: spread of the channel gains, see `with_outliers`.
    """

    resolution: int
    variant: str = "fastvithd"
    samples: int = 32
    rounds: int = 10
    threads: int = 2
    outliers: float = 0.0


def measure(names: Sequence[str], work: Path, setting: Setting, *, progress: Progress = silent) -> list[Row]:
    """One row per candidate. What a candidate lacks or trips over is written in its row, and the rest goes on.

    At most one model at a time is in memory, until all files that will be timed are loaded.

    Args:
        names: of `CANDIDATES`, the baseline among them.
        work: where files stay; those of an earlier call are taken as they are.
        setting: how they are made and measured.
        progress: told of each file and candidate.

    Raises:
        FvexportError: no such model; no photographs; our FP32 file could not be made.
    """
    resolution, variant, outliers = setting.resolution, setting.variant, setting.outliers
    get_variant(variant).check_resolution(resolution, resolution)
    place = (work / f"{variant}-{resolution}-samples{setting.samples}-outliers{outliers:g}").resolve()
    photographs = Photographs.write(place / "calibration.txt", setting.samples, resolution)
    job = Job(photographs, partial(_checkpoint, variant, outliers), place / "fp32" / "artifact" / MODEL_FILE)
    wanted = {CANDIDATES[name].tool for name in names}
    made: dict[str, Made | str] = {}
    for tool in TOOLS:
        if tool in wanted:
            progress(f"make {tool}", 0, None)
            made[tool] = _made(tool, job, place / tool)
    progress("eager model", 0, None)
    tests = photographs.tests()
    references = _references(job, tests)
    rows = []
    for name in names:
        progress(f"compare {name}", 0, None)
        rows.append(_compared(name, made[CANDIDATES[name].tool], tests, references, setting.threads))
        release()
    if setting.rounds:
        progress("time", 0, None)
        _time(rows, tests[TIMED_ON], setting.rounds, setting.threads)
    return rows


def _checkpoint(variant: str, outliers: float) -> Checkpoint:
    checkpoint = load_checkpoint(None, variant=variant)
    return with_outliers(checkpoint, outliers) if outliers else checkpoint


def _made(tool: str, job: Job, folder: Path) -> Made | str:
    """The tool's file, or why there is none."""
    try:
        return make(TOOLS[tool], job, folder)
    except Exception as error:  # whatever a foreign tool trips over must not end the others' run
        if tool == CANDIDATES[BASELINE].tool:
            raise
        return _reason(error)


def _reason(error: Exception) -> str:
    return first_line(error) if isinstance(error, UnavailableError) else f"{type(error).__name__}: {first_line(error)}"


def _references(job: Job, tests: Mapping[str, Floats]) -> dict[str, Floats]:
    """The eager model's features (1, N, C) of each test photograph."""
    eager = EagerBackend(job.checkpoint().encoder)
    references = {name: eager.run(x) for name, x in tests.items()}
    del eager
    release()
    return references


def _compared(
    name: str, made: Made | str, tests: Mapping[str, Floats], references: Mapping[str, Floats], threads: int
) -> Row:
    """A row without timing: figures under every hint, and which hint is the faster."""
    candidate, row = CANDIDATES[name], Row(name)
    if isinstance(made, str):
        row.skipped = made
        return row
    row.made = made
    row.skipped = why_absent(candidate.runtime)
    if row.skipped:
        return row
    hints = [hint for hint in candidate.hints if hint == "f32" or has_bf16()]
    if not hints:
        row.skipped = "this processor has no BF16"
        return row
    try:
        runners = {hint: load(made.path, candidate.runtime, threads, hint) for hint in hints}
        for hint, runner in runners.items():
            row.figures[hint], row.together[hint] = _figures(runner, tests, references)
        row.hint = _faster(row, runners, tests[TIMED_ON])
    except Exception as error:  # as in _made: a runtime may refuse another tool's file
        row.skipped = _reason(error)
    return row


def _figures(
    runner: Runner, tests: Mapping[str, Floats], references: Mapping[str, Floats]
) -> tuple[dict[str, Figures], Figures]:
    """Figures of each photograph, and the worst of all together."""
    features = {name: runner(x) for name, x in tests.items()}
    each = {name: compare(references[name], found) for name, found in features.items()}
    return each, compare(*(np.concatenate([of[name] for name in tests]) for of in (references, features)))


def _faster(row: Row, runners: Mapping[Hint, Runner], x: Floats) -> Hint:
    """The hint that runs faster; the times are left in the row."""
    hints = list(runners)
    if len(hints) > 1:
        runs = {str(hint): partial(runner, x) for hint, runner in runners.items()}
        probed = paired(runs, rounds=PROBE_ROUNDS, sample_ms=0, clock=HostClock())
        row.probe_ms = {t.name: t.median_ms for t in probed}
        hints.sort(key=lambda hint: row.probe_ms[hint])
    return hints[0]


def _time(rows: Sequence[Row], x: Floats, rounds: int, threads: int) -> None:
    """Loads every row that has got so far, and times them in the same rounds."""
    runs = {
        row.name: partial(load(row.made.path, CANDIDATES[row.name].runtime, threads, row.hint), x)
        for row in rows
        if row.made is not None and row.hint is not None
    }
    timings = paired(runs, baseline=BASELINE, rounds=rounds, sample_ms=0, warmup=3, clock=HostClock())
    by_name = {timing.name: timing for timing in timings}
    for row in rows:
        row.timing = by_name.get(row.name)
