"""Every operator with every kernel against float64, see `benchmarks.studies.gpu.operators`."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from .....core.errors import UnavailableError
from .....encoder.config import get_variant
from .....kernels.dispatch import MODES
from .....kernels.timing import check_alive
from .. import facts
from ..interpreter import corrected
from ..job import Job
from ..operator_cases import Case, Random, awkward_cases, encoder_cases, uncovered
from ..operators import Check, checks
from ..precise import strict
from ..scope import Size

RESERVE_S = 3.0
"""Seconds before the deadline at which no further case begins."""


def run(job: Job) -> None:
    """Writes `operators` (one line for each group of checks), and `operator-problem` for each that fails.

    A kernel that makes the GPU unusable to this process is named by `gpu-lost`, and ends it; the same phase then goes
    on in another, without that kernel and without the groups that are done.
    """
    with corrected(), strict():
        _run(job)


def _run(job: Job) -> None:
    note = job.facts()
    lost = {(f["op"], f["kernel"]) for f in facts_of(job, "gpu-lost")}
    done = {(f["size"], f["dtype"], tuple(f["modes"])) for f in facts_of(job, "operators-done") if f["whole"]}
    for name in uncovered() if not done and not lost else ():
        note("operator-problem", op=name, what="no case checks it", kernel="", problem="unchecked")
    for size, dtype, modes in plan(job):
        if (_name(size), dtype, modes) in done:
            continue
        if job.left() < RESERVE_S:
            note("operators-skipped", size=size, dtype=dtype, modes=modes)
            continue
        groups: dict[tuple[str, str], list[Check]] = defaultdict(list)
        began = time.time()
        whole = alive = True
        for found in _checks(job, size, getattr(torch, dtype), modes, lost):
            groups[found.op, found.kernel].append(found)
            if found.problem:
                note("operator-problem", size=_name(size), **asdict(found))
                alive = _alive()
            if not (whole := alive and job.left() > RESERVE_S):
                break
        for (op, kernel), members in groups.items():
            worst = max(members, key=lambda c: (bool(c.problem), c.ratio if c.ratio < float("inf") else 0))
            note(
                "operators", op=op, kernel=kernel, size=_name(size), dtype=dtype, modes=modes, checks=len(members),
                failed=sum(bool(c.problem) for c in members), worst=worst.what, error=worst.error, own=worst.own,
                moved=max(c.moved for c in members), launched=sorted({n for c in members for n in c.launched}),
            )  # fmt: skip
        note("operators-done", size=_name(size), dtype=dtype, modes=modes, seconds=time.time() - began, whole=whole)
        if not alive:
            note("gpu-lost", op=found.op, kernel=found.kernel, what=found.what)
            sys.exit(f"{found.op} by {found.kernel} has made the GPU unusable to this process")


def _alive() -> bool:
    if not torch.cuda.is_available():
        return True
    try:
        check_alive()
    except UnavailableError:
        return False
    return True


def facts_of(job: Job, kind: str) -> list[facts.Fact]:
    """What earlier processes of this run have written."""
    return facts.of(facts.read(Path(job.out) / facts.FILE), kind)


def plan(job: Job) -> Iterator[tuple[Size | None, str, tuple[str, ...]]]:
    """Size (None for the awkward cases), dtype and modes of each group, what matters most first."""
    scope = job.scope
    first = scope.operators[0]
    for dtype in scope.half:
        if not job.dry:  # the interpreter takes seconds for a group, and has the awkward cases without modes below
            yield None, dtype, MODES
        yield first, dtype, MODES
    yield None, scope.half[0], ()
    for size in scope.operators[1:]:
        for dtype in scope.half:
            yield size, dtype, MODES
    if scope.operators[1:]:
        yield scope.operators[1], scope.half[0], ()
    for size in scope.exact:
        yield size, "float32", MODES
    yield None, "float32", ()


def _checks(
    job: Job, size: Size | None, dtype: torch.dtype, modes: tuple[str, ...], lost: set[tuple[str, str]]
) -> Iterator[Check]:
    make = Random(dtype, job.device)
    small = {"channels": 64} if job.dry else {}
    cases = awkward_cases(make, **small) if size is None else encoder_cases(get_variant(job.scope.variant), size, make)
    return checks(smallest(cases) if job.dry else cases, modes=modes, only=lambda *which: which not in lost)


def smallest(cases: Iterator[Case]) -> Iterator[Case]:
    """The smallest case of each operator, for the interpreter, which takes seconds for the others."""
    found: dict[str, Case] = {}
    for case in cases:
        best = found.setdefault(case.op, case)
        if sum(t.numel() for t in case.tensors) < sum(t.numel() for t in best.tensors):
            found[case.op] = case
    yield from found.values()


def _name(size: Size | None) -> str:
    return "awkward" if size is None else size.name
