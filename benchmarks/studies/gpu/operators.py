"""Every operator with every kernel that can compute it, against the same operator in float64.

The operators are the public ones of `kernels/`, at the sizes that the encoder calls them with, and in awkward cases:
rows and columns that fill no tile, other strides, rows far from zero. Which kernels compute an operator is read from
`policy.ROWS`. All memory that an operator allocates is filled with NaN before it is used, so that an element that a
kernel does not write, or reads before anything wrote it, shows in the result. Each kernel runs twice: a result that
moves by more than rounding is a race.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....core.errors import first_line
from ....kernels import language
from ....kernels.dispatch import FP8, MODES, modes_of
from ....kernels.table import arch_of
from .operator_cases import Case, kernels_of

NORM_FACTOR, LARGEST_FACTOR = 2.0, 4.0
"""How many times PyTorch's own error in the same dtype a kernel's may be: in the L2 norm, and in the largest element.

The largest of a few errors depends on the order of summation; their norm hardly does.
"""


@dataclass(frozen=True)
class Check:
    """A case with one kernel against float64. Errors are relative to the L2 norm and to the largest value.

    Attributes:
        op, what: of the case.
        kernel: name of the kernel.
        modes: names of the modes.
        dtype: of the inputs.
        error, own: relative L2 error of the kernel's result and of PyTorch's in the same dtype.
        largest, own_largest: the same of the largest element.
        moved: relative L2 distance between the results of two runs.
        launched: names of the Triton kernels that ran.
        problem: what is wrong, empty if nothing is.
    """

    op: str
    what: str
    kernel: str
    modes: tuple[str, ...]
    dtype: str
    error: float = 0.0
    own: float = 0.0
    largest: float = 0.0
    own_largest: float = 0.0
    moved: float = 0.0
    launched: tuple[str, ...] = field(default=())
    problem: str = ""

    @property
    def ratio(self) -> float:
        """Error over PyTorch's own, 1 where both are exact."""
        return self.error / self.own if self.own else (1.0 if not self.error else float("inf"))


def references(case: Case) -> tuple[Tensor, Tensor]:
    """A case's result in PyTorch: in its own dtype, and in float64."""
    with torch.inference_mode():
        return case.run(*case.tensors, kernel=None), case.run(*(wide(t) for t in case.tensors), kernel=None)


def check(case: Case, kernel: str, modes: Sequence[str] = (), known: tuple[Tensor, Tensor] | None = None) -> Check:
    """Runs a case twice with a kernel, and compares with its `references`, which are `known` or computed here.

    An error of the kernel is the check's `problem`; after one that leaves the GPU unusable every later check fails.
    """
    dtype = str(case.dtype).removeprefix("torch.")
    base = Check(case.op, case.what, kernel, tuple(modes), dtype)
    try:
        with torch.inference_mode():
            own, wanted = known or references(case)
            with launched() as names:
                found = _run(case, kernel, modes)
            again = _run(case, kernel, modes)
            return _judged(base, found, again, own, wanted, tuple(dict.fromkeys(names)))
    except Exception as error:  # a compiler's or a driver's: all of them are findings
        return replace(base, problem=f"fails: {first_line(error)}")


def _run(case: Case, kernel: str, modes: Sequence[str]) -> Tensor:
    with poisoned():
        found = case.run(*case.tensors, kernel=kernel, modes=int(modes_of(modes)))
    if found.is_cuda:
        torch.cuda.synchronize()
    return found


def _judged(base: Check, found: Tensor, again: Tensor, own: Tensor, wanted: Tensor, names: tuple[str, ...]) -> Check:
    problems = [] if found.is_contiguous() else ["is not contiguous"]
    if found.shape != own.shape or found.dtype != own.dtype:
        wrong = f"is {tuple(found.shape)} in {found.dtype}, not {tuple(own.shape)} in {own.dtype}"
        return replace(base, launched=names, problem=wrong)
    eps = torch.finfo(found.dtype).eps
    found, again, own, wanted = found.double(), again.double(), own.double(), wanted.double()
    bad = int((~torch.isfinite(found)).sum())
    if bad:
        problems.append(f"{bad} of {found.numel()} values are not finite")
    figures: dict[str, float] = {}
    # Where PyTorch happens to be exact; in FP8 one value that rounds the other way is a whole step.
    floor = eps / 8
    for name, norm, factor in (("", _norm, NORM_FACTOR), ("largest", _largest, LARGEST_FACTOR)):
        if name and eps == torch.finfo(FP8).eps:
            floor = eps
        size = max(norm(wanted), 1e-300)
        distance, ours = norm(found - wanted) / size, norm(own - wanted) / size
        figures |= {name or "error": distance, f"own_{name}" if name else "own": ours}
        if not bad and not distance <= factor * ours + floor:
            problems.append(f"{name or 'L2'} error {distance:.2e}, more than {factor:g} x PyTorch's {ours:.2e}")
    moved = _norm(again - found) / max(_norm(wanted), 1e-300)
    if not bad and not moved <= figures["own"] + floor:
        problems.append(f"two runs differ by {moved:.2e}: a race")
    return replace(
        base, error=figures["error"], own=figures["own"], largest=figures["largest"],
        own_largest=figures["own_largest"], moved=moved, launched=names, problem="; ".join(problems),
    )  # fmt: skip


def wide(x: Tensor) -> Tensor:
    """A floating tensor in float64; FP8 numbers and integers as they are."""
    return x.double() if x.is_floating_point() and x.dtype != FP8 else x


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _largest(x: Tensor) -> float:
    return float(x.abs().amax())


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within the block memory that is allocated without a value has one: NaN in floating tensors, else the largest.

    The functions themselves are replaced: modes of PyTorch do not reach into custom operators.
    """
    places: list[tuple[Any, str]] = [(torch, name) for name in ("empty", "empty_like", "empty_strided")]
    places += [(Tensor, name) for name in ("new_empty", "new_empty_strided")]
    own = {(owner, name): vars(owner).get(name) for owner, name in places}
    for owner, name in places:
        setattr(owner, name, _filling(getattr(owner, name)))
    try:
        yield
    finally:
        for (owner, name), function in own.items():
            if function is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, function)


def _filling(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        made = function(*args, **kwargs)
        return made.fill_(float("nan") if made.is_floating_point() else _highest(made.dtype))

    return filled


def _highest(dtype: torch.dtype) -> int | bool:
    return True if dtype == torch.bool else torch.iinfo(dtype).max


@contextlib.contextmanager
def launched() -> Iterator[list[str]]:
    """Within the block the name of every Triton kernel that is launched or interpreted is appended to the list."""
    names: list[str] = []
    if not language.INSTALLED:
        yield names
        return
    if language.INTERPRETED:
        from triton.runtime.interpreter import InterpretedFunction as Function
    else:
        from triton.runtime.jit import JITFunction as Function
    own = Function.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(str(self.__name__))
        return own(self, *args, **kwargs)

    Function.run = run
    try:
        yield names
    finally:
        Function.run = own


def checks(
    cases: Iterator[Case], *, modes: Sequence[str] = MODES, only: Callable[[str, str], bool] = lambda op, kernel: True
) -> Iterator[Check]:
    """Every case with every kernel that can compute it, one after the other.

    Args:
        cases: made as they are needed: those of a large image do not fit into memory together.
        modes: names of the modes of every call.
        only: whether an operator is wanted with a kernel.
    """
    for case in cases:
        known: tuple[Tensor, Tensor] | None = None
        with contextlib.suppress(Exception):  # which every check of this case then reports
            known = references(case)
        for kernel in kernels_of(case.op, case.dtype, arch_of(case.tensors[0].device)):
            if only(case.op, kernel):
                yield check(case, kernel, modes, known)
