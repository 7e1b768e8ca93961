"""What each step of our quantization buys, in dB of the features, on photographs that were not calibrated on.

    python -m fvexport.benchmarks.studies.int8_steps --res 512 --samples 32 --outliers 0.5

The eager model with quantizers is measured, which computes what the file does; no runtime is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ...calibration.calibration_options import METHODS, Method
from ...calibration.equalize import equalize
from ...calibration.histograms import Moments
from ...calibration.observe import observe
from ...calibration.policy import Policy
from ...calibration.quantize import quantize
from ...calibration.ranges_file import Stats
from ...core.verdict.figures import compare
from ...encoder.checkpoint import load_checkpoint
from ...encoder.fastvithd import FastViTHD
from ...encoder.preprocess import Preprocessor
from ...encoder.reparameterize import reparameterize
from ..peers.photos import Photographs
from .results import out_option, write_rows
from .rivals.outliers import with_outliers


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default=512, show_default=True, help="Square resolution.")
@click.option("--samples", default=32, show_default=True, help="Pictures to calibrate on.")
@click.option("--variant", default="fastvithd", show_default=True)
@click.option("--target", default="openvino", show_default=True)
@click.option("--outliers", default=0.0, show_default=True, help="Sigma of log-normal channel gains.")
@out_option
def main(res: int, samples: int, variant: str, target: str, outliers: float, out: Path | None) -> None:
    """Prints a table, and writes it to `--out`."""
    rows = []
    for row in measure(res, samples, variant, target, outliers):
        click.echo(
            f"{row['step']:44s} worst {row['worst_db']:6.1f} dB  mean {row['mean_db']:6.1f} dB  "
            f"centred {row['centred_db']:6.1f} dB"
        )
        rows.append(row)
    write_rows(out, rows, resolution=res, samples=samples, variant=variant, target=target, outliers=outliers)


def measure(res: int, samples: int, variant: str, target: Any, outliers: float) -> Iterator[dict[str, Any]]:
    """One row per way to quantize: its name, worst and mean SQNR, and the centred one over all pictures."""
    checkpoint = load_checkpoint(None, variant=variant)
    if outliers:
        checkpoint = with_outliers(checkpoint, outliers)
    fused = reparameterize(checkpoint.encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        photographs = Photographs.write(Path(folder) / "photographs.txt", samples, res)
        stats = observe(fused, checkpoint.info, photographs.calibration, Preprocessor(res, res))
    with torch.inference_mode():
        tests = [torch.from_numpy(x) for x in photographs.tests().values()]
        expected = [fused(x) for x in tests]
    policy = Policy(target)

    def score(step: str, model: FastViTHD) -> dict[str, Any]:
        with torch.inference_mode():
            pairs = [(y.numpy(), model(x).numpy()) for x, y in zip(tests, expected, strict=True)]
        found = [compare(*pair).sqnr_db for pair in pairs]
        centred = compare(*(np.concatenate(features) for features in zip(*pairs, strict=True))).centred_sqnr_db
        return {"step": step, "worst_db": min(found), "mean_db": sum(found) / len(found), "centred_db": centred}

    kinds: list[str] = []
    for kind in ("", "ffn", "norm", "values", "stream"):
        kinds += [kind] if kind else []
        made = equalize(fused, stats, policy, kinds)
        name = f"+ equalized {kind}" if kind else "rounded to nearest"
        yield score(f"{name}, nearest", _nearest(made.model, made.stats, policy))
    for method in METHODS:
        quantized = quantize(made.model, made.stats, policy, method=method)
        yield score(f"+ compensated rounding, ranges by {method}", quantized)


def _nearest(model: FastViTHD, stats: Stats, policy: Policy, method: Method = "weighted") -> FastViTHD:
    """Quantized with every weight rounded to the nearest step: covariances that know nothing of each other."""
    alone = {}
    for name, m in stats.moments.items():
        covariance = torch.diag(m.covariance.diagonal()) * m.rows
        alone[name] = Moments(m.rows, m.mean, torch.zeros_like(m.mean).double(), covariance)
    return quantize(model, replace(stats, moments=alone), policy, method=method)


if __name__ == "__main__":
    main()
