"""The kernels that compute products (`products.KERNELS`) against PyTorch in float64, by the operators that use them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fvexport.kernels import products
from fvexport.kernels.dispatch import Modes
from fvexport.kernels.linear_gelu import linear_gelu, linear_gelu_reference
from fvexport.kernels.linear_residual import linear_residual, linear_residual_reference
from fvexport.kernels.linear_tma import fits
from fvexport.kernels.norm_linear import norm_linear, norm_linear_reference
from fvexport.kernels.products import KERNELS, compute
from fvexport.kernels.table import Config, committed

Make = Callable[..., Tensor]
Judge = Callable[..., None]
HALF = torch.float16
NEW = ("linear_tma", "split_k", "cublas")
new = pytest.mark.parametrize("kernel", NEW)

# Rows, channels in, channels out: one row, rows after the last whole tile, channels that no block divides.
SHAPES = [
    (1, 64, 96, HALF), (15, 104, 72, torch.bfloat16), (130, 200, 136, HALF), (65, 96, 40, torch.bfloat16),
    (257, 40, 8, HALF),
]  # fmt: skip


def tensors(randn: Make, m: int, k: int, n: int, dtype: torch.dtype = HALF) -> tuple[Tensor, Tensor, Tensor]:
    return randn(1, m, k, dtype=dtype), randn(n, k, dtype=dtype, std=k**-0.5), randn(n, dtype=dtype)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the product kernels that run, in order."""
    found: list[str] = []

    def noted(name: str, launch: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: object, **kwargs: object) -> Tensor:
            found.append(name)
            return launch(*args, **kwargs)

        return run

    monkeypatch.setattr(products, "KERNELS", {name: noted(name, launch) for name, launch in KERNELS.items()})
    return found


@new
@pytest.mark.parametrize(("m", "k", "n", "dtype"), SHAPES)
def test_every_end(
    randn: Make, judge: Judge, launched: list[str], kernel: str, m: int, k: int, n: int, dtype: torch.dtype
) -> None:
    args = tensors(randn, m, k, n, dtype)
    residual = randn(1, m, n, dtype=dtype)
    judge(compute(kernel, *args), F.linear, *args)
    judge(linear_gelu(*args, kernel=kernel), linear_gelu_reference, *args)
    judge(linear_residual(*args, residual, kernel=kernel), linear_residual_reference, *args, residual)
    assert launched == [kernel] * 3


@new
def test_layer_scale(randn: Make, judge: Judge, kernel: str) -> None:
    args = (*tensors(randn, 20, 64, 40), randn(1, 20, 40, dtype=HALF), randn(40, dtype=HALF))
    judge(linear_residual(*args, kernel=kernel), linear_residual_reference, *args)


@new
def test_after_layer_norm(randn: Make, judge: Judge, launched: list[str], kernel: str) -> None:
    x, weight, bias = tensors(randn, 20, 64, 40)
    args = (3 * x + 1, weight, bias)
    judge(norm_linear(*args, kernel=kernel), norm_linear_reference, *args)
    assert launched == [kernel]


@new
def test_logistic_gelu(randn: Make, judge: Judge, kernel: str) -> None:
    args = tensors(randn, 20, 64, 40)
    fast = linear_gelu(*args, kernel=kernel, modes=Modes.FAST_GELU)
    judge(fast, linear_gelu_reference, *args)
    assert not torch.equal(fast, linear_gelu(*args, kernel=kernel))


@new
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=st.integers(1, 70), k=st.integers(1, 20), n=st.integers(1, 20), end=st.sampled_from(("bias", "gelu", "add")))
def test_any_aligned_sizes(randn: Make, judge: Judge, kernel: str, m: int, k: int, n: int, end: str) -> None:
    args = tensors(randn, m, 8 * k, 8 * n)
    if end == "bias":
        judge(compute(kernel, *args), F.linear, *args)
    elif end == "gelu":
        judge(linear_gelu(*args, kernel=kernel), linear_gelu_reference, *args)
    else:
        residual = randn(1, m, 8 * n, dtype=HALF)
        judge(linear_residual(*args, residual, kernel=kernel), linear_residual_reference, *args, residual)


@pytest.mark.parametrize("kernel", ["linear_tma", "split_k"])
def test_every_committed_configuration(randn: Make, judge: Judge, kernel: str) -> None:
    """Sizes that leave a part of the last tile in every direction."""
    m, n = (140, 264) if kernel == "linear_tma" else (70, 136)
    x, weight, bias = tensors(randn, m, 328, n)
    residual = randn(1, m, n, dtype=HALF)
    for config in {repr(row.config.blocks): row.config for row in committed(kernel)}.values():
        found = KERNELS[kernel](x, weight, bias, None, residual, config)
        judge(found, linear_residual_reference, x, weight, bias, residual)
        if config.blocks.get("PERSISTENT"):  # which a residual leaves out
            judge(KERNELS[kernel](x, weight, bias, None, None, config), F.linear, x, weight, bias)


@pytest.mark.parametrize("m", [1, 16, 70])
def test_programs_that_compute_several_tiles(randn: Make, judge: Judge, m: int) -> None:
    """Fewer tiles than programs, as many, and more: 1, 3 and 15 for three programs."""
    n = 40 if m > 1 else 16
    args = tensors(randn, m, 72, n)
    config = Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "PERSISTENT": 1})
    assert -(-m // 16) * -(-n // 16) in (1, 3, 15)
    judge(KERNELS["linear_tma"](*args, None, None, config, gelu=True), linear_gelu_reference, *args)


@pytest.mark.parametrize("splits", [1, 2, 4, 16])
@pytest.mark.parametrize("k", [16, 100, 328])
def test_any_number_of_parts(randn: Make, judge: Judge, splits: int, k: int) -> None:
    """Also more parts than blocks of channels, and a last part with fewer."""
    args = tensors(randn, 5, k, 24)
    config = Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 8, "SPLITS": splits})
    judge(KERNELS["split_k"](*args, None, None, config), F.linear, *args)


def test_parts_are_added_in_one_order(randn: Make) -> None:
    args = (*tensors(randn, 17, 320, 40), randn(1, 17, 40, dtype=HALF))
    assert torch.equal(linear_residual(*args, kernel="split_k"), linear_residual(*args, kernel="split_k"))


def test_large_sums_stay_in_float32(judge: Judge) -> None:
    """Parts that FP16 could not hold, and whose sum it can."""
    x, weight = torch.full((3, 512), 16.0, dtype=HALF), torch.full((8, 512), 32.0, dtype=HALF)
    weight[:, 256:] = -32
    args = (x, weight, torch.ones(8, dtype=HALF))
    for kernel in ("linear_tma", "split_k"):
        judge(compute(kernel, *args), F.linear, *args)


@new
def test_what_is_not_contiguous(randn: Make, judge: Judge, kernel: str) -> None:
    x, weight = randn(32, 2, 10, dtype=HALF).permute(1, 2, 0), randn(32, 48, dtype=HALF, std=0.2).T
    bias, residual = randn(96, dtype=HALF)[::2], randn(48, 2, 10, dtype=HALF).permute(1, 2, 0)
    args = (x, weight, bias, residual)
    judge(linear_residual(*args, kernel=kernel), linear_residual_reference, *args)


# --- which kernel runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(100, 72), (104, 70), (1, 8)])
def test_rows_that_descriptors_cannot_take(randn: Make, judge: Judge, launched: list[str], k: int, n: int) -> None:
    args = tensors(randn, 9, k, n)
    judge(linear_gelu(*args, kernel="linear_tma"), linear_gelu_reference, *args)
    assert launched == ["linear"]


def test_tensors_that_begin_between_two_multiples_of_16_bytes(randn: Make, judge: Judge, launched: list[str]) -> None:
    x, weight, bias = tensors(randn, 9, 64, 40)
    residual = randn(1, 9, 40, dtype=HALF)

    def shifted(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    assert fits(x, weight, residual) and shifted(x).is_contiguous()
    for args in ((shifted(x), weight, bias, residual), (x, shifted(weight), bias, residual),
                 (x, weight, bias, shifted(residual))):  # fmt: skip
        assert not fits(args[0], args[1], args[3])
        judge(linear_residual(*args, kernel="linear_tma"), linear_residual_reference, *args)
    assert launched == ["linear"] * 3
    judge(linear_residual(x, weight, shifted(bias), residual, kernel="linear_tma"), linear_residual_reference,
          x, weight, bias, residual)  # fmt: skip
    assert launched[-1] == "linear_tma"  # the bias goes by pointer


@pytest.mark.parametrize(("kernel", "wanted"), [("linear_tma", "linear"), ("split_k", "linear"), ("cublas", "cublas")])
def test_float32(randn: Make, judge: Judge, launched: list[str], kernel: str, wanted: str) -> None:
    args = tensors(randn, 9, 64, 40, torch.float32)
    judge(linear_gelu(*args, kernel=kernel), linear_gelu_reference, *args)
    assert launched == [wanted]


def test_what_the_switch_leaves_out(randn: Make, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = tensors(randn, 9, 64, 40)
    for value, wanted in (("-split_k", ["linear"]), ("split_k", ["split_k"]), ("attention", []), ("0", [])):
        monkeypatch.setenv("FVEXPORT_KERNELS", value)
        launched.clear()
        found = linear_gelu(*args, kernel="split_k")
        assert launched == wanted
        torch.testing.assert_close(found, linear_gelu_reference(*args), rtol=1e-2, atol=1e-2)
