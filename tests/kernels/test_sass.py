"""Counts of machine instructions: on made-up texts, and on compiled kernels whose work is known."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from fvexport.core.errors import UnavailableError
from fvexport.encoder import VARIANTS
from fvexport.kernels import language
from fvexport.kernels.aot import compile_launch, line_of
from fvexport.kernels.launches import Launch, encoder_calls, launches_of, recording
from fvexport.kernels.sass import Instruction, count, disassemble, loops_of, parse
from fvexport.kernels.tiles import gelu_as
from fvexport.kernels.work import Work, work_of

tl: Any = language.tl
compiles = pytest.mark.skipif(
    not language.INSTALLED or language.INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)


def text_of(*lines: str) -> str:
    """Lines as nvdisasm prints them: labels end with a colon."""
    shown = [
        line if line.endswith(":") else f"        /*{16 * i:04x}*/                   {line} ;"
        for i, line in enumerate(lines)
    ]
    return "\n".join(["\t.section\t.text.k", "k:", ".text.k:", *shown])


PLAIN = text_of(
    "LDC R1, c[0x0][0x28]", "HFMA2.MMA R54, -RZ, RZ, 0, 0", "@P3 LDG.E R2, desc[UR4][R2.64]",
    ".L_x_0:", "FFMA R0, R1, R2, R0", "FFMA R0, R1, R2, R0", "@!P0 BRA `(.L_x_0)",
    "MUFU.EX2 R0, R0", "@P1 STG.E.128 desc[UR4][R2.64], R4", "@!P1 EXIT", "EXIT",
    ".L_x_1:", "BRA `(.L_x_1)", "NOP", "NOP",
)  # fmt: skip


def test_parse() -> None:
    code = parse(PLAIN)
    assert [i.base for i in code] == ["LDC", "HFMA2", "LDG", "FFMA", "FFMA", "BRA", "MUFU", "STG", "EXIT", "EXIT"]
    assert [i.kind for i in code] == [
        "other", "other", "ldg", "fma", "fma", "other", "mufu", "stg", "other", "other",
    ]  # fmt: skip
    assert code[5] == Instruction("BRA", "`(.L_x_0)", True, 3) and code[5].conditional
    assert [i.guarded for i in code] == [False, False, True, False, False, True, False, True, True, False]
    (loop,) = loops_of(code)
    assert (loop.first, loop.last, loop.instructions, loop.classes) == (3, 5, 3, {"fma": 2, "other": 1})


@pytest.mark.parametrize(
    ("opcode", "kind", "multiply_adds"),
    [
        ("HMMA.16816.F32", "mma", 2048), ("HMMA.1688.F32.TF32", "mma", 1024), ("QMMA.16832.F32.E4M3.E4M3", "mma", 4096),
        ("HGMMA.64x128x16.F32", "mma", 32768), ("QGMMA.64x64x32.F32.E4M3.E4M3", "mma", 32768), ("UTCHMMA", "mma", 0),
        ("FFMA2", "fma", 0), ("HADD2.F32", "fma", 0), ("LDGSTS.E.BYPASS.128", "ldg", 0), ("LDSM.16.M88.4", "lds", 0),
        ("UTMALDG.2D", "tma", 0), ("STSM.16.MT88.4", "sts", 0), ("LDC", "other", 0), ("IMAD.MOV.U32", "other", 0),
        ("LDL", "other", 0),
    ],
)  # fmt: skip
def test_kinds(opcode: str, kind: str, multiply_adds: int) -> None:
    instruction = Instruction(opcode, "R4, R8, R12, R4", False)
    assert (instruction.kind, instruction.multiply_adds) == (kind, multiply_adds)


def test_per_value() -> None:
    """Two multiply-adds of a thread per iteration: 3 x 3 instructions, and seven outside, for two values."""
    found = count(PLAIN, Work(values=2 * 32, steps=3, multiply_adds=2 * 32, tensor_cores=False), num_warps=1)
    assert found.loops[0].trips == 3 and found.instructions == 10
    assert found.per_value == (3 * 3 + 7) / 2
    assert found.per_value_classes == {"fma": 3, "mufu": 0.5, "ldg": 0.5, "stg": 0.5, "other": 3.5}
    unrolled = count(PLAIN, Work(2 * 32, 6, 32, tensor_cores=False), 1)
    assert unrolled.loops[0].trips == 3
    for work in (None, Work(64, 7, 32, tensor_cores=False), Work(64, 3, 5 * 32, tensor_cores=False), Work(64, 3, 2048)):
        unknown = count(PLAIN, work, 1)  # no work; an odd iteration left; another amount; no tensor cores in the text
        assert unknown.per_value is None and unknown.loops[0].trips is None and unknown.instructions == 10


STEP = "HMMA.16816.F32 R0, R4, R8, R0"
BRANCHES = text_of(
    "@P0 BRA `(.L_else)",
    ".L_long:", STEP, "FADD R0, R0, R1", "@P1 BRA `(.L_long)", "BRA `(.L_end)",
    ".L_else:", ".L_short:", STEP, "@P1 BRA `(.L_short)",
    ".L_end:", "@P2 BRA `(.L_tail)", STEP, "MUFU.EX2 R0, R0", ".L_tail:", "EXIT",
)  # fmt: skip


def test_branches() -> None:
    """Only one side of an `if` runs, and the masked end only where something is left."""
    work = {"values": 32, "steps": 4, "multiply_adds": 2048}
    short = count(BRANCHES, Work(**work, branch="short"), 1)
    assert [loop.trips for loop in short.loops] == [0, 4] and short.per_value == 1 + 4 * 2 + 2
    long = count(BRANCHES, Work(**work, branch="long", tail=True), 1)
    assert [loop.trips for loop in long.loops] == [4, 0] and long.per_value == 1 + 4 * 3 + 1 + 1 + 2 + 1
    assert count(BRANCHES, Work(**work), 1).per_value is None  # which side is not known
    for odd in ("@P0 BRA `(.L_x)", "BRA.U !UP0, `(.L_x)"):  # a branch around something else is not understood
        assert count(text_of(odd, "IADD3 R0, R0, R1, RZ", ".L_x:", "EXIT"), Work(32), 1).per_value is None


def test_a_long_division() -> None:
    """Numbers of 64 bits that fit into 32 are divided in line; a subroutine divides the others."""
    text = text_of(
        "@P0 BRA `(.L_c)", "FADD R0, R0, R1", "BRA `(.L_x)", ".L_c:", "MOV R2, R0", "CALL.REL.NOINC `(f)",
        ".L_x:", "EXIT",
    )  # fmt: skip
    assert count(text, Work(32), 1).per_value == 4


def test_nothing_to_sum() -> None:
    """ptxas puts the end of a product without steps first, with an exit of its own."""
    text = text_of(
        "@P0 BRA `(.L_main)", "STG.E desc[UR4][R2.64], R4", "EXIT",
        ".L_main:", ".L_x:", STEP, "@P0 BRA `(.L_x)", "EXIT",
    )  # fmt: skip
    assert count(text, Work(32, 5, 2048), 1).per_value == 1 + 5 * 2 + 1


def test_an_end_within_the_loop() -> None:
    """A loop over tiles that is one with the loop over K: what runs once per tile is not counted per step."""
    text = text_of(
        ".L_x:", STEP, "@P1 BRA `(.L_y)", *["FADD R0, R0, R1"] * 200, "UTMASTG.2D [UR16], [UR22]", ".L_y:",
        "@P0 BRA `(.L_x)", "EXIT",
    )  # fmt: skip
    assert count(text, Work(32, 5, 2048), 1).per_value is None


def test_waiting_for_copies() -> None:
    """One warp issues a copy, and all wait in a loop of their own."""
    text = text_of(
        "@P0 BRA `(.L_x)", "UTMALDG.2D [UR8], [UR4]", ".L_x:", ".L_w:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0], R1",
        "@!P0 BRA `(.L_w)", STEP, "EXIT",
    )  # fmt: skip
    found = count(text, Work(32, 1, 2048), 1)
    assert found.per_value == 6 and found.loops[0].trips == 1


def test_what_warps_repeat() -> None:
    """Half of the multiply-adds more than the tile has are warps that repeat others'; twice as many are unrolled."""
    text = text_of(".L_x:", STEP, STEP, STEP, "@P0 BRA `(.L_x)", "EXIT")
    assert count(text, Work(32, 8, 2 * 2048), 1).loops[0].trips == 8
    assert count(text, Work(32, 9, 2048), 1).loops[0].trips == 3


def test_unknown_kernels() -> None:
    assert work_of("no_kernel", {}, {}) is None


# --- compiled ---------------------------------------------------------------------------------------------


constexpr = language.tl.constexpr if language.INSTALLED else int


def _pointwise(x_ptr, out_ptr, N: constexpr, GELU: constexpr, PAIRS: constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0) * N + tl.arange(0, N)
    y = gelu_as(tl.load(x_ptr + places) * 1.5, GELU, PAIRS)
    tl.store(out_ptr + places, y)


def launched(kernel: Any, *args: Any, **constants: Any) -> Launch:
    with recording() as made:
        kernel[(1,)](*args, **constants)
    return made[0]


@compiles
def test_gelu() -> None:
    """GELU by erf has 32 instructions per value and the logistic form 9 (`dispatch.gelu_form`: 0 is none).

    11 where two values share a reciprocal, but 1.5 instead of 2 for the special function unit. Of float32 values, so
    that no conversion is counted; the multiplication before it keeps its 1.
    """
    kernel, values = language.jit(_pointwise), 4096 / 128
    x = torch.empty(4096, device="meta")
    forms = [(0, False), (1, False), (2, False), (2, True)]
    launches = [launched(kernel, x, x, N=4096, GELU=form, PAIRS=pairs, num_warps=4) for form, pairs in forms]
    counts = [found for launch in launches if (found := compile_launch(launch, "sm_90", sass=True).sass) is not None]
    plain, erf, logistic, paired = (found.instructions / values for found in counts)
    assert erf - plain == pytest.approx(32, abs=0.5) and logistic - plain == pytest.approx(9, abs=0.25)
    assert paired - plain == pytest.approx(11, abs=0.25)
    assert [found.classes["mufu"] / values for found in counts[2:]] == [2, 1.5]


@compiles
def test_a_kernel_of_the_encoder() -> None:
    """A 3x3 depthwise convolution: 9 multiply-adds per value in 3 iterations, and its report."""
    calls = list(encoder_calls(VARIANTS["tiny"], 256, 256, 1, torch.float16))
    call, launch = next(
        (call, launch) for call, launch in launches_of(calls, "sm_80", torch.float16) if call.sizes.get("kernel") == 3
    )
    kernel = compile_launch(launch, "sm_80", sizes=call.sizes, dtype="fp16", sass=True)
    assert kernel.sass is not None and kernel.sass.per_value is not None and kernel.sass.per_value_classes is not None
    assert [loop.trips for loop in kernel.sass.loops] == [3]
    (loop,), values = kernel.sass.loops, kernel.constants["ROWS"] * kernel.constants["BLOCK_W"]
    assert kernel.sass.per_value_classes["fma"] > 9 and sum(kernel.sass.classes.values()) == kernel.sass.instructions
    executed = kernel.sass.instructions + 2 * loop.instructions
    assert kernel.sass.per_value == pytest.approx(executed * kernel.num_warps / values)  # 32 channels, 32 threads
    assert f"{kernel.sass.instructions} instructions  {kernel.sass.per_value:.1f} per value" in line_of(kernel)
    data = kernel.to_dict()
    assert data["per_value"] == kernel.sass.per_value and data["instructions"] == kernel.sass.instructions
    assert data["loops"] == [
        {"instructions": loop.instructions, "trips": 3, "classes": loop.classes} for loop in kernel.sass.loops
    ]
    bare = compile_launch(launch, "sm_80", sizes=call.sizes, dtype="fp16")
    assert "instructions" not in bare.to_dict() and not re.search("per value", line_of(bare))


@compiles
def test_no_cubin() -> None:
    with pytest.raises(UnavailableError, match="nvdisasm does not read"):
        disassemble(b"nothing")


@compiles
def test_every_size_is_counted() -> None:
    """The same code runs other products' loops more often."""
    calls = list(encoder_calls(VARIANTS["fastvithd"], 1024, 1024, 1, torch.float16))
    once, each = (launches_of(calls, "sm_90", torch.float16, each_size=each) for each in (False, True))
    assert {launch.key for _, launch in once} == {launch.key for _, launch in each} and len(once) < len(each)
    key = next(launch.key for _, launch in once if launch.name == "linear_kernel")
    widths = [call.sizes["k"] for call, launch in each if launch.key == key]
    assert len(widths) > 1 and len(set(widths)) > 1
