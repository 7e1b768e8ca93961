"""The fused encoder through `torch.compile`, in a process of its own with a time limit.

Compiling can take minutes, fail, or leave CUDA graphs behind; whoever measures beside it loses nothing then. The child
is `python -m fvexport.benchmarks.studies.kernels.compiled`, and prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ....encoder.exact import exact_float32
from ....kernels.timing import default_clock, device_times

MODES = ("reduce-overhead", "max-autotune")
MAX_AUTOTUNE = {"TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS": "ATEN"}
"""Convolutions by cuDNN: Inductor's templates for depthwise ones are slow, and it takes minutes to find that out."""
SAMPLES = 30


@dataclass(frozen=True)
class Job:
    """What to compile and time.

    Attributes:
        model: file that `torch.save` wrote of the fused encoder, in the dtype to run in.
        pixels: the same of its input (B, 3, H, W); its features are compared with `features`.
        features: the same of (B, N, C) in float64, of the first images of the batch.
        mode: of `torch.compile`.
        backend: of `torch.compile`: `inductor`, or `eager` to compile nothing.
        device: `cuda` or `cpu`.
        samples: calls that are timed.
    """

    model: str
    pixels: str
    features: str
    mode: str
    backend: str = "inductor"
    device: str = "cuda"
    samples: int = SAMPLES


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A job's times.

    Attributes:
        mode: the job's.
        settings: environment variables that change what is compiled.
        clock, ahead: the clock's name, and whether the host launched ahead of the GPU.
        compile_s: seconds until the compiled model was ready.
        rel_l2: relative L2 error, from the float64 features.
        times_ms: device time of calls from tensor to tensor, with the copies into and out of Inductor's CUDA graphs.
    """

    mode: str
    settings: dict[str, str]
    clock: str
    ahead: bool
    compile_s: float
    rel_l2: float
    times_ms: list[float]


@dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """A job that failed or took too long: its mode, and the reason in one line."""

    mode: str
    error: str


def measure(job: Job) -> Measured:
    """Compiles, compares and times, in this process."""
    torch.backends.cudnn.benchmark = True
    model = torch.load(job.model, map_location=job.device, weights_only=False)
    x = torch.load(job.pixels, map_location=job.device)
    reference = torch.load(job.features, map_location=job.device)
    mode = job.mode if job.backend == "inductor" else None
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, mode=mode, backend=job.backend, dynamic=False)
    clock, start = default_clock(), time.perf_counter()
    with torch.inference_mode(), exact_float32():
        for _ in range(3):  # compiles, then records its graphs
            y = compiled(x)
        y = y[: len(reference)].double()
        compile_s = time.perf_counter() - start
        times = device_times(lambda: compiled(x), samples=job.samples, clock=clock)
    return Measured(
        mode=job.mode, settings={name: os.environ[name] for name in MAX_AUTOTUNE if name in os.environ},
        clock=clock.name, ahead=clock.ahead, compile_s=compile_s,
        rel_l2=float((y - reference).norm() / reference.norm()), times_ms=times,
    )  # fmt: skip


def measure_in_child(job: Job, limit_s: float) -> Measured | Unmeasured:
    """`measure` in another process, for at most `limit_s` seconds."""
    environment = dict(os.environ)
    if job.mode == "max-autotune":
        environment |= MAX_AUTOTUNE
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    # A session of its own: Inductor compiles in processes that have to end with the child.
    child = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(asdict(job))], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Unmeasured(mode=job.mode, error=f"took longer than {limit_s:.0f} s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        reason = (err.strip().splitlines() or [f"exit code {child.returncode}"])[-1][:300]
        return Unmeasured(mode=job.mode, error=reason)
    try:
        return Measured(**json.loads(out[out.rstrip().rfind("\n") + 1 :]))
    except (ValueError, TypeError) as error:
        return Unmeasured(mode=job.mode, error=f"the process gave no valid answer ({error})")


def save(folder: Path, model: Any, pixels: Tensor, features: Tensor, mode: str, **options: Any) -> Job:
    """Writes what a child needs to `folder`; options as `Job` has them."""
    paths = [folder / f"{name}.pt" for name in ("model", "pixels", "features")]
    for path, value in zip(paths, (model, pixels, features), strict=True):
        torch.save(value, path)
    return Job(str(paths[0]), str(paths[1]), str(paths[2]), mode, **options)


@click.command(help="Measure one JSON-encoded job, and print the result as JSON.")
@click.argument("job")
def main(job: str) -> None:
    """Entry point of the child."""
    click.echo(json.dumps(asdict(measure(Job(**json.loads(job))))))


if __name__ == "__main__":
    main()
