"""SASS: the machine instructions of a compiled kernel, counted by class and loop, and per value of its result.

`disassemble` runs NVIDIA's nvdisasm, which Triton's wheel contains; everything else works on its text. How often a loop
runs is derived, not assumed: `work.Work` says how many multiply-adds one iteration of the kernel's source has, and the
loop in the text must have that many, or a multiple where ptxas unrolled it. Where that fails the count is None.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.errors import UnavailableError, first_line
from ..core.temporary import temporary_folder
from .work import Work

WARP = 32
STARTS_COPIES = 100
"""Instructions at most with which one warp starts copies by TMA; a branch around more of them is something else."""
_CLASSES = (
    (r"[A-Z]*(MMA|MMA_PAIR)$", "mma"),  # HMMA, HGMMA, QGMMA, IMMA, UTCHMMA
    (r"(FFMA2?|HFMA2|DFMA|FADD2?|FMUL2?|HADD2|HMUL2)$", "fma"),
    (r"MUFU$", "mufu"),
    (r"(LDG|LDGSTS|LD)$", "ldg"),
    (r"(STG|ST|RED|REDG|ATOMG?)$", "stg"),
    (r"(LDS|LDSM|LDTM)$", "lds"),
    (r"(STS|STSM|STTM)$", "sts"),
    (r"(UTMA\w+|UBLK\w+)$", "tma"),
)
CLASSES = (*(name for _, name in _CLASSES), "other")
"""Classes of instructions: tensor cores; float32 and half arithmetic; exp2, reciprocal and such; reads and writes of
global and shared memory (cp.async is a read); copies by TMA; the rest (addresses, moves, comparisons, barriers)."""


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        opcode: with its modifiers, `HGMMA.64x64x16.F32`.
        operands: the text after it.
        guarded: whether it runs only under a predicate.
        target: index of the instruction that a branch goes to, None for all others.
    """

    opcode: str
    operands: str
    guarded: bool
    target: int | None = None

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def kind(self) -> str:
        """Its class, of CLASSES."""
        if re.match(r"-?RZ, -?RZ, ", self.operands.partition(", ")[2]):
            return "other"  # HFMA2.MMA R1, -RZ, RZ, 0, 0 is a move
        return next((name for pattern, name in _CLASSES if re.match(pattern, self.base)), "other")

    @property
    def conditional(self) -> bool:
        """Whether a branch may fall through."""
        return self.guarded or bool(re.match(r"!?U?P[T\d]", self.operands))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds on tensor cores of one warp, 0 for every other instruction.

        HMMA.16816 is 16 x 8 x 16 of a warp; HGMMA.64x64x16 is 64 x 64 x 16 of the four warps of a group.
        """
        if self.kind != "mma" or self.base.startswith("UTC"):  # tcgen05 names no shape
            return 0
        if group := re.search(r"\.(\d+)x(\d+)x(\d+)", self.opcode):
            return int(group[1]) * int(group[2]) * int(group[3]) // 4
        shape = re.search(r"\.16(8)(\d+)", self.opcode)
        return 16 * 8 * int(shape[2]) if shape else 0

    @property
    def fused(self) -> int:
        """Float32 multiply-adds of one thread."""
        return {"FFMA": 1, "FFMA2": 2}.get(self.base, 0) if self.kind == "fma" else 0


@dataclass(frozen=True)
class Loop:
    """Instructions `first` to `last`, a branch back to `first`.

    Attributes:
        first, last: indices of instructions.
        classes: number of instructions by class.
        trips: how often it runs, None where that is not known.
    """

    first: int
    last: int
    classes: dict[str, int]
    trips: int | None = None

    @property
    def instructions(self) -> int:
        """Of one iteration, those of inner loops once."""
        return self.last - self.first + 1

    def __contains__(self, index: int) -> bool:
        return self.first <= index <= self.last


@dataclass(frozen=True)
class Count:
    """What `count` finds.

    Attributes:
        instructions: of the kernel, without padding.
        classes: the same by class.
        loops: every loop, in the order of the text.
        per_value: instructions that a thread executes for one value of the result (`Work.values`), from the first
            instruction of the kernel to the last; None where it cannot be derived.
        per_value_classes: the same by class.
    """

    instructions: int
    classes: dict[str, int]
    loops: tuple[Loop, ...]
    per_value: float | None = None
    per_value_classes: dict[str, float] | None = None


# --- reading ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def disassemble(cubin: bytes) -> str:
    """The text that nvdisasm prints for a compiled kernel.

    Raises UnavailableError if nvdisasm cannot be run or does not accept the file.
    """
    import triton

    tool = triton.knobs.nvidia.nvdisasm.path
    with temporary_folder() as folder:
        file = folder / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([tool, "-c", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"nvdisasm does not read a compiled kernel: {first_line(Exception(done.stderr))}")
    return done.stdout


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of nvdisasm's text, without the padding after the last one."""
    labels: dict[str, int] = {}
    found: list[tuple[str, str, bool]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(found)
        if matched := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:(@\S+)\s+)?([A-Z][\w.]*)\s*([^;]*)", line):
            guard, opcode, operands = matched.groups()
            found.append((opcode, operands.strip(), guard not in (None, "@PT", "@UPT")))
    code = tuple(
        Instruction(opcode, operands, guarded, labels.get(label[1]) if label else None)
        for opcode, operands, guarded in found
        for label in [re.search(r"`\((\.L_\w+)\)", operands) if opcode.startswith("BRA") else None]
    )
    end = len(code)
    while end and (code[end - 1].base == "NOP" or code[end - 1].target == end - 1):
        end -= 1  # the kernel ends with a branch to itself and NOPs
    return code[:end]


def loops_of(code: Sequence[Instruction]) -> tuple[Loop, ...]:
    """Loops by their branches back; an outer loop comes before its inner ones."""
    last: dict[int, int] = {}
    end = _end(code)
    for index, instruction in enumerate(code):
        target = instruction.target
        if target is not None and target <= index and not target <= end < index:  # from behind the end: a way back
            last[target] = index
    return tuple(
        Loop(first, end, classes_of(code[first : end + 1]))
        for first, end in sorted(last.items(), key=lambda item: (item[0], -item[1]))
    )


def _end(code: Sequence[Instruction]) -> int:
    """Index of the last exit; ptxas puts behind it what rarely runs, such as waiting once more."""
    return max((i for i, at in enumerate(code) if at.base == "EXIT" and not at.guarded), default=len(code))


def classes_of(code: Iterable[Instruction]) -> dict[str, int]:
    """Number of instructions by class, those that occur."""
    found = Counter(instruction.kind for instruction in code)
    return {name: found[name] for name in CLASSES if found[name]}


# --- counting ---------------------------------------------------------------------------------------------


def count(text: str, work: Work | None = None, num_warps: int = 4) -> Count:
    """Counts the instructions of nvdisasm's text.

    Args:
        text: of one kernel.
        work: what a program computes; without it no trips and no `per_value`.
        num_warps: warps of a program.
    """
    code = parse(text)
    loops = loops_of(code)
    plain = Count(len(code), classes_of(code), loops)
    if work is None:
        return plain
    path = _path(code, loops, work)
    if path is None:
        return plain
    loops = tuple(_with_trips(loop, loops, code, path, work, num_warps) for loop in loops)
    plain = Count(len(code), plain.classes, loops)
    executed: Counter[str] = Counter()
    for index in path:
        times = 1
        for loop in loops:
            if index in loop:
                if loop.trips is None or (loop.trips and loop.first not in path):  # entered in its middle
                    return plain
                times *= loop.trips
        executed[code[index].kind] += times
    values = work.values / (WARP * num_warps)
    per_class = {name: executed[name] / values for name in CLASSES if executed[name]}
    return Count(len(code), plain.classes, loops, sum(per_class.values()), per_class)


def _anchors(code: Iterable[Instruction], work: Work) -> int:
    """Multiply-adds as `work` counts them: of a warp on tensor cores, or of a thread."""
    return sum(i.multiply_adds if work.tensor_cores else i.fused for i in code)


def _path(code: Sequence[Instruction], loops: Sequence[Loop], work: Work) -> list[int] | None:
    """Indices of the instructions that a program passes, each once; None where a branch is not understood."""
    found, index, end = [], 0, _end(code)
    while index < len(code):
        found.append(index)
        at = code[index]
        if at.base == "EXIT" and not at.guarded:
            return found
        rare = at.opcode.startswith("BRA.DIV") or (at.target is not None and at.target > end and at.conditional)
        if at.target is None or at.target <= index or rare:  # DIV: warps that have diverged
            index += 1
        elif not at.conditional:
            index = at.target
        else:
            runs = _runs_next(code, loops, index, work)
            if runs is None:
                return None
            index = index + 1 if runs else at.target
    return None


def _runs_next(code: Sequence[Instruction], loops: Sequence[Loop], index: int, work: Work) -> bool | None:
    """Whether a forward branch falls through; None where that is not known."""
    target = code[index].target
    assert target is not None
    first, between = _anchors(code[index + 1 : target], work), code[index + 1 : target]
    last = code[target - 1]
    after = None  # the index behind the other side of an `if`, whose first side jumps there or ends the kernel
    if between and not last.guarded and last.base == "EXIT":
        after = _end(code) + 1
    elif between and last.target is not None and last.target > target and not last.conditional:
        after = last.target
    if after is not None:
        if any(i.base == "CALL" for i in code[target:after]):  # divides 64-bit numbers that do not fit into 32 bits
            return True
        second = _anchors(code[target:after], work)
        if first and second:
            here, there = _looped(loops, index, target), _looped(loops, target - 1, after)
            return None if work.branch is None or here == there else (here < there) == (work.branch == "short")
        return bool(first) == (work.steps > 0) if first or second else None
    if first:
        return work.steps > 0 if _looped(loops, index, target) else work.tail
    copies = any(i.kind == "tma" or i.base == "SYNCS" for i in between)
    return True if copies and len(between) <= STARTS_COPIES else None


def _looped(loops: Sequence[Loop], before: int, after: int) -> int:
    """Instructions of the loops between two indices."""
    return sum(loop.instructions for loop in loops if before < loop.first and loop.last < after)


def _with_trips(
    loop: Loop, loops: Sequence[Loop], code: Sequence[Instruction], path: Sequence[int], work: Work, num_warps: int
) -> Loop:
    """The loop and how often it runs."""
    inside = _anchors((code[i] for i in path if i in loop), work)
    inner = any(other is not loop and other.first in loop for other in loops)
    if loop.last not in path:
        return Loop(loop.first, loop.last, loop.classes, 0)
    if not inside and any(code[i].base == "SYNCS" for i in range(loop.first, loop.last + 1)):
        return Loop(loop.first, loop.last, loop.classes, 1)  # waits for a copy
    step = work.multiply_adds // (num_warps if work.tensor_cores else WARP * num_warps)
    if not step:
        return loop
    unrolled, extra = divmod(inside, step)
    if inner or not unrolled or (extra and unrolled > 1):
        return loop
    # Between one and two iterations' multiply-adds: one, and warps that repeat each other's (tiles of few rows).
    step += extra
    outside = _anchors((code[i] for i in path if i not in loop), work) - (step if work.tail else 0)
    peeled, odd = divmod(outside, step) if work.tensor_cores else (0, 0)  # threads multiply and add in GELU, too
    trips, left = divmod(work.steps - peeled, unrolled)
    if left or odd or peeled < 0 or trips < 0:
        return loop
    return Loop(loop.first, loop.last, loop.classes, trips)
