"""Instructions, registers and shared memory of every compiled kernel, counted in its SASS for sm_90.

    python -m fvexport.benchmarks.gpu.predicted.codes       # compiles what the model needs and writes codes.json

A kernel is a straight part and one main loop (over taps, over K, over hidden channels, over keys), so that a program
issues `outside + passes * loop` instructions per warp. `codes.json` is committed with the versions that compiled it;
the predictions read it and need no compiler.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....core.errors import UnavailableError

if TYPE_CHECKING:
    from ....kernels.launches import Launch

FILE = Path(__file__).parent / "codes.json"
COMMAND = "python -m fvexport.benchmarks.gpu.predicted.codes"
ARCH = "sm_90"
WARP = 32
WITHOUT_EFFECT = ("GROUP_M", "PDL", "PERSISTENT", "WHOLE")
"""Constants that change few or no instructions. A persistent kernel is counted tile by tile, as one that is not."""

UNUSUAL = ("fp8e4nv", "u8")
"""Types of tensors that are told apart; all others follow from the model's."""


@dataclass(frozen=True)
class Code:
    """One compiled kernel.

    Attributes:
        registers: per thread.
        shared: bytes per program.
        spills: bytes per thread.
        outside: instructions per warp outside the main loop.
        loop: instructions per warp of one pass of it.
        unrolled: steps of the source's loop in one pass.
        peeled: steps of it that run outside.
        mma: of those, products on tensor cores.
        mma_macs: multiply-adds of one of them and one warp, on average.
        mufu: of those, exp2, reciprocals and the like.
    """

    registers: int
    shared: int
    spills: int
    outside: int
    loop: int = 0
    unrolled: int = 1
    peeled: int = 0
    mma: int = 0
    mma_macs: int = 0
    mufu: int = 0


def key_of(launch: Launch) -> str:
    """What a launch's code is kept under: kernel, constants, optional arguments, unusual types, warps and stages."""
    names = [name for name, _ in launch.signature]
    constants = [
        f"{name}={int(value)}"
        for name, value in launch.constants
        if name.isupper() and isinstance(value, int) and name not in WITHOUT_EFFECT
    ]
    optional = [f"+{name}" for name in ("residual", "scale") if {name, f"{name}_ptr"} & set(names)]
    types = [f"{name}:{kind}" for name, kind in launch.signature if kind[1:] in UNUSUAL]
    return " ".join(
        [launch.name, *constants, *optional, *types, f"warps={launch.num_warps}", f"stages={launch.num_stages}"]
    )


@functools.lru_cache
def stored() -> dict[str, Code]:
    """The committed codes by key."""
    return {key: Code(**code) for key, code in json.loads(FILE.read_text(encoding="utf-8"))["codes"].items()}


def code_of(launch: Launch) -> Code:
    """The code of a launch; raises UnavailableError where it was never counted."""
    found = stored().get(key_of(launch))
    if found is None:
        raise UnavailableError(f"{FILE.name} has no counts for {key_of(launch)!r}; run `{COMMAND}`")
    return found


def to_json(codes: Mapping[str, Code], versions: Mapping[str, Any]) -> str:
    """The file's text: one kernel per line."""
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(asdict(codes[key]))}" for key in sorted(codes))
    head = f'  "arch": "{ARCH}", "dtype": "fp16", "command": "{COMMAND}", "versions": {json.dumps(dict(versions))}'
    return f'{{\n{head},\n  "codes": {{\n{lines}\n  }}\n}}\n'


# --- counting, which needs Triton -----------------------------------------------------------------------


def counted(launch: Launch, sizes: Mapping[str, int]) -> Code:
    """Compiles a launch for sm_90 and counts its instructions.

    Raises UnavailableError if the code is not understood: then `kernels.work` does not describe the kernel.
    """
    from ....kernels.aot import compile_launch
    from ....kernels.work import sizes_of, work_of

    constants = tuple((name, 0 if name == "PERSISTENT" else value) for name, value in launch.constants)
    launch = replace(launch, constants=constants)
    work = work_of(launch.name, dict(launch.constants), sizes_of(launch.name, sizes, launch.grid))
    compiled = compile_launch(launch, ARCH, sizes=dict(sizes), dtype="fp16", sass=True)
    found = compiled.sass
    if work is None or found is None or found.per_value is None:
        raise UnavailableError(f"the SASS of {key_of(launch)} does not match what kernels/work.py says of its loop")
    resources = (compiled.registers, compiled.shared, compiled.spills)
    total = round(found.per_value * work.values / (WARP * launch.num_warps))
    main = max((loop for loop in found.loops if loop.trips), key=lambda loop: loop.instructions, default=None)
    if main is None or not main.trips or not work.steps:
        return Code(*resources, total)
    unrolled = 1 if work.steps % main.trips else work.steps // main.trips
    mma = main.classes.get("mma", 0)
    return Code(
        *resources, total - main.trips * main.instructions, main.instructions, unrolled,
        work.steps - main.trips * unrolled, mma,
        mma and work.multiply_adds * unrolled // (mma * launch.num_warps), main.classes.get("mufu", 0),
    )  # fmt: skip


def wanted() -> dict[str, tuple[Launch, dict[str, int]]]:
    """Every launch of the encoder that a prediction may ask for, by key, with the sizes of one call.

    Of this version's and the last release's block sizes, at all resolutions that kernels are compiled for.
    """
    from ....kernels.aot import RESOLUTIONS
    from .scenario import Image, Precision, recorded_calls

    asked: list[tuple[int, bool, Precision]] = [(0, True, None)]
    asked += [(modes, False, precision) for modes in (0, 1) for precision in (None, "fp8")]
    found: dict[str, tuple[Launch, dict[str, int]]] = {}
    for size in reversed(RESOLUTIONS):
        for batch in (8, 1):
            for modes, released, precision in asked:
                for _, sizes, launches in recorded_calls(Image(*size, batch), modes, released, precision):
                    for launch in launches:
                        found.setdefault(key_of(launch), (launch, sizes))
    return found


def main() -> None:
    """Entry point of the command: compiles what is missing or, with `--all`, everything."""
    import click

    from ....core.versions import versions_of

    @click.command(COMMAND)
    @click.option("--all", "everything", is_flag=True, help="Count again what the file has.")
    def command(everything: bool) -> None:
        """Count the SASS of every launch of the encoder and write codes.json."""
        known = {} if everything or not FILE.exists() else stored()
        codes: dict[str, Code] = {}
        done = False
        try:
            for key, (launch, sizes) in wanted().items():
                codes[key] = known.get(key) or counted(launch, sizes)
                if key not in known:
                    click.echo(f"{key}: {codes[key]}")
            done = True
        except UnavailableError as error:
            raise click.ClickException(str(error)) from None
        finally:  # what was counted until then need not be compiled again
            FILE.write_text(to_json(codes if done else {**known, **codes}, versions_of("triton")), encoding="utf-8")

    command()


if __name__ == "__main__":
    main()
