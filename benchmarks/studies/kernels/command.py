"""Each kernel against PyTorch's best, and the whole encoder against eager and torch.compile, on an NVIDIA GPU.

    python -m fvexport.benchmarks.studies.kernels --res 256 --batch 1,8 --gpu h100 --seconds 300 --out rows.jsonl

Random inputs; medians of device time (`kernels/timing.py`), many copies of an operator in one CUDA graph, each on
another set of weights. Every candidate is first compared with float64, and one that is wrong is reported and not
timed. `--out` gets a JSON line per row as soon as it is there; with the same file again, rows that it has are not
measured again. Floors: `floor_ms` by the ceilings measured at the start, `sheet_floor_ms` by the data sheet (`--gpu`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from ....core.errors import FvexportError
from ....encoder.config import get_variant
from ....kernels.ceilings import ceilings
from ....kernels.table import arch_of
from ....kernels.timing import Clock, default_clock
from ....kernels.tune import check_gpu
from ....kernels.warm import encoder_launches, warm
from ..results import gpu_environment
from .cases import Maker, cases
from .encoder import Encoder, Plan
from .row_file import RowFile
from .rows import CASE_S, case_row

DTYPES = ("fp16", "bf16", "fp32")


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default="256,512,1024,2048", show_default=True, help="Square resolutions, comma-separated.")
@click.option("--batch", default="1,8", show_default=True, help="Images per call, comma-separated.")
@click.option("--variant", default="fastvithd", show_default=True, help="Architecture.")
@click.option("--dtype", type=click.Choice(DTYPES), default="fp16", show_default=True, help="Of all tensors.")
@click.option("--only", type=click.Choice(["operators", "encoder"]), help="Measure only these.  [default: both]")
@click.option(
    "--seconds",
    "--budget",
    "seconds",
    type=float,
    default=float("inf"),
    help="Start no row after so many.  [default: no limit]",
)
@click.option("--max-autotune", is_flag=True, help="Also torch.compile's max-autotune: minutes for each size.")
@click.option("--variants", is_flag=True, help="Also the chosen kernels without fast GELU, and without PDL.")
@click.option("--jobs", type=int, help="Processes that compile kernels first.  [default: one per processor]")
@click.option("--gpu", help="The GPU's name in `fvexport inspect --roofline`, for the data sheet's floor.")
@click.option("--dry-run", is_flag=True, help="The tiny variant at 64 pixels on the CPU, to try the command out.")
@click.option("--out", type=click.Path(path_type=Path), help="Append JSON lines to this file.")
def main(
    res: str, batch: str, max_autotune: bool, jobs: int | None, dry_run: bool, out: Path | None, **given: Any
) -> None:
    """Prints a line for each operator and size, then for the encoder, and writes them to `--out`."""
    modes = ("reduce-overhead", "max-autotune") if max_autotune else ("reduce-overhead",)
    sizes = tuple((int(side), int(images)) for side in res.split(",") for images in batch.split(","))
    if dry_run:
        sizes, given = ((64, 1),), given | {"variant": "tiny", "dtype": "fp32"}
    given["only"] = given["only"] or ""
    plan = Plan(sizes=sizes, modes=modes, dry=dry_run, **given)
    try:
        if not plan.dry:
            check_gpu()
            torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
            _warm(plan, jobs)
        complete = run(plan, RowFile(out, gpu_environment()), click.echo)
    except FvexportError as error:
        raise click.ClickException(str(error)) from error
    if not complete:
        click.echo(f"the {plan.seconds:g} s are over: run it again with the same --out to go on")


def _warm(plan: Plan, jobs: int | None) -> None:

    sizes = [(side, side, batch) for side, batch in plan.sizes]
    arch = arch_of(torch.device("cuda"))
    warm(encoder_launches(get_variant(plan.variant), sizes, [plan.torch_dtype], arch), arch, jobs=jobs)


def run(plan: Plan, rows: RowFile, say: Callable[[str], object], *, clock: Clock | None = None) -> bool:
    """Measures what `rows` has not, and adds it there; `say` gets a line for each. Returns whether all rows are there.

    Raises UnavailableError when the GPU is lost; the rows so far are kept.
    """
    clock, end = clock or default_clock(), time.monotonic() + plan.seconds
    small: dict[str, Any] = {"copy_bytes": 1 << 20, "side": 64} if plan.dry else {}
    top = ceilings(dtype=plan.torch_dtype, device=plan.device, clock=clock, **small)
    rows.add({"kind": "ceilings"} | asdict(top))
    say(f"copies {top.copy_bytes_s / 1e12:.2f} TB/s, products {top.matmul_flops / 1e12:.0f} TFLOP/s in {top.dtype}")
    make = Maker(plan.torch_dtype, plan.device, plan.variants)
    for side, batch in plan.sizes if plan.only != "encoder" else ():
        for case in cases(get_variant(plan.variant), side, batch, make):
            key = {
                "kind": "operator", "op": case.op, "part": case.part, "sizes": case.sizes, "resolution": side,
                "batch": batch, "dtype": plan.dtype,
            }  # fmt: skip
            if rows.has(key):
                continue
            if time.monotonic() > end:
                return False
            rows.add(row := key | case_row(case, clock, top, plan.gpu, 0.0 if plan.dry else CASE_S))
            say(line(row))
    model: Encoder | None = None
    for side, batch in plan.sizes if plan.only != "operators" else ():
        key = {"kind": "encoder", "variant": plan.variant, "resolution": side, "batch": batch, "dtype": plan.dtype}
        if rows.has(key):
            continue
        if time.monotonic() > end:
            return False
        model = model or Encoder(plan)
        rows.add(row := key | model.row(side, batch, clock, top, end))
        say(line(row))
    return True


# --- what is reported -----------------------------------------------------------------------------------


def line(row: Mapping[str, Any]) -> str:
    """One row for people: `SLOWER` marks a chosen kernel that a rival beats."""
    ms, chosen = row["times_ms"], row["chosen"]
    sizes = " ".join(f"{name}={value}" for name, value in row.get("sizes", {}).items())
    parts = [f"{row['resolution']:5d} x{row['batch']}  {row.get('op', row['kind']):16s} {sizes:58s}"]
    for name in dict.fromkeys((chosen, row["fastest_kernel"], row["best_rival"])):
        if name is not None and name in ms:
            parts.append(f"{name}{'*' if name == chosen else ''} {1e3 * ms[name]:.1f}")
    parts.append(f"floor {1e3 * row['floor_ms']:.1f} us")
    if row["speedup"] is not None:
        parts.append(f"{row['speedup']:.2f}x" + (" SLOWER" if row["speedup"] < 1 else ""))
    parts += [f"WRONG {name} ({error:.1e})" for name, error in row["wrong"].items()]
    parts += [f"failed {name}: {reason}" for name, reason in row["failed"].items()]
    parts += [f"failed {found['mode']}: {found['error']}" for found in row.get("compiled", ()) if "error" in found]
    return "  ".join(parts)
