"""Kernels compiled ahead of time, for GPUs that are not here, and what the compilers say of them.

    python -m fvexport.kernels.aot                      # every kernel of the encoder, six architectures
    python -m fvexport.kernels.aot --arch sm_90 --json
    python -m fvexport.kernels.aot --arch sm_90 --dtype fp16 --sass     # and counts machine instructions

For each: registers, spilled bytes and stack (from NVIDIA's ptxas, which Triton's wheel carries), shared memory, scratch
memory that a launch would have to bring, and how wide global memory is read (from the PTX). What is wrong is said: a
spill, scratch, more shared memory than the architecture gives, or reads narrower than they could be. Exit code 1 then.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from ..core.errors import FvexportError, UnavailableError, first_line
from ..core.gpus import MAX_SHARED
from ..core.temporary import temporary_folder
from ..encoder.config import VARIANTS, FastViTHDConfig
from .dispatch import DEFAULTS, SWITCH, has_fp8, modes_for, switched_on
from .launches import TRITON_TYPES, Launch, encoder_calls, launches_of
from .sass import Count, count, disassemble
from .work import sizes_of, work_of

ARCHS = tuple(MAX_SHARED)
PLAIN_SHARED = 48
"""KiB that a block gets without asking; beyond it the launcher must raise the limit, as Triton's does."""
RESOLUTIONS = ((64, 64), (192, 64), (256, 256), (512, 512), (1024, 1024), (2048, 2048))
"""Image sizes whose launches are compiled: among them one token, and numbers of tokens that are no multiples of 16."""
BLACKWELL = 100


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled.

    Attributes:
        arch: `sm_80` to `sm_120`.
        kernel, dtype: what it is, and of which type its tensors are.
        sizes: of the first call that launches it.
        constants: what was compiled in, block sizes among them.
        num_warps, num_stages: Triton's own.
        registers: per thread.
        spills: bytes that a thread stores and loads for want of registers.
        stack: bytes of a thread's local memory, spills among them.
        shared: bytes of a block.
        scratch: bytes of global memory that a launch would have to bring, for Triton's own use and its profiler's.
        loads, stores: instructions that read and write global memory, by bytes per thread.
        ptx: the assembly.
        sass: the machine instructions, counted; None unless asked for.
    """

    arch: str
    kernel: str
    dtype: str
    sizes: dict[str, int]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    registers: int
    spills: int
    stack: int
    shared: int
    scratch: int
    loads: dict[int, int]
    stores: dict[int, int]
    ptx: str = field(repr=False)
    sass: Count | None = field(default=None, repr=False)

    @property
    def raised(self) -> bool:
        """Whether it needs more shared memory than a block gets without asking."""
        return self.shared > PLAIN_SHARED * 1024

    @property
    def problems(self) -> list[str]:
        """What is wrong with it, in words."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.scratch:
            found.append(f"needs {self.scratch} bytes of scratch memory")
        if self.shared > 1024 * (limit := MAX_SHARED.get(self.arch, 99)):
            found.append(f"needs {self.shared} bytes of shared memory; {self.arch} has {limit} KiB")
        if (widest := max(self.loads, default=0)) < self.wide:
            found.append(f"reads {widest} bytes at a time instead of {self.wide}")
        return found

    @property
    def wide(self) -> int:
        """Bytes that its widest read must have: 16, or where a depthwise tile has four channels a thread those.

        With two outputs per input channel neighbouring threads read the same value, one at a time. A thread of
        `depthwise_strips` has the float32 taps of two channels.
        """
        if self.kernel == "depthwise_strips_kernel":
            return 8
        if self.kernel != "depthwise_kernel":
            return 16
        value = int(self.dtype[-2:]) // 8
        return value if self.constants["MULTIPLIER"] > 1 else 4 * value

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the assembly; with the fields of `sass.Count` if instructions were counted."""
        data = asdict(self) | {"raised": self.raised, "problems": self.problems}
        del data["ptx"]
        counted = data.pop("sass")
        if self.sass is None:
            return data
        loops = [
            {"instructions": loop.instructions, "trips": loop.trips, "classes": loop.classes}
            for loop in self.sass.loops
        ]
        return data | counted | {"loops": loops}


def compile_encoder(
    archs: Sequence[str] = ARCHS, dtypes: Sequence[torch.dtype] = tuple(TRITON_TYPES), *,
    config: FastViTHDConfig | None = None, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS, batch: int = 1,
    kernels: Callable[[str], bool] = lambda name: True, modes: Collection[str] = DEFAULTS, sass: bool = False,
) -> Iterator[Compiled]:  # fmt: skip
    """Compiles what the encoder launches, with the committed configurations.

    Equal code comes once per architecture; with `sass` once for each of the sizes that it is launched for, which decide
    how often its loops run.

    Args:
        archs: of ARCHS.
        dtypes: float16, bfloat16 or float32.
        config: the architecture; the released encoder's by default.
        resolutions: (height, width) of images.
        batch: images per call.
        kernels: whether a kernel of that name is wanted.
        modes: names among which are those of `dispatch.MODES` to compile for.
        sass: count machine instructions.

    Raises:
        UnavailableError: no Triton, or only its interpreter; or an architecture that is not in ARCHS.
    """
    config = config or VARIANTS["fastvithd"]
    for arch in archs:
        if arch not in ARCHS:
            raise UnavailableError(f"unknown architecture {arch!r}; known are {', '.join(ARCHS)}")
    for dtype in dtypes:
        for arch in archs:
            fp8 = dtype != torch.float32 and has_fp8(arch)
            precisions: tuple[Literal["fp8"] | None, ...] = (None, "fp8") if fp8 else (None,)
            calls = [
                call
                for precision in precisions
                for size in resolutions
                for call in encoder_calls(
                    config, *size, batch, dtype, modes=modes_for(arch, modes), precision=precision
                )
            ]
            for call, launch in launches_of(calls, arch, dtype, each_size=sass):
                if kernels(launch.name):
                    yield compile_launch(launch, arch, sizes=call.sizes, dtype=TRITON_TYPES[dtype], sass=sass)


def compile_launch(
    launch: Launch, arch: str, *, sizes: dict[str, int] | None = None, dtype: str = "", sass: bool = False
) -> Compiled:
    """Compiles one launch for an architecture (`sm_90`), and counts its machine instructions if `sass`.

    Raises:
        UnavailableError: ptxas, which Triton's wheel carries, cannot be run or refuses the assembly.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    signature = dict(launch.signature) | {name: "constexpr" for name, _ in launch.constants}
    source = ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        dict(launch.constants),
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    number = int(arch.removeprefix("sm_"))
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", number, 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages, "launch_pdl": launch.pdl},
    )
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    registers, stack, spills = assemble(ptx, number)
    scratch = metadata.global_scratch_size + getattr(metadata, "profile_scratch_size", 0)  # Triton 3.4 has no second
    counted = None
    if sass:
        complete = sizes_of(launch.name, sizes or {}, launch.grid)
        work = work_of(launch.name, dict(launch.constants), complete) if sizes else None
        counted = count(disassemble(compiled.asm["cubin"]), work, launch.num_warps)
    return Compiled(
        arch, launch.name, dtype, sizes or {}, dict(launch.constants), launch.num_warps, launch.num_stages, registers,
        spills, stack, metadata.shared, scratch,
        loads=accesses(ptx, "ld"), stores=accesses(ptx, "st"), ptx=ptx, sass=counted,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def assemble(ptx: str, number: int) -> tuple[int, int, int]:
    """Registers, stack bytes and spilled bytes (stores and loads) that ptxas finds for the PTX of a capability."""
    import triton

    tools = triton.knobs.nvidia
    ptxas = (tools.ptxas_blackwell if number >= BLACKWELL else tools.ptxas).path
    target = re.search(r"^\.target\s+(\w+)", ptx, re.M)
    assert target is not None
    with temporary_folder() as folder:
        file = folder / "kernel.ptx"
        file.write_text(ptx, encoding="utf-8")
        command = [ptxas, "-v", f"--gpu-name={target[1]}", str(file), "-o", str(file.with_suffix(".cubin"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"ptxas refuses a kernel for {target[1]}: {first_line(Exception(done.stderr))}")
    found = used(done.stderr)
    if found is None:
        raise UnavailableError(f"ptxas said nothing of registers: {first_line(Exception(done.stderr))}")
    return found


def used(log: str) -> tuple[int, int, int] | None:
    """Registers, stack bytes and spilled bytes in what `ptxas -v` prints for one kernel; None where they are not."""
    registers = re.search(r"Used (\d+) registers", log)
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or frame is None:
        return None
    return int(registers[1]), int(frame[1]), int(frame[2]) + int(frame[3])


def accesses(ptx: str, kind: str) -> dict[int, int]:
    """Instructions of a PTX text that read (`ld`) or write (`st`) global memory, by bytes per thread, widest first.

    Copies to shared memory that pass registers by (cp.async) are reads. Those of whole tiles by descriptors
    (cp.async.bulk.tensor) read and write 16 bytes or more at a time, and count as 16.
    """
    found: Counter[int] = Counter()
    for vector, bits in re.findall(rf"\b{kind}\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bsuf](\d+)\b", ptx):
        found[int(vector or 1) * int(bits) // 8] += 1
    if kind == "ld":
        found.update(
            int(size, 16) for size in re.findall(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?, 0x([0-9a-f]+)", ptx)
        )
    to = r"shared::\w+\.global" if kind == "ld" else r"global\.shared::\w+"
    if tiles := len(re.findall(rf"\bcp\.async\.bulk\.tensor\.\dd\.{to}\b", ptx)):
        found[16] += tiles
    return dict(sorted(found.items(), reverse=True))


# --- as a command ---------------------------------------------------------------------------------------


def main() -> None:
    """Entry point of `python -m fvexport.kernels.aot`."""
    import click

    @click.command("python -m fvexport.kernels.aot")
    @click.option("--arch", "archs", multiple=True, type=click.Choice(ARCHS), help="One or more.  [default: all]")
    @click.option(
        "--dtype", "names", multiple=True, type=click.Choice(list(TRITON_TYPES.values())), help="[default: all]"
    )
    @click.option("--kernel", "wanted", multiple=True, metavar="NAME", help="Kernels by a part of their names.")
    @click.option("--sass", is_flag=True, help="Count machine instructions: total, per loop, per value.")
    @click.option("--size", "sizes", multiple=True, type=(int, int), metavar="H W", help="Image sizes.  [default: six]")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
    def command(
        archs: tuple[str, ...], names: tuple[str, ...], wanted: tuple[str, ...], sass: bool,
        sizes: tuple[tuple[int, int], ...], as_json: bool,
    ) -> None:  # fmt: skip
        """Compile every kernel of the encoder for GPUs that are not here, and report what the compilers say."""
        dtypes = [dtype for dtype, name in TRITON_TYPES.items() if not names or name in names]
        try:
            selected = switched_on(os.environ.get(SWITCH, ""))
        except FvexportError as error:
            raise click.ClickException(str(error)) from None
        found = compile_encoder(
            archs or ARCHS, dtypes, resolutions=sizes or RESOLUTIONS, modes=selected, sass=sass,
            kernels=lambda name: not wanted or any(part in name for part in wanted),
        )  # fmt: skip
        bad = 0
        try:
            for kernel in found:
                bad += bool(kernel.problems)
                click.echo(json.dumps(kernel.to_dict()) if as_json else line_of(kernel))
        except FvexportError as error:
            raise click.ClickException(str(error)) from None
        if bad:
            raise SystemExit(1)

    command()


def line_of(kernel: Compiled) -> str:
    """One line of the report."""
    blocks = " ".join(f"{n}={v}" for n, v in kernel.constants.items() if isinstance(v, int) and n.isupper())
    widths = " ".join(f"{count}x{width}B" for width, count in kernel.loads.items())
    shared = f"{kernel.shared / 1024:.1f} KiB{' (raised)' if kernel.raised else ''}"
    counted = ""
    if kernel.sass is not None:
        per_value = "unknown" if kernel.sass.per_value is None else f"{kernel.sass.per_value:.1f}"
        loops = " + ".join(
            f"{loop.instructions} x {loop.trips or '?'}" for loop in kernel.sass.loops if loop.trips != 0
        )
        counted = f"  {kernel.sass.instructions} instructions  {per_value} per value  loops {loops or 'none'}"
    told = "".join(f"  PROBLEM: {problem}" for problem in kernel.problems)
    return (
        f"{kernel.arch:7} {kernel.dtype:5}{kernel.kernel:22} {kernel.registers:3} registers  {kernel.spills} spilled  "
        f"{shared:18} shared  {kernel.scratch} scratch  loads {widths}{counted}  [{blocks}]{told}"
    )


if __name__ == "__main__":
    main()
