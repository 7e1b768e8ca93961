"""What `Encoder` adds to the runtime under it: each CPU backend against a bare loop over the same file.

    python -m fvexport.benchmarks.studies.overhead --res 256

The bare loop is what a user would write with the same settings: `InferenceSession.run`, an OpenVINO request's `infer`,
the module in PyTorch's inference mode. Both run on the same normalized pixels, in turn. Exits with status 1 if a ratio
is beyond --limit, together with its whole 95 % interval.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import torch

from ...core.errors import UnavailableError
from ...encoder.checkpoint import load_checkpoint
from ...encoder.exact import exact_float32
from ...encoder.image import sample_images
from ...export.artifact import Artifact
from ...export.artifact_source import exported_module, source_checkpoint
from ...export.export_options import ExportOptions
from ...export.onnx_export import export_onnx
from ...export.runtime import Encoder, OnnxRuntimeBackend, OpenVinoBackend
from ...kernels.timing import HostClock, rounds_of
from ..peers.runners import run_onnxruntime, run_openvino
from ..report.intervals import Interval, median_interval

Run: TypeAlias = Callable[[], Any]
MEASURED = ("onnxruntime-cpu", "openvino", "eager")
SAMPLE_MS = 50.0
"""Time of one sample: a short call runs several times in it."""


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--artifact", "path", type=click.Path(path_type=Path), help="Artifact to run. [default: a new one]")
@click.option("--variant", default="fastvithd", show_default=True, help="Variant of a new artifact.")
@click.option("--res", default=256, show_default=True, help="Height and width of a new artifact.")
@click.option("--rounds", default=25, show_default=True, type=click.IntRange(min=5), help="Samples of each loop.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each runtime. [default: its own]")
@click.option("--limit", default=1.03, show_default=True, type=click.FloatRange(min=1), help="Largest accepted ratio.")
def main(path: Path | None, variant: str, res: int, rounds: int, threads: int | None, limit: float) -> None:
    """Prints a table, and exits with 1 if a backend is beyond the limit."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = Artifact.open(path) if path is not None else export_seeded(variant, res, Path(folder) / "new")
        click.echo(f"{'backend':16s} {'bare ms':>9s} {'Encoder ms':>11s} {'ratio':>7s}  95 % interval")
        rows = [row for backend in MEASURED if (row := measure(artifact, backend, rounds, threads)) is not None]
    if any(row.ratio.beyond(limit - 1) for row in rows):
        click.echo(f"beyond {limit:.2f}x: {', '.join(row.backend for row in rows if row.ratio.beyond(limit - 1))}")
        sys.exit(1)


@dataclass(frozen=True)
class Row:
    """One backend: medians in milliseconds, and the ratio `encoder_ms` / `bare_ms` within rounds."""

    backend: str
    bare_ms: float
    encoder_ms: float
    ratio: Interval


def measure(artifact: Artifact, backend: str, rounds: int, threads: int | None) -> Row | None:
    """Measures one backend and prints its line; None where it cannot run the artifact here."""
    if threads:
        torch.set_num_threads(threads)
    try:
        encoder = Encoder(artifact, backend, threads=threads)
    except UnavailableError as error:
        click.echo(f"{backend:16s} {error}")
        return None
    x = encoder.preprocessor.pixels(sample_images()["astronaut"])[None].repeat(encoder.batch[0], 0)
    values = x if encoder.uint8 else encoder.preprocessor.config.normalize(x)
    bare = bare_loop(encoder, values)
    np.testing.assert_allclose(encoder.run(values), bare(), rtol=1e-4, atol=1e-4)  # the same work
    row = compare(backend, bare, lambda: encoder.run(values), rounds)
    low, high = (f"{end:.3f}" for end in (row.ratio.low, row.ratio.high) if end is not None)
    click.echo(f"{backend:16s} {row.bare_ms:9.2f} {row.encoder_ms:11.2f} {row.ratio.value:6.3f}x  {low}..{high}")
    return row


def compare(backend: str, bare: Run, ours: Run, rounds: int) -> Row:
    """Times both loops once per round, in turn first and second."""
    runs = {"bare": bare, "encoder": ours}
    times = rounds_of(runs, rounds=rounds, sample_ms=SAMPLE_MS, warmup=2, clock=HostClock())
    ratios = [encoder / base for encoder, base in zip(times["encoder"], times["bare"], strict=True)]
    return Row(backend, statistics.median(times["bare"]), statistics.median(times["encoder"]), median_interval(ratios))


def bare_loop(encoder: Encoder, values: np.ndarray) -> Run:
    """One call of the runtime itself on a file opened a second time, with the settings of the encoder's backend.

    Args:
        encoder: of a backend in `MEASURED`.
        values: (B, 3, H, W), as the file takes them.
    """
    backend = encoder.backend
    if isinstance(backend, OnnxRuntimeBackend):
        run = run_onnxruntime(backend.source, backend.session.get_session_options())
        return partial(run, values.astype(backend.input_dtype, copy=False))
    if isinstance(backend, OpenVinoBackend):
        run = run_openvino(encoder.artifact.model_path, backend.settings)
        return partial(run, values.astype(backend.input_dtype, copy=False))
    return _bare_module(encoder.artifact, values)


def _bare_module(artifact: Artifact, values: np.ndarray) -> Run:

    manifest = artifact.manifest
    checkpoint = source_checkpoint(artifact)
    module = exported_module(manifest, checkpoint, uint8_input=manifest.input.dtype == "uint8")
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run() -> np.ndarray:
        with torch.inference_mode(), exact_float32():
            x = torch.from_numpy(values).to(memory_format=torch.channels_last)
            return module(x).numpy()

    return run


def export_seeded(variant: str, res: int, out: Path) -> Artifact:
    """A float32 artifact of seeded weights, without a verdict: nothing here depends on them."""
    options = ExportOptions(height=res, width=res)
    return export_onnx(load_checkpoint(None, variant=variant), out, options=options, parity=False).artifact


if __name__ == "__main__":
    main()
