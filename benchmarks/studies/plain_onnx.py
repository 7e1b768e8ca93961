"""Our ONNX file against the plain way: a fused timm-style model through `torch.onnx.export`.

    python -m fvexport.benchmarks.studies.plain_onnx --res 512,1024 --threads 2

The plain way is what a user would do without fvexport: branches merged (as timm's and Apple's
own `reparameterize` do: ConvFFN's BatchNorm, the layer scales and LayerNorm's affine remain),
then `torch.onnx.export(dynamo=True)`: `plain` with its defaults, `plain-18` with opset 18, the
lowest it writes and the default of earlier releases, in which GELU is four operators. Same
weights, same runtime, one run.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch

from ...core.verdict.figures import compare
from ...encoder.checkpoint import load_checkpoint
from ...encoder.image import sample_images
from ...encoder.preprocess import Preprocessor
from ...export.export_options import ExportOptions
from ...export.onnx_export import export_onnx
from ...kernels.timing import HostClock, paired
from ..peers.plain_export import export_plain
from ..peers.runners import load, onnxruntime_options
from .results import out_option, write_rows


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default="512,1024", show_default=True, help="Square resolutions, comma-separated.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--variant", default="fastvithd", show_default=True)
@click.option("--profile", is_flag=True, help="Also print where our file's time goes, by operator.")
@out_option
def main(res: str, threads: int, rounds: int, variant: str, profile: bool, out: Path | None) -> None:
    """Prints speed, nodes and difference of both files, and writes them to `--out`."""
    rows = [measure(int(r), threads, rounds, variant, profile) for r in res.split(",")]
    write_rows(out, rows, threads=threads)


def measure(res: int, threads: int, rounds: int, variant: str, profile: bool) -> dict[str, Any]:
    """One resolution: both files made, run in turn, compared."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(None, variant=variant)
        report = export_onnx(
            checkpoint, Path(folder) / "ours", options=ExportOptions(height=res, width=res), parity=False
        )
        files = {"plain": Path(folder) / "plain.onnx", "plain-18": Path(folder) / "plain-18.onnx"}
        export_plain(checkpoint.encoder, (1, 3, res, res), files["plain"])
        export_plain(checkpoint.encoder, (1, 3, res, res), files["plain-18"], 18)
        with torch.inference_mode():
            x = Preprocessor(res, res)(sample_images()["astronaut"])
        files["fvexport"] = report.artifact.model_path
        runs = {name: partial(load(path, "onnxruntime", threads), x) for name, path in files.items()}
        outputs = {name: run() for name, run in runs.items()}
        timings = paired(runs, baseline="plain", rounds=rounds, sample_ms=0, warmup=3, clock=HostClock())
        nodes = {name: _nodes(path) for name, path in files.items()}
        difference = compare(outputs["plain"], np.asarray(outputs["fvexport"])).rel_l2
        for t in timings:
            click.echo(
                f"{res:5d}  {t.name:9s} {t.median_ms:8.1f} ms [{t.p10_ms:.0f}..{t.p90_ms:.0f}]  "
                f"{t.speedup:.2f}x plain [{t.speedup_p10:.2f}..{t.speedup_p90:.2f}]  {nodes[t.name]} nodes"
            )
        click.echo(f"{res:5d}  relative L2 difference of the two: {difference:.1e}")
        ops = _by_operator(files["fvexport"], threads, x) if profile else {}
        for name, share in ops.items():
            click.echo(f"{res:5d}    {name:24s} {share:6.1%}")
    return {
        "resolution": res, "rounds": rounds, "nodes": nodes, "rel_l2_difference": difference,
        "timings": [t.to_dict() for t in timings], "time_by_operator": ops,
    }  # fmt: skip


def _nodes(path: Path) -> int:
    return len(onnx.load(str(path), load_external_data=False).graph.node)


def _by_operator(path: Path, threads: int, x: Any, runs: int = 5) -> dict[str, float]:
    """Share of run time by operator, convolutions split by kind, from onnxruntime's profiler."""
    import onnxruntime as ort

    options = onnxruntime_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: x})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[_kind(event["args"])] += event["dur"]
    total = sum(spent.values())
    return {name: duration / total for name, duration in spent.most_common(12)}


def _kind(args: dict[str, Any]) -> str:
    name: str = args["op_name"]
    if name != "Conv":
        return name
    weight = next(iter(args["input_type_shape"][1].values()))
    kernel = f"{weight[2]}x{weight[3]}"
    return f"Conv {kernel}" + (" depthwise or grouped" if weight[1] == 1 else "")


if __name__ == "__main__":
    main()
