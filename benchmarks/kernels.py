"""Each Triton kernel against PyTorch's best, and the whole encoder against eager and torch.compile, on an NVIDIA GPU.

    python -m fvexport.benchmarks.kernels --res 256,512,1024,2048 --batch 1,8 --gpu h100 --out kernels.json

Random inputs, float16, medians, everybody in CUDA graphs. Tensors stay in L2 between repetitions where they fit, for
everybody alike. A row says whether `kernels/policy.py` uses the kernel at that shape, so that one that is slower than
its rival there stands out. With `--gpu` the floor of `fvexport inspect --roofline` stands beside the encoder's times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..encoder.config import FastViTHDConfig
    from .paired import Timing

REPEATS = 50
"""Replays of a graph in one timed run: a kernel takes microseconds, the clock and one launch as many."""
OURS = "kernel"


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default="256,512,1024,2048", show_default=True, help="Square resolutions, comma-separated.")
@click.option("--batch", default="1,8", show_default=True, help="Images per call, comma-separated.")
@click.option("--variant", default="fastvithd", show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--gpu", help="The GPU's name in `fvexport inspect --roofline`, for the floor.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(res: str, batch: str, variant: str, rounds: int, gpu: str | None, out: Path | None) -> None:
    """Prints a line for each kernel and shape, then for the encoder, and writes them to `--out`."""
    import torch

    from ..encoder.config import get_variant
    from ..errors import FvexportError
    from ..kernels.tune import check_gpu

    try:
        check_gpu()
        torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
        config = get_variant(variant)
        rows = []
        for side in (int(r) for r in res.split(",")):
            for images in (int(b) for b in batch.split(",")):
                for case in cases(config, side, images, torch.float16, "cuda"):
                    rows.append(case_row(case, side, images, timings(case.candidates, rounds)))
                    click.echo(line(rows[-1]))
                rows.append(encoder_row(variant, side, images, rounds, gpu))
                click.echo(line(rows[-1]))
    except FvexportError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        out.write_text(json.dumps({"environment": gpu_environment(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        op: its name.
        sizes: of its input.
        used: whether the table of kernels takes it there.
        candidates: ours under `kernel`, and its rivals: all compute the same.
    """

    op: str
    sizes: dict[str, int]
    used: bool
    candidates: Mapping[str, Callable[[], Tensor]]


def cases(config: FastViTHDConfig, side: int, batch: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """The operators of the encoder for `batch` images of `side` x `side` pixels, with random inputs of order one."""
    from ..encoder.config import MIXERS

    make = _Maker(dtype, device)
    for stage, (c, (h, w)) in enumerate(zip(config.dims, config.stage_resolutions(side, side), strict=True)):
        if MIXERS[stage] == "attention":
            yield from _attention_cases(make, batch, h * w, c, config.num_heads(stage))
        else:
            yield _depthwise_case(make, batch, h, w, c, 3)
        yield _depthwise_case(make, batch, h, w, c, 7)
        yield from _ffn_cases(make, batch, h * w, c, config.mlp_ratio * c)


class _Maker:
    """Random tensors, and which kernel the table chooses for them."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        import torch

        self.dtype, self.device = dtype, device
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 0

    def __call__(self, *shape: int, std: float = 1.0) -> Tensor:
        import torch

        return (torch.randn(shape, device=self.device) * std).to(self.dtype)

    def used(self, part: str, kernel: str, channels: int, rows: int) -> bool:
        from ..kernels.policy import kernel_for

        return kernel_for(part, self.dtype, channels, rows, self.processors) == kernel


def _attention_cases(make: _Maker, b: int, n: int, c: int, heads: int) -> Iterator[Case]:
    import torch.nn.functional as F  # noqa: N812

    from ..kernels.attention import attention, attention_reference
    from ..kernels.linear_residual import linear_residual
    from ..kernels.norm_linear import norm_linear, weight_sums

    x, weight, bias = make(b, n, c), make(3 * c, c, std=c**-0.5), make(3 * c)
    sums = weight_sums(weight)
    yield Case(
        "norm_linear", {"m": b * n, "k": c, "n": 3 * c}, make.used("qkv", "norm_linear", c, b * n),
        {
            OURS: lambda: norm_linear(x, weight, bias, sums=sums),
            "layer_norm + linear": lambda: F.linear(F.layer_norm(x, (c,)), weight, bias),
        },
    )  # fmt: skip
    qkv = make(b, n, 3 * c)
    rivals = {name: _with_backend(name, lambda: attention_reference(qkv, heads)) for name in _backends(make.device)}
    yield Case(
        "attention", {"batch": b, "tokens": n, "heads": heads}, make.used("attention", "attention", c, b * n),
        {OURS: lambda: attention(qkv, heads), **rivals},
    )  # fmt: skip
    w, bias_out, y = make(c, c, std=c**-0.5), make(c), make(b, n, c)
    yield Case(
        "linear_residual", {"m": b * n, "k": c, "n": c}, make.used("proj", "linear", c, b * n),
        {OURS: lambda: linear_residual(y, w, bias_out, x), "linear + add": lambda: x + F.linear(y, w, bias_out)},
    )  # fmt: skip


def _ffn_cases(make: _Maker, b: int, n: int, c: int, hidden: int) -> Iterator[Case]:
    import torch.nn.functional as F  # noqa: N812

    from ..kernels.linear_gelu import linear_gelu
    from ..kernels.linear_residual import linear_residual
    from ..kernels.mlp import MAX_CHANNELS, mlp, mlp_reference

    m = b * n
    x, residual, a = make(m, c), make(m, c), make(m, hidden)
    w1, b1, w2, b2 = make(hidden, c, std=c**-0.5), make(hidden), make(c, hidden, std=hidden**-0.5), make(c)
    products = make.used("ConvFFN", "linear", c, m)
    yield Case(
        "linear_gelu", {"m": m, "k": c, "n": hidden}, products,
        {OURS: lambda: linear_gelu(x, w1, b1), "linear + gelu": lambda: F.gelu(F.linear(x, w1, b1))},
    )  # fmt: skip
    yield Case(
        "linear_residual", {"m": m, "k": hidden, "n": c}, products,
        {OURS: lambda: linear_residual(a, w2, b2, residual), "linear + add": lambda: residual + F.linear(a, w2, b2)},
    )  # fmt: skip
    if c <= MAX_CHANNELS:
        yield Case(
            "mlp", {"m": m, "c": c, "hidden": hidden}, make.used("ConvFFN", "mlp", c, m),
            {
                OURS: lambda: mlp(x, w1, b1, w2, b2, residual),
                "linear_gelu + linear_residual": lambda: linear_residual(linear_gelu(x, w1, b1), w2, b2, residual),
                "linear + gelu + linear + add": lambda: mlp_reference(x, w1, b1, w2, b2, residual),
            },
        )  # fmt: skip


def _depthwise_case(make: _Maker, b: int, h: int, w: int, c: int, kernel: int) -> Case:
    from ..kernels.depthwise import depthwise, depthwise_reference

    x, weight, bias = make(b, h, w, c), make(kernel, kernel, c, std=1 / kernel), make(c)
    sizes = {"batch": b, "height": h, "width": w, "c": c, "kernel": kernel}
    return Case(
        "depthwise", sizes, make.used("depthwise", "depthwise", c, b * h * w),
        {
            OURS: lambda: depthwise(x, weight, bias),
            "cuDNN, channels-last": lambda: depthwise_reference(x, weight, bias),
        },
    )  # fmt: skip


def _backends(device: str) -> tuple[str, ...]:
    return ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION") if device == "cuda" else ("MATH",)


def _with_backend(name: str, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call() -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return run()

    return call


# --- timing, on a GPU alone ---------------------------------------------------------------------------


def timings(candidates: Mapping[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Every candidate captured and replayed, round by round; milliseconds of one run each. The first is the baseline.

    A rival that this GPU or PyTorch does not have is left out.
    """
    import torch

    from .paired import time_paired

    graphs: dict[str, Callable[[], None]] = {}
    with torch.inference_mode():
        for name, run in candidates.items():
            try:
                graphs[name] = _replayed(run)
            except RuntimeError:
                if name == OURS:
                    raise
        measured = time_paired(graphs, baseline=next(iter(graphs)), rounds=rounds)
    return [_per_run(timing) for timing in measured]


def _replayed(run: Callable[[], object]) -> Callable[[], None]:
    """Captures `run`; calling the result replays it REPEATS times and waits."""
    import torch

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> None:
        for _ in range(REPEATS):
            graph.replay()
        torch.cuda.synchronize()

    return replay


def _per_run(timing: Timing) -> Timing:
    from dataclasses import replace

    names = ("median_ms", "p10_ms", "p90_ms")
    return replace(timing, **{name: getattr(timing, name) / REPEATS for name in names})


def encoder_row(variant: str, side: int, batch: int, rounds: int, gpu: str | None) -> dict[str, Any]:
    """The whole encoder: ours, eager fused channels-last, and torch.compile(mode="max-autotune")."""
    import torch

    from ..encoder.checkpoint import load_checkpoint
    from ..encoder.reparameterize import reparameterize
    from ..kernels.accelerate import accelerate
    from .paired import time_paired

    eager = reparameterize(load_checkpoint(None, variant=variant).encoder).half().cuda()
    eager = eager.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = accelerate(eager)
    compiled: Callable[[Tensor], Tensor] = torch.compile(eager, mode="max-autotune", dynamic=False)
    x = torch.rand(batch, 3, side, side, device="cuda").half().contiguous(memory_format=torch.channels_last)

    def waited() -> None:
        for _ in range(REPEATS):  # max-autotune replays CUDA graphs of its own
            compiled(x)
        torch.cuda.synchronize()

    with torch.inference_mode():
        runs = {OURS: _replayed(lambda: ours(x)), "eager fused": _replayed(lambda: eager(x)), "torch.compile": waited}
        measured = [_per_run(t) for t in time_paired(runs, baseline=OURS, rounds=rounds)]
    row = row_of("encoder", {"side": side, "batch": batch}, True, measured)
    return row | {"resolution": side, "batch": batch, "floor_ms": floor_ms(variant, side, batch, gpu)}


# --- what is reported ---------------------------------------------------------------------------------


def case_row(case: Case, side: int, batch: int, measured: list[Timing]) -> dict[str, Any]:
    """A case and its timings as plain data."""
    return row_of(case.op, case.sizes, case.used, measured) | {"resolution": side, "batch": batch}


def row_of(op: str, sizes: dict[str, int], used: bool, measured: list[Timing]) -> dict[str, Any]:
    """Plain data: `speedup` is the fastest rival's median over ours."""
    times = {timing.name: timing.median_ms for timing in measured}
    rivals = {name: ms for name, ms in times.items() if name != OURS}
    best = min(rivals, key=lambda name: rivals[name])
    return {
        "op": op, "sizes": sizes, "used": used, "ms": times[OURS], "best_rival": best, "best_rival_ms": rivals[best],
        "speedup": rivals[best] / times[OURS], "timings": [timing.to_dict() for timing in measured],
    }  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """One row for people; `slower` marks a kernel that is used where a rival is faster."""
    sizes = " ".join(f"{name}={value}" for name, value in row["sizes"].items())
    mark = "" if not row["used"] else "used" if row["speedup"] >= 1 else "used, SLOWER"
    floor = f"  floor {1e3 * row['floor_ms']:.1f} us" if row.get("floor_ms") else ""
    return (
        f"{row['resolution']:5d} x{row['batch']}  {row['op']:16s} {sizes:44s} {1e3 * row['ms']:9.1f} us  "
        f"{row['speedup']:5.2f}x {row['best_rival']}  {mark}{floor}"
    )


def floor_ms(variant: str, side: int, batch: int, gpu: str | None) -> float | None:
    """The floor of the encoder in float16 with all fusions, or None where no GPU is named."""
    from ..encoder.config import get_variant
    from ..export.gpus import get_gpu
    from ..export.roofline import roofline

    if gpu is None:
        return None
    report = roofline(get_variant(variant), [(side, side)], get_gpu(gpu), precision="fp16", batch=batch)
    return report.floors[0].fused.us / 1e3


def gpu_environment() -> dict[str, Any]:
    """Processor, GPU, driver's CUDA and versions: what a measurement holds for."""
    import torch

    from ..versions import versions_of
    from .paired import environment

    found = environment()
    found["versions"] |= versions_of("triton")
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
