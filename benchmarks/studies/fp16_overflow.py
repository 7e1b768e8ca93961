"""FP16 where FP16 overflows: a checkpoint whose stage 4 passes 65504, exported naively and by us.

    python -m fvexport.benchmarks.studies.fp16_overflow --res 512 --out fp16_overflow.json

Weights are seeded, and stage 4's stream is carried 2^17 times larger: the same function, and values as released weights
have them. Files run on onnxruntime with every stored value rounded, as a GPU stores it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch

from ...core.verdict.figures import compare
from ...encoder.checkpoint import Checkpoint, load_checkpoint
from ...encoder.image import HELD_OUT, sample_images
from ...encoder.preprocess import Preprocessor
from ...encoder.reparameterize import reparameterize
from ...export.export_options import ExportOptions
from ...export.onnx_export import export_onnx
from ...export.parity_backends import parity_backend
from ...export.runtime.eager_backend import EagerBackend
from ...export.runtime.emulate_half import with_rounding
from ...export.simplification import write_graph
from ...export.tracing import ExportModule, trace
from ..peers.runners import load
from .results import out_option, write_rows


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default=512, show_default=True, help="Square resolution.")
@click.option("--variant", default="fastvithd", show_default=True)
@click.option("--exponent", default=17, show_default=True, help="The stream is 2^EXPONENT times larger.")
@out_option
def main(res: int, variant: str, exponent: int, out: Path | None) -> None:
    """Prints a row per file, and writes them to `--out`."""
    rows = []
    for row in measure(res, variant, exponent):
        figures = row["figures"]
        found = f"worst cosine {figures['cosine_min']:.7f}" if figures["finite"] else "non-finite"
        click.echo(f"{row['name']:12s} {found}  {row['notice']}")
        rows.append(row)
    write_rows(out, rows, resolution=res, variant=variant, exponent=exponent)


def measure(res: int, variant: str, exponent: int) -> Iterator[dict[str, Any]]:
    """One row per file: naive FP16, ours, and BF16, each against the eager model in float32."""
    checkpoint = large_stream(variant, 2.0**exponent)
    frame, photographs = Preprocessor(res, res), sample_images()
    pixels = [frame(photographs[name]) for name in HELD_OUT]
    reference = EagerBackend(checkpoint.encoder)
    expected = np.concatenate([reference.run(x) for x in pixels])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"fp16, naive": naive(reparameterize(checkpoint.encoder), res, folder / "naive.onnx")}
        notices = {"fp16, naive": ""}
        for precision in ("fp16", "bf16"):
            options = ExportOptions(height=res, width=res, precision=precision)
            report = export_onnx(checkpoint, folder / precision, options=options, parity=False)
            files[precision] = report.artifact
            notices[precision] = " ".join(note for note in report.notices if "FP16" in note)
        for title, file in files.items():
            runner = file if callable(file) else parity_backend(file, "onnxruntime-cpu").run
            found = compare(expected, np.concatenate([runner(x) for x in pixels]))
            yield {"name": title, "figures": found.to_dict(), "notice": notices[title]}


def large_stream(variant: str, factor: float) -> Checkpoint:
    """Seeded weights whose stage 4 computes the same with a stream `factor` times larger."""
    checkpoint = load_checkpoint(None, variant=variant)
    stage: Any = checkpoint.encoder.stages[3]
    after: Any = checkpoint.encoder.stages[4]
    with torch.no_grad():
        encoding = stage.pos_emb.pos_enc
        # x + conv(x) becomes factor * (x + conv(x)); a depthwise kernel's middle is its own channel.
        middle = encoding.kernel_size[0] // 2
        encoding.weight[:, 0, middle, middle] += 1
        encoding.weight *= factor
        encoding.bias *= factor
        encoding.weight[:, 0, middle, middle] -= 1
        for block in stage.blocks:
            block.layer_scale_1.gamma *= factor
            block.layer_scale_2.gamma *= factor
            block.norm.eps *= factor**2
            block.mlp.conv.conv.weight /= factor
        for reader in (after.downsample.proj[0].large_conv, after.downsample.proj[0].small_conv):
            reader.conv.weight /= factor
    return checkpoint


def naive(fused: Any, res: int, path: Path) -> Any:
    """What `model.half()` and an export give, as a function from pixels to features."""
    options = ExportOptions(height=res, width=res, precision="fp16")
    path.parent.mkdir(exist_ok=True)
    write_graph(trace(ExportModule(fused, None, options), options), path.parent)
    model = with_rounding(onnx.load(str(path.parent / "encoder.onnx")), "fp16")
    onnx.save(model, str(path), save_as_external_data=True, location="naive.data")
    return load(path, "onnxruntime")


if __name__ == "__main__":
    main()
