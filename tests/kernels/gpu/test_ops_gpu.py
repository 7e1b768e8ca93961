"""Every operator with every kernel on a GPU, against float64: the checks of a GPU proof, one test for each size.

The encoder's calls at the released sizes, and awkward ones; outputs are poisoned, and each kernel runs twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fvexport.benchmarks.studies.gpu.encoder import verdicts
from fvexport.benchmarks.studies.gpu.operator_cases import Random, awkward_cases, encoder_cases
from fvexport.benchmarks.studies.gpu.operators import Check, checks
from fvexport.benchmarks.studies.gpu.precise import strict
from fvexport.benchmarks.studies.gpu.scope import REAL, Size, square
from fvexport.encoder.config import VARIANTS
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.kernels.dispatch import MODES

pytestmark = pytest.mark.gpu

HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """PyTorch is the reference here: no TF32 in it, and none left behind."""
    with strict():
        yield
    torch.cuda.empty_cache()


def assert_right(found: Iterator[Check]) -> None:
    ran = list(found)
    wrong = [f"{c.op} {c.kernel} {c.what}: {c.problem}" for c in ran if c.problem]
    assert ran and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", REAL.operators, ids=lambda size: size.name)
def test_at_the_sizes_of_the_encoder(size: Size, dtype: torch.dtype) -> None:
    assert_right(checks(encoder_cases(VARIANTS["fastvithd"], size, Random(dtype, "cuda"))))


@pytest.mark.parametrize("size", REAL.exact, ids=lambda size: size.name)
def test_in_float32(size: Size) -> None:
    assert_right(checks(encoder_cases(VARIANTS["fastvithd"], size, Random(torch.float32, "cuda"))))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("modes", [(), *((mode,) for mode in MODES), MODES], ids=",".join)
def test_awkward_cases(modes: tuple[str, ...], dtype: torch.dtype) -> None:
    assert_right(checks(awkward_cases(Random(dtype, "cuda")), modes=modes))


def test_whole_model(fused: FastViTHD) -> None:
    """The tiny one: `make gpu-proof` has the released one."""
    found = list(verdicts(fused, square(128, 2), HALF, "cuda"))
    assert found and not [v for v in found if v.problem]
