"""Threads that share one `Encoder`: each answer compared with the one that the same image gets alone.

    python -m fvexport.benchmarks.studies.concurrency --variant tiny --res 128 --threads 1,2,4 --calls 400

Exits with status 1 if an answer is wrong or a call fails.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from ...core.errors import UnavailableError
from ...export.artifact import Artifact
from ...export.backend_table import BACKENDS
from ...export.runtime import Encoder
from .overhead import export_seeded

MEASURED = tuple(row.name for row in BACKENDS if not row.gpu)
IMAGES = 8
TOLERANCE = 1e-4
"""Largest difference of equal answers, over the largest value."""


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--artifact", "path", type=click.Path(path_type=Path), help="Artifact to run. [default: a new one]")
@click.option("--variant", default="fastvithd", show_default=True, help="Variant of a new artifact.")
@click.option("--res", default=256, show_default=True, help="Height and width of a new artifact.")
@click.option("--backends", default=",".join(MEASURED), show_default=True, help="Backends, comma-separated.")
@click.option("--threads", default="1,2,4", show_default=True, help="Numbers of threads, comma-separated.")
@click.option("--calls", default=400, show_default=True, type=click.IntRange(min=1), help="Calls of all threads.")
def main(path: Path | None, variant: str, res: int, backends: str, threads: str, calls: int) -> None:
    """Prints a table, and exits with 1 if an answer is wrong or a call fails."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        artifact = Artifact.open(path) if path is not None else export_seeded(variant, res, Path(folder) / "new")
        click.echo(f"{'backend':16s} threads  calls  wrong  errors  images/s")
        for backend in backends.split(","):
            try:
                encoder = Encoder(artifact, backend, threads=1)
                for count in map(int, threads.split(",")):
                    found, seconds = share(encoder, count, calls)
                    click.echo(
                        f"{backend:16s} {count:7d} {calls:6d} {found['wrong']:6d} {found['errors']:7d} "
                        f"{calls / seconds:9.1f}"
                    )
                    failed |= found["right"] != calls
            except UnavailableError as error:
                click.echo(f"{backend:16s} {error}")
    if failed:
        sys.exit(1)


def share(encoder: Encoder, threads: int, calls: int) -> tuple[Counter[str], float]:
    """How many calls were `right`, `wrong` or `errors`, and the seconds that all took."""
    height, width = encoder.preprocessor.height, encoder.preprocessor.width
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 3, height, width), np.uint8)
    alone = [encoder.run(image) for image in images]
    bound = TOLERANCE * max(float(np.abs(features).max()) for features in alone)
    nearest = min(float(np.abs(a - b).max()) for i, a in enumerate(alone) for b in alone[:i])
    if nearest < 10 * bound:  # then one image's answer would pass for another's
        raise AssertionError(f"features of different images differ by {nearest} alone")

    def call(index: int) -> str:
        try:
            features = encoder.run(images[index % IMAGES])
        except Exception:  # whatever the runtime raises is what is counted
            return "errors"
        return "right" if np.abs(features - alone[index % IMAGES]).max() <= bound else "wrong"

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        found = Counter(pool.map(call, range(calls)))
    return found, time.perf_counter() - start


if __name__ == "__main__":
    main()
