"""Kernels compiled for six architectures with no GPU: the guarantees, and the numbers against NVIDIA's own tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Literal

import pytest
import torch

from fvexport.core.errors import UnavailableError
from fvexport.core.gpus import MAX_SHARED
from fvexport.encoder import VARIANTS, FastViTHDConfig
from fvexport.kernels import language, products
from fvexport.kernels.aot import (
    ARCHS,
    RESOLUTIONS,
    Compiled,
    accesses,
    assemble,
    compile_encoder,
    compile_launch,
    line_of,
)
from fvexport.kernels.dispatch import (
    FP8_OPS,
    LIBRARY_OPS,
    NEWEST,
    OPS,
    PRODUCTS,
    capability_of,
    exists,
    has_fp8,
    modes_for,
)
from fvexport.kernels.launches import TRITON_TYPES, Call, Launch, encoder_calls, launches_of, recording
from fvexport.kernels.linear_tma import descriptor
from fvexport.kernels.table import committed, default_config, dtype_class

pytestmark = pytest.mark.skipif(
    not language.INSTALLED or language.INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)

NAMES = (
    "attention", "depthwise", "depthwise_pairs", "depthwise_rows", "depthwise_strips", "finish", "linear", "mlp",
    "norm_linear", "row_statistics",
)  # fmt: skip
KERNELS = {f"{name}_kernel" for name in NAMES}
HALF_KERNELS = {"split_k_kernel", "stem_kernel", "sum_parts_kernel"}
HOPPER_KERNELS = {"linear_tma_kernel"}
FP8_KERNELS = {"linear_fp8_kernel", "norm_fp8_kernel", "quantize_fp8_kernel"}


def kernels_of(arch: str, dtype: torch.dtype) -> set[str]:
    """The kernels that the encoder launches on an architecture in a dtype."""
    if dtype == torch.float32:
        return KERNELS
    return KERNELS | HALF_KERNELS | (HOPPER_KERNELS if arch in ("sm_90", "sm_100", "sm_120") else set())


def calls(
    dtype: torch.dtype, *sizes: tuple[int, int], config: FastViTHDConfig = VARIANTS["fastvithd"], modes: int = 0
) -> list[Call]:
    return [call for size in sizes for call in encoder_calls(config, *size, 1, dtype, modes=modes)]


def largest(arch: str, dtype: torch.dtype) -> dict[str, tuple[Call, Launch]]:
    """Of each kernel at 1024 x 1024 the launch with the largest blocks."""
    found: dict[str, tuple[Call, Launch]] = {}

    def size(launch: Launch) -> int:
        return prod(v for _, v in launch.constants if type(v) is int and v)

    for call, launch in launches_of(calls(dtype, (1024, 1024), modes=modes_for(arch)), arch, dtype):
        if launch.name not in found or size(launch) > size(found[launch.name][1]):
            found[launch.name] = call, launch
    return found


def check(kernel: Compiled) -> None:
    assert kernel.problems == [], kernel
    assert kernel.spills == 0 and kernel.scratch == 0 and 0 < kernel.registers <= 255
    assert max(kernel.loads) >= kernel.wide and kernel.stores
    assert kernel.raised == (kernel.shared > 48 * 1024)
    assert kernel.registers * 32 * kernel.num_warps <= 64 * 1024
    number = kernel.arch.removeprefix("sm_")
    assert re.search(rf"^\.target sm_{number}a?$", kernel.ptx, re.M)
    # One wait for the kernel before, and one word to the kernel after, where the architecture has them.
    waits = [len(re.findall(rf"\bgriddepcontrol\.{word}\b", kernel.ptx)) for word in ("wait", "launch_dependents")]
    assert waits == [int(number) >= 90] * 2


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_on_every_architecture(arch: str) -> None:
    found = largest(arch, torch.float16)
    assert found.keys() == kernels_of(arch, torch.float16)
    for call, launch in found.values():
        check(compile_launch(launch, arch, sizes=call.sizes, dtype="fp16"))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "dtype"), [("sm_80", torch.bfloat16), ("sm_120", torch.float32)])
def test_every_kernel_in_every_type(arch: str, dtype: torch.dtype) -> None:
    for call, launch in largest(arch, dtype).values():
        check(compile_launch(launch, arch, sizes=call.sizes, dtype=TRITON_TYPES[dtype]))


@pytest.mark.long
@pytest.mark.parametrize("dtype", list(TRITON_TYPES))
@pytest.mark.parametrize("arch", ARCHS)
def test_everything_that_the_encoder_launches(arch: str, dtype: torch.dtype) -> None:
    found = list(compile_encoder([arch], [dtype]))
    fp8 = FP8_KERNELS if has_fp8(arch) and dtype != torch.float32 else set()
    assert {kernel.kernel for kernel in found} == kernels_of(arch, dtype) | fp8
    for kernel in found:
        check(kernel)
    for kernel in compile_encoder([arch], [dtype], config=VARIANTS["tiny"]):  # channels too few for wide reads
        assert kernel.scratch == 0 and kernel.shared <= 1024 * MAX_SHARED[arch]


@pytest.mark.parametrize("dtype", list(TRITON_TYPES))
def test_every_committed_configuration_is_launched_somewhere(dtype: torch.dtype) -> None:
    """No row of the tables is for shapes that neither variant has."""
    kind = dtype_class(dtype)
    half = dtype != torch.float32
    precisions: tuple[Literal["fp8"] | None, ...] = (None, "fp8") if half else (None,)
    chosen = {
        (call.op, repr(default_config(call.op, arch, kind, call.sizes)))
        for config in VARIANTS.values()
        for size in (*RESOLUTIONS, (4096, 4096))
        for batch in (1, 8)
        for precision in precisions
        for call in encoder_calls(config, *size, batch, dtype, precision=precision)
        for arch in ARCHS
        if exists(call.op, capability_of(arch), dtype)
    }
    for op in OPS:
        if op in LIBRARY_OPS or not exists(op, NEWEST, dtype) or (op in FP8_OPS and not half):
            continue
        for row in committed(op):
            if row.dtype in (None, kind):
                only = row.dtype or not any(other.dtype == kind for other in committed(op))
                assert not only or (op, repr(row.config)) in chosen, (op, row)


def test_against_cuobjdump() -> None:
    """Registers and stack as NVIDIA's own tool reads them from the binary."""
    import triton

    arch, ((_, launch),) = "sm_90", [largest("sm_90", torch.float16)["attention_kernel"]]
    kernel = compile_launch(launch, arch)
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "k.ptx", Path(folder) / "k.cubin"
        ptx.write_text(kernel.ptx)
        subprocess.run([tools.ptxas.path, "--gpu-name=sm_90a", str(ptx), "-o", str(cubin)], check=True)
        dump = [tools.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        said = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    assert f" {kernel.registers} registers  0 spilled " in line_of(kernel)
    assert f"REG:{kernel.registers} STACK:{kernel.stack} " in said
    assert kernel.loads.keys() == {16} and kernel.stores.keys() == {16}  # a token's q, k and v of a head are 64 bytes


def test_what_spills_is_found() -> None:
    """Exact float32 products of tiles that registers cannot hold."""
    call = next(c for c in calls(torch.float32, (1024, 1024)) if c.op == "attention")
    with recording() as made:
        call.launch(type(committed("attention")[0].config)({"BLOCK_M": 32, "BLOCK_N": 32}, 4, 1))
    kernel = compile_launch(made[0], "sm_80", dtype="fp32")
    assert kernel.spills > 0 and kernel.stack > 0
    assert any(re.match(r"spills \d+ bytes", problem) for problem in kernel.problems)


def test_accesses() -> None:
    text = """
        @%p1 ld.global.v4.b32 { %r84, %r85, %r86, %r87 }, [ %rd14 + 0 ];
        ld.global.b16 { %rs1 }, [ %rd47 + 0 ];
        ld.global.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd3 + 0 ];
        ld.param.b32 %r1, [p];
        ld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r5 ];
        cp.async.cg.shared.global [ %r104 + 0 ], [ %rd18 + 0 ], 0x10, %r105;
        cp.async.ca.shared.global [ %r104 + 0 ], [ %rd18 + 0 ], 0x4;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [ %r1 ], [ %rd1, { %r2 } ];
        st.global.v2.b32 [ %rd1 + 0 ], { %r1, %r2 };
        cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [ %rd1, { %r1, %r2 } ], [ %r3 ];
    """
    assert accesses(text, "ld") == {16: 4, 4: 1, 2: 1}
    assert accesses(text, "st") == {16: 1, 8: 1}


def test_launches_are_specialized_as_triton_does() -> None:
    """None and 1 are compiled in, multiples of 16 are known, all else is an argument."""
    kernel = language.jit(_example)
    x = torch.empty(3, dtype=torch.float16, device="meta")
    with recording() as made:
        kernel[(7, 2)](x, None, 1, 32, 33, 2**40, 0.5, BLOCK=64, num_warps=8, num_stages=1)
    (launch,) = made
    assert launch.signature == (("x", "*fp16"), ("c", "i32"), ("d", "i32"), ("e", "i64"), ("f", "fp32"))
    assert launch.constants == (("a", None), ("b", 1), ("BLOCK", 64))
    assert launch.divisible == ("x", "c", "e")
    assert (launch.num_warps, launch.num_stages, launch.grid) == (8, 1, (7, 2))
    with recording() as again:
        kernel[(1, 1)](x, None, 1, 48, 17, 2**41, 0.25, BLOCK=64, num_warps=8, num_stages=1)
    assert again[0].key == launch.key


def test_descriptors_are_arguments_with_a_block() -> None:
    """As Triton names their type; nothing else about them is compiled in."""
    import triton
    from triton.backends.nvidia.compiler import CUDABackend

    kernel = language.jit(_example)
    x = torch.empty(40, 24, dtype=torch.float16, device="meta")
    block = descriptor(x, 40, 24, 16, 8)
    with recording() as made:
        kernel[(1,)](block, None, 1, 32, 33, 2**40, 0.5, BLOCK=64)
    assert made[0].signature[0] == ("x", "tensordesc<fp16[16, 8]>") and "x" not in made[0].divisible
    own = triton._C.libtriton.native_specialize_impl(CUDABackend, block, False, True, True)
    assert own[0] == made[0].signature[0][1]


def _example(x, a, b, c, d, e, f, BLOCK: language.tl.constexpr if language.INSTALLED else int):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_one_row_and_few_columns(name: str) -> None:
    """Sizes of 1 are compiled in, and multiples of 16 are not known."""
    m, n, k = 1, 8 if name == "linear_tma" else 1, 72
    x, weight, bias = (torch.empty(size, dtype=torch.float16, device="meta") for size in ((m, k), (n, k), (n,)))
    with recording() as made:
        products.KERNELS[name](
            x, weight, bias, None, None, default_config(name, "sm_90", "half", {"m": m, "n": n, "k": k}), gelu=True
        )
    assert made
    for launch in made:
        kernel = compile_launch(launch, "sm_90")
        assert kernel.spills == 0 and kernel.scratch == 0


def test_launchers_are_back_as_they_were() -> None:
    from triton.runtime.jit import JITFunction

    own = JITFunction.run
    with recording():
        assert JITFunction.run is not own
    assert JITFunction.run is own
    with pytest.raises(KeyError), recording():
        raise KeyError
    assert JITFunction.run is own


def test_refusals() -> None:
    with pytest.raises(UnavailableError, match="sm_42"):
        next(compile_encoder(["sm_42"]))
    with pytest.raises(UnavailableError, match="ptxas refuses a kernel for sm_80"):
        assemble(".version 8.0\n.target sm_80\nnonsense\n", 80)


@pytest.mark.slow
def test_as_a_command() -> None:
    def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fvexport.kernels.aot", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})

    words = ("--arch", "sm_80", "--dtype", "fp16", "--kernel", "row_statistics")
    done = run(*words, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and rows and all(row["kernel"] == "row_statistics_kernel" for row in rows)
    assert all(row["problems"] == [] and row["spills"] == 0 and "ptx" not in row for row in rows)
    refused = run(*words, TRITON_INTERPRET="1")
    assert refused.returncode == 1 and "unset TRITON_INTERPRET" in refused.stderr and "Traceback" not in refused.stderr
