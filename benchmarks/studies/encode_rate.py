"""How much of a bare loop's pace `encode` keeps, on this machine and on Ray with the same cores.

    python -m fvexport.benchmarks.studies.encode_rate --res 256 --count 40 --ray

The bare loop calls `Encoder.run` on batches that are in memory already. `encode` reads, decodes and prepares JPEG files
besides, and writes a Parquet dataset. Each round runs all of them, in another order. The start is left out: the first
`--skip` images, before which Ray starts workers that open the artifact.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from PIL import Image

from ...cluster import RayOptions, encode_on_ray
from ...cluster.connection import connected
from ...core.allocator import keep_freed_memory
from ...encoder.image import load_image, sample_images
from ...export.artifact import Artifact
from ...export.features.encode import encode_images, files
from ...export.features.feature_form import FeatureForm
from ...export.features.sources.source import Source
from ...export.runtime import Encoder
from .overhead import export_seeded
from .results import out_option, write_rows

FORM = FeatureForm(form="parquet", dtype="float16")
SIZE = (1024, 768)
"""(width, height) of the JPEG files."""


class Watch:
    """A progress callback that measures the pace after the first `skip` images."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.seen: list[tuple[float, int]] = []

    def __call__(self, task: str, done: int, total: int | None) -> None:
        if done >= self.skip and (not self.seen or done > self.seen[-1][1]):
            self.seen.append((time.perf_counter(), done))

    @property
    def rate(self) -> float:
        """Images per second."""
        (begin, first), (end, last) = self.seen[0], self.seen[-1]
        return (last - first) / (end - begin)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--artifact", "path", type=click.Path(path_type=Path), help="Artifact to run. [default: a new one]")
@click.option("--variant", default="fastvithd", show_default=True, help="Variant of a new artifact.")
@click.option("--res", default=256, show_default=True, help="Height and width of a new artifact.")
@click.option("--count", default=40, show_default=True, type=click.IntRange(min=8), help="Images of each run.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Runs of each.")
@click.option("--skip", default=4, show_default=True, type=click.IntRange(min=1), help="Images left out at the start.")
@click.option("--ray", "with_ray", is_flag=True, help="Measure Ray, too.")
@out_option
def main(
    path: Path | None, variant: str, res: int, count: int, rounds: int, skip: int, with_ray: bool, out: Path | None
) -> None:  # fmt: skip
    """Prints each round and the medians of the ratios to the bare loop."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        folder = Path(name)
        artifact = Artifact.open(path) if path is not None else export_seeded(variant, res, folder / "new")
        source = files(photographs(folder / "photos", count))
        encoder = Encoder(artifact)
        runs: dict[str, Callable[[], float]] = {
            "bare": bare(encoder, source, skip), "encode": local(encoder, source, folder, skip)
        }  # fmt: skip
        if with_ray:
            held.enter_context(connected(None))
            runs["ray"] = on_ray(artifact, encoder, source, folder, skip)
        rows = measure(runs, rounds)
    for row in rows:  # not before: nothing is printed while Ray runs
        click.echo("  ".join(f"{kind} {rate:.3f}/s ({rate / row['bare']:.3f})" for kind, rate in row.items()))
    click.echo("median of the ratios to the bare loop:")
    for kind in runs:
        click.echo(f"  {kind:8s} {statistics.median(row[kind] / row['bare'] for row in rows):.3f}")
    write_rows(out, rows, res=res, variant=variant, images=count, size=SIZE, backend=encoder.chosen.name)


def measure(runs: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Images per second of each kind, round by round."""
    rows, kinds = [], list(runs)
    for number in range(rounds):
        order = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]
        found = {kind: runs[kind]() for kind in order}
        rows.append({kind: found[kind] for kind in kinds})
    return rows


def bare(encoder: Encoder, source: Source, skip: int) -> Callable[[], float]:
    """A loop over batches in memory."""
    size = encoder.batch[0]
    pixels = np.stack([encoder.preprocessor.pixels(item.data) for item in source if item.data is not None])

    def run() -> float:
        watch = Watch(skip)
        for done in range(0, len(pixels), size):
            encoder.run(pixels[done : done + size])
            watch("bare", min(done + size, len(pixels)), len(pixels))
        return watch.rate

    return run


def local(encoder: Encoder, source: Source, folder: Path, skip: int) -> Callable[[], float]:
    """`encode_images`."""

    def run() -> float:
        watch = Watch(skip)
        encode_images(source, encoder, folder / "local", form=FORM, force=True, progress=watch)
        return watch.rate

    return run


def on_ray(artifact: Artifact, encoder: Encoder, source: Source, folder: Path, skip: int) -> Callable[[], float]:
    """`encode_on_ray` on a cluster that runs already."""

    def run() -> float:
        watch = Watch(skip)
        encode_on_ray(
            source, artifact.path, folder / "ray", FORM, RayOptions(backend=encoder.chosen.name), force=True,
            progress=watch,
        )  # fmt: skip
        return watch.rate

    return run


def photographs(folder: Path, count: int) -> Iterator[Path]:
    """`count` JPEG files, each of another part of a photograph."""
    folder.mkdir()
    images = [load_image(path) for path in sample_images().values()]
    rng = np.random.default_rng(0)
    for index in range(count):
        image = images[index % len(images)]
        left, top = (int(rng.integers(0, side // 4 + 1)) for side in image.size)
        path = folder / f"{index:05}.jpg"
        box = (left, top, left + image.width * 3 // 4, top + image.height * 3 // 4)
        image.resize(SIZE, Image.Resampling.BICUBIC, box).save(path, quality=90)
        yield path


if __name__ == "__main__":
    main()
