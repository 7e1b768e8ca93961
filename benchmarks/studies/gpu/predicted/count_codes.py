"""Counts the SASS of every launch of the encoder for sm_90 and writes `codes.json`. Needs Triton, but no GPU.

python -m fvexport.benchmarks.studies.gpu.predicted.count_codes         # compiles what the file lacks
python -m fvexport.benchmarks.studies.gpu.predicted.count_codes --all   # compiles everything again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import click

from .....core.errors import UnavailableError
from .....core.versions import versions_of
from .....kernels.aot import RESOLUTIONS, compile_launch
from .....kernels.launches import Launch
from .....kernels.work import sizes_of, work_of
from .codes import ARCH, COMMAND, FILE, WARP, Code, key_of, stored, to_json
from .scenario import Image, Precision, recorded_calls


def counted(launch: Launch, sizes: Mapping[str, int]) -> Code:
    """Compiles a launch for sm_90 and counts its instructions.

    Raises UnavailableError if the code is not understood: then `kernels.work` does not describe the kernel.
    """
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
