"""Every operator with every kernel against float64, see `benchmarks.gpu.operators`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict

import torch

from ....encoder.config import get_variant
from ....kernels.dispatch import MODES
from ..interpreter import corrected
from ..job import Job
from ..operator_cases import Case, Random, awkward_cases, encoder_cases, uncovered
from ..operators import Check, checks
from ..scope import Size

RESERVE_S = 3.0
"""Seconds before the deadline at which no further case begins."""


def run(job: Job) -> None:
    """Writes `operators` (one line for each group of checks), and `operator-problem` for each that fails."""
    with corrected():
        _run(job)


def _run(job: Job) -> None:
    facts = job.facts()
    for name in uncovered():
        facts("operator-problem", op=name, what="no case checks it", kernel="", problem="unchecked")
    for size, dtype, modes in plan(job):
        if job.left() < RESERVE_S:
            facts("operators-skipped", size=size, dtype=dtype, modes=modes)
            continue
        groups: dict[tuple[str, str], list[Check]] = defaultdict(list)
        began = time.time()
        whole = True
        for found in _checks(job, size, getattr(torch, dtype), modes):
            groups[found.op, found.kernel].append(found)
            if found.problem:
                facts("operator-problem", size=_name(size), **asdict(found))
            if not (whole := job.left() > RESERVE_S):
                break
        for (op, kernel), members in groups.items():
            worst = max(members, key=lambda c: (bool(c.problem), c.ratio if c.ratio < float("inf") else 0))
            facts(
                "operators", op=op, kernel=kernel, size=_name(size), dtype=dtype, modes=modes, checks=len(members),
                failed=sum(bool(c.problem) for c in members), worst=worst.what, error=worst.error, own=worst.own,
                moved=max(c.moved for c in members), launched=sorted({n for c in members for n in c.launched}),
            )  # fmt: skip
        facts("operators-done", size=_name(size), dtype=dtype, modes=modes, seconds=time.time() - began, whole=whole)


def plan(job: Job) -> Iterator[tuple[Size | None, str, tuple[str, ...]]]:
    """Size (None for the awkward cases), dtype and modes of each group, what matters most first."""
    scope = job.scope
    first = scope.operators[0]
    for dtype in scope.half:
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


def _checks(job: Job, size: Size | None, dtype: torch.dtype, modes: tuple[str, ...]) -> Iterator[Check]:
    make = Random(dtype, job.device)
    small = {"channels": 64} if job.dry else {}
    cases = awkward_cases(make, **small) if size is None else encoder_cases(get_variant(job.scope.variant), size, make)
    return checks(smallest(cases) if job.dry else cases, modes=modes)


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
