"""FP8 kernels compiled for the architectures that multiply FP8 numbers, with no GPU."""

from __future__ import annotations

import re

import pytest
import torch

from fvexport.encoder import VARIANTS
from fvexport.kernels import language
from fvexport.kernels.aot import ARCHS, RESOLUTIONS, Compiled, compile_encoder, compile_launch
from fvexport.kernels.dispatch import FP8, has_fp8, modes_for
from fvexport.kernels.launches import TRITON_TYPES, Call, Launch, encoder_calls, launches_of
from fvexport.kernels.table import committed

pytestmark = pytest.mark.skipif(
    not language.INSTALLED or language.INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)

KERNELS = {"linear_fp8_kernel", "norm_fp8_kernel", "quantize_fp8_kernel"}
WRITERS = {"attention_kernel", "depthwise_kernel", "depthwise_rows_kernel", "depthwise_strips_kernel"}
"""Kernels of the half-precision model that write FP8 for a product after them."""
FP8_ARCHS = [arch for arch in ARCHS if has_fp8(arch)]


def launches(arch: str, dtype: torch.dtype, *sizes: tuple[int, int]) -> list[tuple[Call, Launch]]:
    """What FP8 adds: its own kernels, and others that write FP8."""
    modes = modes_for(arch)
    calls = [
        call
        for size in sizes
        for call in encoder_calls(VARIANTS["fastvithd"], *size, 1, dtype, modes=modes, precision="fp8")
    ]
    found = launches_of(calls, arch, dtype)
    return [(call, launch) for call, launch in found if "*fp8e4nv" in dict(launch.signature).values()]


def check(kernel: Compiled) -> None:
    assert kernel.problems == [], kernel
    assert kernel.spills == 0 and kernel.scratch == 0 and 0 < kernel.registers <= 255
    assert kernel.registers * 32 * kernel.num_warps <= 64 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("arch", FP8_ARCHS)
def test_one_of_each(arch: str) -> None:
    """The widest products, on tensor cores, and results that saturate without a branch."""
    found = {}
    for call, launch in launches(arch, torch.float16, (1024, 1024)):
        writes = dict(launch.signature)["out_ptr"]
        found[launch.name, writes] = call, launch
    assert {name for name, _ in found} == KERNELS | WRITERS
    assert {writes for name, writes in found if name == "linear_fp8_kernel"} == {"*fp8e4nv", "*fp16"}
    for (name, writes), (call, launch) in found.items():
        kernel = compile_launch(launch, arch, sizes=call.sizes, dtype="fp16")
        check(kernel)
        if writes == "*fp8e4nv":
            assert "cvt.rn.satfinite.e4m3x2" in kernel.ptx
        if name == "linear_fp8_kernel":
            instruction = {
                "sm_90": r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.f32\.e4m3\.e4m3",
                "sm_100": r"tcgen05\.mma\S*kind::f8f6f4",
            }
            assert re.search(instruction.get(arch, r"mma\.sync\.aligned\.m16n8k32\S*e4m3\.e4m3"), kernel.ptx)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arch", FP8_ARCHS)
def test_everything(arch: str, dtype: torch.dtype) -> None:
    for call, launch in launches(arch, dtype, *RESOLUTIONS):
        check(compile_launch(launch, arch, sizes=call.sizes, dtype=TRITON_TYPES[dtype]))


def test_hopper_adds_each_block_in_float32() -> None:
    """Its tensor cores keep 14 bits of an FP8 sum: with PROMOTE the loop has an addition for every sum of a thread."""
    found = [
        launch
        for _, launch in launches("sm_90", torch.float16, (1024, 1024))
        if launch.name == "linear_fp8_kernel" and dict(launch.constants)["BLOCK_N"] == 128
    ]
    constants = dict(found[0].constants)
    assert constants["PROMOTE"] == 1
    plain = Launch(
        found[0].kernel, found[0].signature, tuple((constants | {"PROMOTE": 0}).items()), *_rest(found[0])
    )  # fmt: skip
    sums = 128 * 128 // (32 * found[0].num_warps)
    additions = [len(re.findall(r"\badd(?:\.rn)?\.f32\b", compile_launch(x, "sm_90").ptx)) for x in (found[0], plain)]
    assert additions[0] - additions[1] == sums


def _rest(launch: Launch) -> tuple[object, ...]:
    return launch.divisible, launch.num_warps, launch.num_stages, launch.grid, launch.pdl


def test_where_there_is_no_fp8() -> None:
    """sm_80 compiles what it did, and nothing of FP8."""

    def names(arch: str) -> set[str]:
        only = next(iter(KERNELS))
        found = compile_encoder([arch], [torch.float16], resolutions=[(64, 64)], kernels=lambda name: name == only)
        return {kernel.kernel for kernel in found}

    assert not names("sm_80") and len(names("sm_90")) == 1
    assert FP8 not in TRITON_TYPES


@pytest.mark.parametrize("op", ["linear_fp8", "norm_fp8", "quantize_fp8"])
def test_every_committed_configuration_is_launched_somewhere(op: str) -> None:
    launched = {
        (launch.num_warps, launch.num_stages, *sorted((n, v) for n, v in launch.constants if type(v) is int))
        for arch in FP8_ARCHS
        for call, launch in launches(arch, torch.float16, *RESOLUTIONS)
        if call.op == op
    }
    for row in committed(op):
        if row.dtype != "float32":
            wanted = {*row.config.blocks.items()}
            assert any(
                found[:2] == (row.config.num_warps, row.config.num_stages) and wanted <= set(found[2:])
                for found in launched
            ), row
