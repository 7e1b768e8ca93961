"""Each kernel against PyTorch's best, and the whole encoder against eager and torch.compile, on an NVIDIA GPU.

    python -m fvexport.benchmarks.kernels --res 256,1024 --batch 1,8 --gpu h100 --seconds 300 --out kernels.jsonl

Random inputs; medians of device time (`kernels/timing.py`), many copies of an operator in one CUDA graph, each on
another set of weights. Every candidate is first compared with float64, and one that is wrong is reported and not
timed. `--out` gets a JSON line per row as soon as it is there; with the same file again, rows that it has are not
measured again. Floors: `floor_ms` by the ceilings measured at the start, `sheet_floor_ms` by the data sheet (`--gpu`).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..encoder.fastvithd import FastViTHD
    from ..kernels.ceilings import Ceilings
    from ..kernels.timing import Clock, Timing
    from .kernel_cases import Case

DTYPES = ("fp16", "bf16", "fp32")
CASE_S = 0.4
"""Seconds to time one operator's candidates in, beside recording their graphs."""
ENCODER_S = 8.0
"""Seconds to time the encoder in at one size."""
COMPILE_S = {"reduce-overhead": 90.0, "max-autotune": 400.0}
"""Seconds after which a compiled rival is given up."""
OURS = "ours"
ALLOWED = 2.0
"""Error of a candidate over that of PyTorch's plain form in the same dtype, both against float64."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        variant: the architecture.
        sizes: (side of the images, batch), in order.
        dtype: as `fp16`.
        only: `operators`, `encoder` or both where empty.
        seconds: no row starts later.
        modes: of `torch.compile`.
        gpu: its name in `fvexport inspect --roofline`.
        variants: also run the chosen kernels with each of their modes left out.
        dry: on the CPU, without compiling anything.
    """

    variant: str
    sizes: tuple[tuple[int, int], ...]
    dtype: str = "fp16"
    only: str = ""
    seconds: float = float("inf")
    modes: tuple[str, ...] = ("reduce-overhead",)
    gpu: str | None = None
    variants: bool = False
    dry: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def torch_dtype(self) -> torch.dtype:
        from ..export.trace import DTYPES as BY_NAME

        return BY_NAME[self.dtype]


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default="256,512,1024,2048", show_default=True, help="Square resolutions, comma-separated.")
@click.option("--batch", default="1,8", show_default=True, help="Images per call, comma-separated.")
@click.option("--variant", default="fastvithd", show_default=True, help="Architecture.")
@click.option("--dtype", type=click.Choice(DTYPES), default="fp16", show_default=True, help="Of all tensors.")
@click.option("--only", type=click.Choice(["operators", "encoder"]), help="Measure only these.  [default: both]")
@click.option("--seconds", type=float, default=float("inf"), help="Start no row after so many.  [default: no limit]")
@click.option("--max-autotune", is_flag=True, help="Also torch.compile's max-autotune: minutes for each size.")
@click.option("--variants", is_flag=True, help="Also the chosen kernels without fast GELU, and without PDL.")
@click.option("--jobs", type=int, help="Processes that compile kernels first.  [default: one per processor]")
@click.option("--gpu", help="The GPU's name in `fvexport inspect --roofline`, for the data sheet's floor.")
@click.option("--dry-run", is_flag=True, help="The tiny variant at 64 pixels on the CPU, to try the command out.")
@click.option("--out", type=click.Path(path_type=Path), help="Append JSON lines to this file.")
def main(
    res: str, batch: str, variant: str, dtype: str, only: str | None, seconds: float, max_autotune: bool,
    variants: bool, jobs: int | None, gpu: str | None, dry_run: bool, out: Path | None,
) -> None:  # fmt: skip
    """Prints a line for each operator and size, then for the encoder, and writes them to `--out`."""
    import torch

    from ..errors import FvexportError
    from ..kernels.tune import check_gpu

    modes = ("reduce-overhead", "max-autotune") if max_autotune else ("reduce-overhead",)
    if dry_run:
        plan = Plan("tiny", ((64, 1),), "fp32", only or "", seconds, modes, gpu, variants, dry=True)
    else:
        sizes = tuple((int(side), int(images)) for side in res.split(",") for images in batch.split(","))
        plan = Plan(variant, sizes, dtype, only or "", seconds, modes, gpu, variants)
    try:
        if not plan.dry:
            check_gpu()
            torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
            _warm(plan, jobs)
        left = run(plan, Rows(out, environment()), click.echo)
    except FvexportError as error:
        raise click.ClickException(str(error)) from error
    if left:
        click.echo(f"{left} rows left after {seconds:g} s: run it again with the same --out to go on")


def _warm(plan: Plan, jobs: int | None) -> None:
    import torch

    from ..encoder.config import get_variant
    from ..kernels.table import arch_of
    from ..kernels.warm import encoder_launches, warm

    sizes = [(side, side, batch) for side, batch in plan.sizes]
    arch = arch_of(torch.device("cuda"))
    warm(encoder_launches(get_variant(plan.variant), sizes, [plan.torch_dtype], arch), arch, jobs=jobs)


def run(plan: Plan, rows: Rows, say: Callable[[str], object], *, clock: Clock | None = None) -> int:
    """Measures what `rows` has not, and adds it there; `say` gets a line for each. Returns how many rows are left.

    Raises UnavailableError when the GPU is lost; the rows so far are kept.
    """
    from ..encoder.config import get_variant
    from ..kernels.ceilings import ceilings
    from ..kernels.timing import default_clock
    from .kernel_cases import Maker, cases

    clock, end, left = clock or default_clock(), time.monotonic() + plan.seconds, 0
    small: dict[str, Any] = {"copy_bytes": 1 << 20, "side": 64} if plan.dry else {}
    top = ceilings(dtype=plan.torch_dtype, device=plan.device, clock=clock, **small)
    rows.add({"kind": "ceilings"} | top.to_dict())
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
                left += 1
                continue
            rows.add(row := key | case_row(case, clock, top, plan.gpu, 0.0 if plan.dry else CASE_S))
            say(line(row))
    model: Encoder | None = None
    for side, batch in plan.sizes if plan.only != "operators" else ():
        key = {"kind": "encoder", "variant": plan.variant, "resolution": side, "batch": batch, "dtype": plan.dtype}
        if rows.has(key):
            continue
        if time.monotonic() > end:
            left += 1
            continue
        model = model or Encoder(plan)
        rows.add(row := key | model.row(side, batch, clock, top, end))
        say(line(row))
    return left


# --- one operator ---------------------------------------------------------------------------------------


def case_row(
    case: Case, clock: Clock, top: Ceilings, gpu: str | None = None, seconds: float = CASE_S
) -> dict[str, Any]:
    """Compares and times one operator's candidates: plain data.

    `ms` is by candidate; `errors` relative L2 distances from float64; `wrong` candidates with another result, and
    `failed` those that did not run, are not timed.
    """
    import torch

    with torch.inference_mode():
        checked = check(case)
        fine = {name: runs for name, runs in {**case.kernels, **case.rivals}.items() if checked.fine(name)}
        replays, failed = _replays(fine, clock, copies=0 if seconds else 1)
        timings = _timed(replays, clock, seconds)
    row = {
        "count": case.count, "chosen": case.chosen, "kernels": list(case.kernels), "errors": checked.errors,
        "wrong": checked.wrong, "failed": checked.failed | failed, "floor_ms": top.floor_ms(case.flops, case.bytes),
        "sheet_floor_ms": _sheet_floor_ms(case, gpu),
    }  # fmt: skip
    return row | _figures(timings, case.kernels, case.chosen, clock)


@dataclass(frozen=True)
class Checked:
    """Candidates against float64: relative L2 distances, those too far away, and what kept others from running."""

    errors: dict[str, float]
    wrong: dict[str, float]
    failed: dict[str, str]

    def fine(self, name: str) -> bool:
        return name in self.errors and name not in self.wrong


def check(case: Case) -> Checked:
    """Runs every candidate once on memory that held NaN, and compares with float64."""
    import torch

    from ..errors import first_line
    from ..kernels.timing import check_alive

    reference = case.reference()
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, runs in {**case.rivals, **case.kernels}.items():
        try:
            result = _poisoned(runs[0], reference)
            found[name] = _error(result, reference)
        except Exception as error:  # a rival this PyTorch or GPU has not, or a kernel that does not take this size
            failed[name] = first_line(error)
            if torch.cuda.is_available():
                check_alive()
    plain = next((found[name] for name in case.rivals if name in found), 0.0)
    eps = torch.finfo(result.dtype).eps if found else 0.0
    limit = max(ALLOWED * plain, eps)
    return Checked(found, {name: error for name, error in found.items() if not error <= limit}, failed)


def _poisoned(run: Callable[[], Tensor], reference: Tensor) -> Tensor:
    """The result of `run`, whose memory was full of NaN before: what it does not write is not finite."""
    import torch

    shape = run().shape  # also compiles what is not yet compiled
    held = [
        torch.full(shape, float("nan"), dtype=dtype, device=reference.device) for dtype in (torch.half, torch.float)
    ]
    del held
    return run()


def _error(result: Tensor, reference: Tensor) -> float:
    from .kernel_cases import ends

    found = ends(result).double().reshape(reference.shape)
    return float((found - reference).norm() / reference.norm())


def _replays(
    candidates: Mapping[str, Sequence[Callable[[], object]]], clock: Clock, copies: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Graphs of the candidates by name, and why others have none."""
    from ..kernels.timing import CaptureError, Replay

    replays, failed = {}, {}
    for name, runs in candidates.items():
        try:
            replays[name] = Replay(runs, copies=copies, clock=clock)
        except CaptureError as error:
            failed[name] = str(error)
    return replays, failed


def _timed(replays: Mapping[str, Callable[[], object]], clock: Clock, seconds: float) -> list[Timing]:
    from ..kernels.timing import SAMPLE_MS, paired

    if not replays:
        return []
    return paired(replays, budget_s=seconds, clock=clock, sample_ms=SAMPLE_MS if seconds else 0.0)


def _figures(timings: Sequence[Timing], ours: Mapping[str, object], chosen: str | None, clock: Clock) -> dict[str, Any]:
    """Milliseconds by candidate; the fastest rival and kernel; `speedup` of the chosen kernel over the former."""
    ms = {timing.name: timing.median_ms for timing in timings}
    rivals, kernels = ({n: t for n, t in ms.items() if (n in ours) == mine} for mine in (False, True))
    best, fastest = (min(group, key=lambda n, g=group: g[n], default=None) for group in (rivals, kernels))  # type: ignore[misc]
    speedup = rivals[best] / ms[chosen] if best is not None and chosen in ms else None
    return {
        "clock": clock.name, "ms": ms, "best_rival": best, "fastest_kernel": fastest, "speedup": speedup,
        "timings": [timing.to_dict() for timing in timings],
    }  # fmt: skip


def _sheet_floor_ms(case: Case, gpu: str | None) -> float | None:
    from ..export.gpus import get_gpu

    if gpu is None:
        return None
    sheet = get_gpu(gpu)
    rate = sheet.tflops if case.op != "depthwise" else sheet.fp32_tflops or float("inf")
    return 1e3 * max(case.flops / (1e12 * rate), case.bytes / (1e9 * sheet.bandwidth))


# --- the whole encoder ----------------------------------------------------------------------------------


class Encoder:
    """The fused model, loaded once, in every way it is timed."""

    def __init__(self, plan: Plan) -> None:
        import copy

        import torch

        from ..encoder.checkpoint import load_checkpoint
        from ..encoder.reparameterize import reparameterize
        from ..kernels.accelerate import accelerate

        self.plan = plan
        fused = reparameterize(load_checkpoint(None, variant=plan.variant).encoder)
        fused = fused.to(plan.device, plan.torch_dtype)
        self.exact: FastViTHD = copy.deepcopy(fused).double()
        self.eager = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ours = accelerate(self.eager)

    def row(self, side: int, batch: int, clock: Clock, top: Ceilings, end: float) -> dict[str, Any]:
        """Compares and times at one size: plain data, as `case_row` gives it, with `compiled` from child processes."""
        import torch

        plan = self.plan
        x = torch.rand(batch, 3, side, side, device=plan.device).to(plan.torch_dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), _no_tf32(plan.dtype):
            reference = self.exact(x[:1].double())
            results = {OURS: self.ours(x), "eager fused": self.eager(x)}
            errors = {name: _error(y[:1], reference) for name, y in results.items()}
            del results
            limit = max(ALLOWED * errors["eager fused"], torch.finfo(plan.torch_dtype).eps)
            wrong = {name: error for name, error in errors.items() if not error <= limit}
            runs = {OURS: [lambda: self.ours(x)], "eager fused": [lambda: self.eager(x)]}
            replays, failed = _replays({n: r for n, r in runs.items() if n not in wrong}, clock, copies=int(plan.dry))
            timings = _timed(replays, clock, 0.0 if plan.dry else ENCODER_S)
        del replays
        row = {"errors": errors, "wrong": wrong, "failed": failed, "floor_ms": self._floor_ms(side, batch, top)}
        row |= {"sheet_floor_ms": floor_ms(plan.variant, side, batch, plan.gpu), "chosen": OURS}
        row |= _figures(timings, {OURS: None}, OURS, clock)
        row["compiled"] = self._compiled(x, reference, end)
        return row | _with_compiled(row)

    def _compiled(self, x: Tensor, reference: Tensor, end: float) -> list[dict[str, Any]]:
        from .compiled import SAMPLES, measure_in_child, save

        plan, found = self.plan, []
        backend = "eager" if plan.dry else "inductor"
        with tempfile.TemporaryDirectory() as folder:
            for mode in plan.modes:
                job = save(
                    Path(folder),
                    self.eager,
                    x,
                    reference,
                    mode,
                    backend=backend,
                    device=plan.device,
                    samples=3 if plan.dry else SAMPLES,
                )
                limit = min(COMPILE_S[mode], max(20.0, end - time.monotonic()))
                found.append(measure_in_child(job, limit))
        return found

    def _floor_ms(self, side: int, batch: int, top: Ceilings) -> float:
        from ..encoder.config import get_variant
        from ..export.gpus import Gpu
        from ..export.roofline import roofline

        gpu = Gpu("custom", top.matmul_flops / 1e12, None, top.copy_bytes_s / 1e9)
        config = get_variant(self.plan.variant)
        return roofline(config, [(side, side)], gpu, precision="fp16", batch=batch).floors[0].fused.us / 1e3


@contextlib.contextmanager
def _no_tf32(dtype: str) -> Iterator[None]:
    """float32 is compared as float32."""
    import torch

    with torch.backends.cudnn.flags(benchmark=True, allow_tf32=dtype != "fp32"):
        yield


def _with_compiled(row: dict[str, Any]) -> dict[str, Any]:
    """The figures again, with the medians of the compiled rivals among them: timed alone, in processes of their own."""
    import statistics

    ms = dict(row["ms"])
    for found in row["compiled"]:
        if "times_ms" in found:
            ms[f"torch.compile {found['mode']}"] = statistics.median(found["times_ms"])
    rivals = {name: value for name, value in ms.items() if name != OURS}
    best = min(rivals, key=lambda name: rivals[name], default=None)
    speedup = rivals[best] / ms[OURS] if best is not None and OURS in ms else None
    return {"ms": ms, "best_rival": best, "speedup": speedup}


# --- what is reported -----------------------------------------------------------------------------------


class Rows:
    """Rows as JSON lines in a file that outlives whoever writes it; in memory without one.

    Args:
        path: of the file, or None. Rows that it has are read.
        environment: the first line; rows of another GPU, other versions or other kernels are no rows of this file.

    Raises ConfigError for a file of another environment.
    """

    def __init__(self, path: Path | None, environment: dict[str, Any]) -> None:
        from ..errors import ConfigError
        from ..place import os_errors

        self.path, self.rows = path, list[dict[str, Any]]()
        if path is not None and path.exists():
            with os_errors(path):
                lines = path.read_text(encoding="utf-8").splitlines()
            for text in lines:
                with contextlib.suppress(ValueError):  # the last line of a process that was killed
                    self.rows.append(json.loads(text))
        known = next((row for row in self.rows if row.get("kind") == "environment"), None)
        if known is None:
            self.add({"kind": "environment"} | environment)
            return
        for name in ("gpu", "versions", "kernels"):
            if known.get(name) != environment.get(name):
                raise ConfigError(f"{path} was measured with another {name}; give another --out, or delete it")

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        from ..place import os_errors

        self.rows.append(row)
        if self.path is not None:
            with os_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a row has all of `key`'s values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)


def line(row: Mapping[str, Any]) -> str:
    """One row for people: `SLOWER` marks a chosen kernel that a rival or another kernel beats."""
    ms, chosen = row["ms"], row["chosen"]
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


def floor_ms(variant: str, side: int, batch: int, gpu: str | None) -> float | None:
    """The floor of the encoder in float16 with all fusions, or None where no GPU is named."""
    from ..encoder.config import get_variant
    from ..export.gpus import get_gpu
    from ..export.roofline import roofline

    if gpu is None:
        return None
    report = roofline(get_variant(variant), [(side, side)], get_gpu(gpu), precision="fp16", batch=batch)
    return report.floors[0].fused.us / 1e3


def environment() -> dict[str, Any]:
    """Processor, GPU, driver's CUDA, versions and the kernels' digest: what a measurement holds for."""
    import torch

    from ..kernels.table import kernels_digest
    from ..versions import versions_of
    from . import paired

    found = paired.environment()
    found["versions"] |= versions_of("triton")
    found["kernels"] = kernels_digest()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count, "bytes": properties.total_memory,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
