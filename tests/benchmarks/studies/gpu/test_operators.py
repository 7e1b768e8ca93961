"""The operator checks of a GPU proof find what they are there to find; on a CPU PyTorch computes the operators."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fvexport.benchmarks.studies.gpu.operator_cases import (
    PARTS,
    Case,
    Random,
    awkward_cases,
    encoder_cases,
    gelu_case,
    kernels_of,
    norm_case,
    uncovered,
)
from fvexport.benchmarks.studies.gpu.operators import Check, check, poisoned
from fvexport.benchmarks.studies.gpu.scope import REAL, Size
from fvexport.encoder.config import get_variant
from fvexport.kernels import dispatch
from fvexport.kernels.launches import encoder_calls


def changed(change: Callable[[Tensor], Tensor]) -> Check:
    """The check of an operator whose kernel returns something else."""
    case = gelu_case(Random(torch.float16, "cpu"), 8, 16, 24)

    def run(*tensors: Tensor, kernel: str | None, **how: Any) -> Tensor:
        y = case.run(*tensors, kernel=None)
        return y if kernel is None else change(y)

    return check(Case(case.op, case.what, run, case.tensors), "linear")


def written_in_part(y: Tensor) -> Tensor:
    out = torch.empty_like(y)
    out[:-1] = y[:-1]
    return out


def test_right_results_pass() -> None:
    found = changed(lambda y: y.clone())
    assert not found.problem and found.error == found.own > 0 and found.moved == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y * 1.01, "L2 error .* more than 2 x PyTorch's"),
        (lambda y: y.index_fill(1, torch.tensor([3]), 0), "largest error"),
        (written_in_part, "24 of 192 values are not finite"),
        (lambda y: y.T.contiguous().T, "not contiguous"),
        (lambda y: y[:4], r"is \(4, 24\)"),
        (lambda y: y.float(), "in torch.float32, not"),
        (lambda y: y + 0.1 * torch.rand_like(y), "two runs differ"),
        (torch.linalg.inv, "fails: "),
    ],
)
def test_wrong_results_are_found(change: Callable[[Tensor], Tensor], words: str) -> None:
    assert re.search(words, changed(change).problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32])
def test_allocated_memory_is_poisoned(dtype: torch.dtype) -> None:
    like = torch.zeros(3, dtype=dtype)
    with poisoned():
        made = [
            torch.empty(3, dtype=dtype), torch.empty_like(like), like.new_empty(2, 2),
            torch.empty_strided((2,), (1,), dtype=dtype),
        ]  # fmt: skip
        assert torch.equal(like.new_zeros(2), torch.zeros(2, dtype=dtype))
    for found in made:
        bad = found == torch.iinfo(dtype).max if dtype == torch.int32 else found.float().isnan()
        assert bad.all()


@torch.library.custom_op("fvexport_test::unwritten", mutates_args=())
def unwritten(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def test_memory_of_a_custom_operator_is_poisoned() -> None:
    """The operators allocate within PyTorch's dispatcher."""
    assert "192 of 192 values are not finite" in changed(unwritten).problem


def test_every_kernel_and_part_is_checked() -> None:
    assert uncovered() == []
    halves, wide = ({n for op in PARTS for n in kernels_of(op, dtype, "sm_90")} for dtype in (torch.half, torch.float))
    assert halves == set(dispatch.OPS) and wide >= set(dispatch.BASELINE) and not wide & dispatch.HALF_ONLY


def test_cases_have_the_sizes_of_the_encoder() -> None:
    """Products and convolutions are those that the launchers are compiled for."""
    config, size = get_variant("tiny"), Size(192, 64, 2)
    made = list(encoder_cases(config, size, Random(torch.float16, "cpu")))
    products = {c.what for c in made if c.op in ("linear_gelu", "linear_residual", "norm_linear")}
    wanted = {
        f"m={c.sizes['m']} k={c.sizes['k']} n={c.sizes['n']}"
        for c in encoder_calls(config, 192, 64, 2, torch.float16) if c.op == "linear"
    }  # fmt: skip
    assert products == wanted
    assert len({(c.op, c.what) for c in made}) == len(made) and {c.op for c in made} == set(PARTS)


def test_awkward_cases() -> None:
    made = list(awkward_cases(Random(torch.float16, "cpu"), 64))
    strided = [c for c in made if "strided" in c.what]
    assert {c.op for c in made} == {c.op for c in strided} == set(PARTS)
    assert all(not t.is_contiguous() for c in strided for t in c.tensors[:1])
    far = [c for c in made if "mean 100" in c.what]
    assert far and all(abs(float(c.tensors[0].mean())) > 50 for c in far)


def test_cases_are_the_same_in_every_run() -> None:
    first, second = (norm_case(Random(torch.float16, "cpu"), 4, 32).tensors for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_real_sizes_come_in_the_order_of_their_targets() -> None:
    assert REAL.operators[0] == REAL.latency[0] == Size(1024, 1024, 1) and Size(192, 64, 1) in REAL.operators
    assert [size.name for size in REAL.operators if size.height != size.width] == ["192x64 b1", "320x448 b1"]
