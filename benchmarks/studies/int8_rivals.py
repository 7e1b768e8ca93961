"""INT8 by other tools and by fvexport: the same weights, photographs and run.

    python -m fvexport.benchmarks.studies.int8_rivals --res 512 --out rivals.json
    python -m fvexport.benchmarks.studies.int8_rivals --variant tiny --res 64 --only ort-default,ort-best

Every file is compared with the eager FP32 model on eight photographs that no tool has seen, and timed in rounds with
all others; `faster` is the FP32 file's time on onnxruntime over its own. A tool that is missing or fails is reported,
and the rest goes on.

Files stay in `--work` and are taken from there the next time: empty it after a change to fvexport. So a tool may also
stand in another environment, for ModelOpt wants older releases of onnx and onnxruntime: `--only modelopt-onnxruntime
--rounds 0` there makes its file, and a run here times it with the others.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from ...core.errors import FvexportError
from ...core.versions import versions_of
from ..peers.photos import CALIBRATION, TEST
from .results import environment, out_option, write_json
from .rivals.candidates import BASELINE, HEADER, chosen
from .rivals.measure import TIMED_ON, Setting, measure


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default=512, show_default=True, help="Side of the square in pixels.")
@click.option("--variant", default="fastvithd", show_default=True)
@click.option("--samples", default=32, show_default=True, type=click.IntRange(1), help="Calibration inputs.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(0), help="0 makes and compares only.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option(
    "--outliers", default=0.0, show_default=True, type=click.FloatRange(0), help="Channel gains exp(OUTLIERS * N(0,1))."
)
@click.option("--only", help="Candidates, comma-separated; the baseline always runs.")
@click.option("--work", default="build/int8_rivals", show_default=True, type=click.Path(path_type=Path))
@out_option
def main(res: int, only: str | None, work: Path, out: Path | None, **given: Any) -> None:
    """Prints a table of all candidates, and writes what was found to `--out`."""
    setting = Setting(resolution=res, **given)
    torch.set_num_threads(setting.threads)
    try:
        rows = measure(
            chosen(only), work, setting, progress=lambda phase, _done, _total: click.echo(f"... {phase}", err=True)
        )
    except FvexportError as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n".join([HEADER, *map(str, rows)]))
    if out is not None:
        about = environment()
        about["versions"] |= versions_of("nncf", "nvidia-modelopt")
        fixed = {"calibration": CALIBRATION, "test": TEST, "timed_on": TIMED_ON, "baseline": BASELINE}
        settings = asdict(setting) | fixed
        write_json(out, {"environment": about, "settings": settings, "rows": [row.to_dict() for row in rows]})


if __name__ == "__main__":
    main()
