"""The whole encoder on the kernels, eager and compiled, at one size: compared with float64 and timed."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.dtypes import torch_dtype
from ....core.gpus import Gpu, get_gpu
from ....encoder.checkpoint import load_checkpoint
from ....encoder.config import get_variant
from ....encoder.exact import exact_float32
from ....encoder.fastvithd import FastViTHD
from ....encoder.reparameterize import reparameterize
from ....export.roofline import roofline
from ....kernels.accelerate import accelerate
from ....kernels.ceilings import Ceilings
from ....kernels.timing import Clock
from .compiled import SAMPLES, Measured, Unmeasured, measure_in_child, save
from .rows import ALLOWED, error_of, figures, medians, replays_of, timed

ENCODER_S = 8.0
"""Seconds to time the encoder in at one size."""
COMPILE_S = {"reduce-overhead": 90.0, "max-autotune": 400.0}
"""Seconds after which a compiled rival is given up."""
OURS = "ours"


@dataclass(frozen=True, kw_only=True)
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
        return torch_dtype(self.dtype)


class Encoder:
    """The fused model, loaded once, in every way it is timed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        fused = reparameterize(load_checkpoint(None, variant=plan.variant).encoder)
        fused = fused.to(plan.device, plan.torch_dtype)
        self.exact: FastViTHD = copy.deepcopy(fused).double()
        self.eager = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ours = accelerate(self.eager)

    def row(self, side: int, batch: int, clock: Clock, top: Ceilings, end: float) -> dict[str, Any]:
        """Compares and times at one size: plain data, as `case_row` gives it, with `compiled` from child processes."""
        plan = self.plan
        x = torch.rand(batch, 3, side, side, device=plan.device).to(plan.torch_dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), exact_float32():
            reference = self.exact(x[:1].double())
            results = {OURS: self.ours(x), "eager fused": self.eager(x)}
            errors = {name: error_of(y[:1], reference) for name, y in results.items()}
            del results
            limit = max(ALLOWED * errors["eager fused"], torch.finfo(plan.torch_dtype).eps)
            wrong = {name: error for name, error in errors.items() if not error <= limit}
            runs = {OURS: [lambda: self.ours(x)], "eager fused": [lambda: self.eager(x)]}
            replays, failed = replays_of({n: r for n, r in runs.items() if n not in wrong}, clock, copies=int(plan.dry))
            timings = timed(replays, clock, 0.0 if plan.dry else ENCODER_S)
        del replays
        row: dict[str, Any] = {
            "errors": errors,
            "wrong": wrong,
            "failed": failed,
            "floor_ms": self._floor_ms(side, batch, top),
        }
        row |= {"sheet_floor_ms": floor_ms(plan.variant, side, batch, plan.gpu), "clock": clock.name}
        compiled = self._compiled(x, reference, end)
        row |= {"timings": [timing.to_dict() for timing in timings], "compiled": [asdict(found) for found in compiled]}
        times = medians(timings)
        for found in compiled:  # timed alone, in processes of their own
            if isinstance(found, Measured):
                times[f"torch.compile {found.mode}"] = statistics.median(found.times_ms)
        return row | figures(times, [OURS], OURS)

    def _compiled(self, x: Tensor, reference: Tensor, end: float) -> list[Measured | Unmeasured]:
        plan, found = self.plan, list[Measured | Unmeasured]()
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
        gpu = Gpu("custom", top.matmul_flops / 1e12, None, top.copy_bytes_s / 1e9)
        config = get_variant(self.plan.variant)
        return roofline(config, [(side, side)], gpu, precision="fp16", batch=batch).floors[0].fused.us / 1e3


def floor_ms(variant: str, side: int, batch: int, gpu: str | None) -> float | None:
    """The floor of the encoder in float16 with all fusions, or None where no GPU is named."""
    if gpu is None:
        return None
    report = roofline(get_variant(variant), [(side, side)], get_gpu(gpu), precision="fp16", batch=batch)
    return report.floors[0].fused.us / 1e3
