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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...encoder.config import MIXERS, FastViTHDConfig
from ...errors import first_line
from ...kernels import language
from ...kernels.attention import attention
from ...kernels.depthwise import depthwise
from ...kernels.dispatch import MODES, OPS, modes_of
from ...kernels.linear_gelu import linear_gelu
from ...kernels.linear_residual import linear_residual
from ...kernels.mlp import MAX_CHANNELS, mlp
from ...kernels.norm_linear import norm_linear
from ...kernels.policy import ROWS
from ...kernels.table import arch_of
from .scope import Size

Operator = Callable[..., Tensor]

PARTS: dict[str, tuple[str, ...]] = {
    "depthwise": ("depthwise",),
    "linear_gelu": ("pointwise", "fc1"),
    "linear_residual": ("fc2", "proj"),
    "mlp": ("ConvFFN",),
    "norm_linear": ("qkv",),
    "attention": ("attention",),
}
"""Parts of the model, as `policy.ROWS` names them, by the operator that computes them."""

ONLY = {"mlp": ("mlp",)}
"""Kernels of operators that share a part of the model with others, and no kernel."""

NORM_FACTOR, LARGEST_FACTOR = 2.0, 4.0
"""How many times PyTorch's own error in the same dtype a kernel's may be: in the L2 norm, and in the largest element.

The largest of a few errors depends on the order of summation; their norm hardly does.
"""


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        op: name of the operator.
        what: sizes and strides, for people.
        run: called with the tensors, `kernel` and `modes`.
        tensors: inputs.
    """

    op: str
    what: str
    run: Operator
    tensors: tuple[Tensor, ...]


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


def kernels_of(op: str, dtype: torch.dtype, arch: str) -> list[str]:
    """The kernels that `policy.ROWS` has for an operator in a dtype on an architecture, whatever the sizes."""
    others = {name for owner, names in ONLY.items() if owner != op for name in names}
    found = dict.fromkeys(
        row.kernel for row in ROWS
        if row.part in PARTS[op] and dtype in row.dtypes and (not row.arch or arch in row.arch)
        and (row.kernel in ONLY[op] if op in ONLY else row.kernel not in others)
    )  # fmt: skip
    return list(found)


def uncovered() -> list[str]:
    """Kernels and parts of the tables that no case here checks."""
    parts = {part for parts in PARTS.values() for part in parts}
    checked = {row.kernel for row in ROWS if row.part in parts}
    return [f"kernel {name}" for name in OPS if name not in checked] + sorted(
        {f"part {row.part}" for row in ROWS if row.part not in parts}
    )


def check(case: Case, kernel: str, modes: Sequence[str] = ()) -> Check:
    """Runs a case twice with a kernel, and once in PyTorch in its dtype and in float64.

    An error of the kernel is the check's `problem`; after one that leaves the GPU unusable every later check fails.
    """
    dtype = str(case.tensors[0].dtype).removeprefix("torch.")
    base = Check(case.op, case.what, kernel, tuple(modes), dtype)
    try:
        with torch.inference_mode():
            wanted = case.run(*(wide(t) for t in case.tensors), kernel=None)
            own = case.run(*case.tensors, kernel=None).double()
            with launched() as names:
                found = _run(case, kernel, modes)
            again = _run(case, kernel, modes)
            return _judged(base, found, again, own, wanted, tuple(dict.fromkeys(names)))
    except Exception as error:  # a compiler's or a driver's: all of them are findings
        return Check(case.op, case.what, kernel, tuple(modes), dtype, problem=f"fails: {first_line(error)}")


def _run(case: Case, kernel: str, modes: Sequence[str]) -> Tensor:
    with poisoned():
        found = case.run(*case.tensors, kernel=kernel, modes=int(modes_of(modes)))
    if found.is_cuda:
        torch.cuda.synchronize()
    return found


def _judged(base: Check, found: Tensor, again: Tensor, own: Tensor, wanted: Tensor, names: tuple[str, ...]) -> Check:
    problems = []
    if found.shape != wanted.shape or str(found.dtype) != f"torch.{base.dtype}":
        problems.append(f"is {tuple(found.shape)} in {found.dtype}, not {tuple(wanted.shape)}")
        return Check(*_head(base), launched=names, problem=problems[0])
    if not found.is_contiguous():
        problems.append("is not contiguous")
    bad = int((~torch.isfinite(found)).sum())
    if bad:
        problems.append(f"{bad} of {found.numel()} values are not finite")
    figures: dict[str, float] = {}
    floor = torch.finfo(found.dtype).eps / 8  # where PyTorch happens to be exact
    for name, norm, factor in (("", _norm, NORM_FACTOR), ("largest", _largest, LARGEST_FACTOR)):
        size = max(norm(wanted), 1e-300)
        error, ours = norm(found.double() - wanted) / size, norm(own - wanted) / size
        figures |= {name or "error": error, f"own_{name}" if name else "own": ours}
        if not bad and not error <= factor * ours + floor:
            problems.append(f"{name or 'L2'} error {error:.2e}, more than {factor:g} x PyTorch's {ours:.2e}")
    moved = _norm(again.double() - found.double()) / max(_norm(wanted), 1e-300)
    if not bad and not moved <= figures["own"] + floor:
        problems.append(f"two runs differ by {moved:.2e}: a race")
    return Check(*_head(base), **figures, moved=moved, launched=names, problem="; ".join(problems))


def _head(base: Check) -> tuple[str, str, str, tuple[str, ...], str]:
    return base.op, base.what, base.kernel, base.modes, base.dtype


def wide(x: Tensor) -> Tensor:
    """A floating tensor in float64; others as they are."""
    return x.double() if x.is_floating_point() else x


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


# --- cases ----------------------------------------------------------------------------------------------


class Random:
    """Random tensors of order one, the same in every run.

    Args:
        dtype, device: of the tensors.
        seed: of the generator.
    """

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, std: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return x.mul_(std).to(self.dtype)


def encoder_cases(config: FastViTHDConfig, size: Size, make: Random) -> Iterator[Case]:
    """Every operator of the encoder at one size of its images; shapes that come twice come once."""
    seen: set[tuple[str, str]] = set()
    for case in _all_cases(config, size, make):
        if (case.op, case.what) not in seen:
            seen.add((case.op, case.what))
            yield case


def _all_cases(config: FastViTHDConfig, size: Size, make: Random) -> Iterator[Case]:
    height, width, batch = size
    stem = config.dims[0]
    yield depthwise_case(make, (batch, height // 2, width // 2, stem), 3, stride=2, gelu=True)
    yield gelu_case(make, batch * height * width // 16, stem, stem)
    for stage, (c, (h, w)) in enumerate(zip(config.dims, config.stage_resolutions(height, width), strict=True)):
        m, hidden = batch * h * w, config.mlp_ratio * c
        if stage:
            before = config.dims[stage - 1]
            yield depthwise_case(make, (batch, 2 * h, 2 * w, before), 7, stride=2, gelu=True, outputs=c // before)
            yield gelu_case(make, m, c, c)
        if MIXERS[stage] == "attention":
            yield norm_case(make, m, c)
            yield attention_case(make, batch, h * w, config.num_heads(stage), c)
            yield residual_case(make, m, c, c)
        else:
            yield depthwise_case(make, (batch, h, w, c), 3)
        yield depthwise_case(make, (batch, h, w, c), 7)
        if c <= MAX_CHANNELS:
            yield mlp_case(make, m, c, hidden)
        yield gelu_case(make, m, c, hidden)
        yield residual_case(make, m, hidden, c)
    h, w = config.stage_resolutions(height, width)[-1]
    yield depthwise_case(make, (batch, h, w, config.dims[-1]), 3, outputs=2)


def awkward_cases(make: Random, channels: int = 192) -> Iterator[Case]:
    """Sizes that fill no tile, inputs with other strides, and rows whose mean is far from zero."""
    c = channels
    for m in (1, 17, 129, 1003):
        yield gelu_case(make, m, c, c + 24)
        yield residual_case(make, m, c, c + 24)
        yield mlp_case(make, m, c // 2, 2 * c)
        yield norm_case(make, m, c)
    for tokens in (1, 35, 250):
        yield attention_case(make, 2, tokens, c // 32, c)
    for height, width in ((1, 1), (5, 13), (33, 18)):
        for kernel, stride, outputs in ((3, 1, 1), (7, 1, 1), (3, 2, 1), (7, 2, 2), (3, 1, 2)):
            shape = (2, height, width, c // 2)
            yield depthwise_case(make, shape, kernel, stride=stride, gelu=stride == 2, outputs=outputs)
    yield from _strided(make, c)
    yield from _far(make, c)


def _strided(make: Random, c: int) -> Iterator[Case]:
    def turned(x: Tensor) -> Tensor:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)

    for case in (
        gelu_case(make, 130, c, c), residual_case(make, 130, c, c), mlp_case(make, 130, c // 2, 2 * c),
        norm_case(make, 130, c), attention_case(make, 2, 65, c // 32, c), depthwise_case(make, (2, 9, 11, c), 7),
    ):  # fmt: skip
        tensors = tuple(turned(t) if t.ndim > 1 else t for t in case.tensors)
        yield Case(case.op, f"{case.what} strided", case.run, tensors)


def _far(make: Random, c: int) -> Iterator[Case]:
    """LayerNorm where the mean is many deviations, and where all channels are equal."""
    case = norm_case(make, 130, c)
    x, *rest = case.tensors
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    for what, moved in (
        ("mean 100 x deviation", x + 100),
        ("some rows far", torch.where(rows % 3 == 0, x * 0.01 + 30, x)),
        ("equal channels", torch.where(rows % 2 == 0, torch.full_like(x, 3.0), x)),
    ):
        yield Case(case.op, f"{case.what} {what}", case.run, (moved.to(x.dtype), *rest))


def gelu_case(make: Random, m: int, k: int, n: int) -> Case:
    """A product and GELU."""
    return Case("linear_gelu", f"m={m} k={k} n={n}", linear_gelu, (make(m, k), make(n, k, std=k**-0.5), make(n)))


def residual_case(make: Random, m: int, k: int, n: int) -> Case:
    """A product and a residual."""
    tensors = make(m, k), make(n, k, std=k**-0.5), make(n), make(m, n)
    return Case("linear_residual", f"m={m} k={k} n={n}", linear_residual, tensors)


def mlp_case(make: Random, m: int, c: int, hidden: int) -> Case:
    """A ConvFFN's two products."""
    first, second = make(hidden, c, std=c**-0.5), make(c, hidden, std=hidden**-0.5)
    tensors = make(m, c), first, make(hidden), second, make(c), make(m, c)
    return Case("mlp", f"m={m} c={c} hidden={hidden}", mlp, tensors)


def norm_case(make: Random, m: int, c: int) -> Case:
    """LayerNorm and qkv."""
    tensors = make(m, c), make(3 * c, c, std=c**-0.5), make(3 * c)
    return Case("norm_linear", f"m={m} k={c} n={3 * c}", norm_linear, tensors)


def attention_case(make: Random, batch: int, tokens: int, heads: int, c: int) -> Case:
    """Attention on packed qkv."""

    def run(qkv: Tensor, **how: Any) -> Tensor:
        return attention(qkv, heads, **how)

    return Case("attention", f"batch={batch} tokens={tokens} heads={heads}", run, (make(batch, tokens, 3 * c),))


def depthwise_case(
    make: Random, shape: tuple[int, int, int, int], kernel: int, *, stride: int = 1, gelu: bool = False,
    outputs: int = 1,
) -> Case:  # fmt: skip
    """A grouped convolution of x (B, H, W, C)."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, **how: Any) -> Tensor:
        return depthwise(x, weight, bias, stride, gelu, **how)

    out = outputs * shape[3]
    tensors = make(*shape), make(kernel, kernel, out, std=1 / kernel), make(out)
    what = f"{'x'.join(map(str, shape))} k={kernel} s={stride} m={outputs}{' gelu' if gelu else ''}"
    return Case("depthwise", what, run, tensors)


def checks(
    cases: Iterator[Case], *, modes: Sequence[str] = MODES, only: Callable[[str], bool] = lambda kernel: True
) -> Iterator[Check]:
    """Every case with every kernel that can compute it, one after the other.

    Args:
        cases: made as they are needed: those of a large image do not fit into memory together.
        modes: names of the modes of every call.
        only: whether a kernel is wanted.
    """
    for case in cases:
        x = case.tensors[0]
        for kernel in kernels_of(case.op, x.dtype, arch_of(x.device)):
            if only(kernel):
                yield check(case, kernel, modes)
