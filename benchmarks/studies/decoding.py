"""Reading, decoding and preprocessing of JPEG files: threads against processes, and which part takes the time.

    python -m fvexport.benchmarks.studies.decoding --images 512x512,1024x768,4000x3000 --res 1024 --workers 1,2

The files are mosaics of scikit-image's colour photographs at their own scale: a photograph that is enlarged has less
detail and decodes faster. Threads give the pixels to the caller as they are. Processes send them back through a pipe,
or, as the rows `shared` do, write them to memory that the caller shares. Also prints how many cores decode as fast as
a GPU that takes --gpu-ms per image encodes.
"""

from __future__ import annotations

import ctypes
import io
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL
from PIL import Image, features

from ...encoder.image import load_image, sample_images
from ...encoder.preprocess import Preprocessor
from ...kernels.timing import HostClock, rounds_of
from ..report.intervals import median_interval
from .results import out_option, write_rows

PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "hubble_deep_field", "ihc"),
    *("motorcycle_left", "motorcycle_right", "retina", "rocket"),
)
"""The colour photographs of `sample_images`."""
QUALITY = 90
BAND = 512
"""Most rows that a mosaic shows of one photograph."""


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option(
    "--images", default="512x512,1024x768,4000x3000", show_default=True, help="WIDTHxHEIGHT, comma-separated."
)
@click.option(
    "--res", default=1024, show_default=True, type=click.IntRange(min=64), help="Height and width to prepare."
)
@click.option("--workers", default="1,2", show_default=True, help="Numbers of threads and processes, comma-separated.")
@click.option("--files", default=8, show_default=True, type=click.IntRange(min=1), help="Files of each size.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1), help="Samples of each way.")
@click.option("--gpu-ms", default=2.0, show_default=True, help="Milliseconds in which a GPU encodes an image.")
@out_option
def main(images: str, res: int, workers: str, files: int, rounds: int, gpu_ms: float, out: Path | None) -> None:
    """Prints a table for each size of image."""
    counts = [int(count) for count in workers.split(",")]
    preprocessor = Preprocessor(res, res)
    rows = []
    for size in images.split(","):
        width, height = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            paths = make_files(Path(folder), width, height, files)
            row = measure(paths, preprocessor, counts, rounds) | {"width": width, "height": height}
        row |= {"gpu_ms": gpu_ms, "cores": math.ceil(row["steps"]["all"] / gpu_ms)}
        rows.append(row)
        show(row)
    write_rows(
        out, rows, res=res, files=files, rounds=rounds, quality=QUALITY,
        pillow=PIL.__version__, libjpeg_turbo=features.version_feature("libjpeg_turbo"),
    )  # fmt: skip


def make_files(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """Writes `count` JPEG files of `width` x `height` pixels, each beginning with another photograph."""
    samples = sample_images()
    photographs = [load_image(samples[name]) for name in PHOTOGRAPHS]
    paths = []
    for start in range(count):
        mosaic, turn, top = Image.new("RGB", (width, height)), start, 0
        while top < height:
            left, rows = 0, BAND
            while left < width:
                photograph = photographs[turn % len(photographs)]
                mosaic.paste(photograph, (left, top))
                left, rows, turn = left + photograph.width, min(rows, photograph.height), turn + 1
            top += rows
        paths.append(folder / f"{start}.jpg")
        mosaic.save(paths[-1], quality=QUALITY)
    return paths


# --- threads and processes ------------------------------------------------------------------------------


@dataclass
class Prepare:
    """What a worker does with one file: returns its pixels, or writes them to shared memory.

    Attributes:
        preprocessor: makes the pixels (3, H, W).
        paths: the files.
    """

    preprocessor: Preprocessor
    paths: list[Path]

    def __call__(self, index: int) -> np.ndarray | None:
        pixels = self.preprocessor.pixels(self.paths[index])
        if _shared is None:
            return pixels
        np.frombuffer(_shared, np.uint8).reshape(len(self.paths), *pixels.shape)[index] = pixels
        return None


_shared: Any = None
"""In a worker of a pool that shares memory: room for the pixels of every file."""


def _share(memory: Any) -> None:
    global _shared  # noqa: PLW0603  # a pool hands nothing else to the calls in a worker
    _shared = memory


def pools(prepare: Prepare, counts: list[int], held: ExitStack) -> Iterator[tuple[str, int, Executor]]:
    """The ways that are compared: (kind, workers, pool)."""
    context = multiprocessing.get_context("spawn")  # what every platform has, and safe beside the encoder's threads
    size = len(prepare.paths) * 3 * prepare.preprocessor.height * prepare.preprocessor.width
    for count in counts:
        memory = multiprocessing.RawArray(ctypes.c_uint8, size)
        yield "threads", count, held.enter_context(ThreadPoolExecutor(count))
        yield "processes", count, held.enter_context(ProcessPoolExecutor(count, context))
        yield "shared", count, held.enter_context(ProcessPoolExecutor(count, context, _share, (memory,)))


def measure(paths: list[Path], preprocessor: Preprocessor, counts: list[int], rounds: int) -> dict[str, Any]:
    """Milliseconds of one image, in each way and in each step. All ways run once per round, in turn."""
    prepare = Prepare(preprocessor, paths)
    indices = range(len(paths))

    def alone() -> None:
        for index in indices:
            prepare(index)

    def together(pool: Executor) -> None:
        for _ in pool.map(prepare, indices):
            pass

    with ExitStack() as held:
        ways: dict[tuple[str, int], Callable[[], None]] = {("loop", 1): alone}
        ways |= {(kind, count): partial(together, pool) for kind, count, pool in pools(prepare, counts, held)}
        named = {f"{kind} {count}": run for (kind, count), run in ways.items()}
        times = rounds_of(named, rounds=rounds, sample_ms=0, warmup=2, clock=HostClock())
    rows = []
    for (kind, count), taken in zip(ways, times.values(), strict=True):
        ratio = median_interval([base / own for base, own in zip(times["loop 1"], taken, strict=True)])
        ms = statistics.median(taken) / len(paths)
        rows.append({
            "kind": kind, "workers": count, "ms": ms, "images_s": 1e3 / ms, "images_s_core": 1e3 / ms / count,
            "speedup": ratio.value, "low": ratio.low, "high": ratio.high,
        })  # fmt: skip
    return {
        "bytes": statistics.mean(path.stat().st_size for path in paths),
        "ways": rows,
        "steps": steps(paths, preprocessor, rounds),
    }


# --- steps ----------------------------------------------------------------------------------------------


class ProcessorClock(HostClock):
    """Processor time of this process, in which other processes of the machine do not count."""

    name = "processor"

    def measure(self, run: Callable[[], object], runs: int = 1) -> float:
        start = time.process_time()
        for _ in range(runs):
            run()
        return 1e3 * (time.process_time() - start)


def steps(paths: list[Path], preprocessor: Preprocessor, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time of each step of one image, in one thread.

    `read` reads the file, `decode` is Pillow's decoder, `check` is what `load_image` does beside both, `resize` puts
    the image on its canvas and resizes it, `array` makes (3, H, W) of the result, and `all` is everything.
    `half` decodes at the smallest of libjpeg's scales that covers the result, which gives other pixels. `simplejpeg`
    is libjpeg-turbo without Pillow, if that package is installed.
    """
    contents = [path.read_bytes() for path in paths]
    made = [Image.fromarray(preprocessor.pixels(path).transpose(1, 2, 0)) for path in paths]
    runs: dict[str, Callable[[], object]] = {
        "read": lambda: [path.read_bytes() for path in paths],
        "decode": lambda: [Image.open(io.BytesIO(content)).load() for content in contents],
        "half": lambda: [_scaled(content, preprocessor).size for content in contents],
        "load": lambda: [load_image(path) for path in paths],
        "array": lambda: [np.asarray(image).transpose(2, 0, 1).copy() for image in made],
        "all": lambda: [preprocessor.pixels(path) for path in paths],
    }
    try:
        import simplejpeg
    except ImportError:
        pass
    else:
        runs["simplejpeg"] = lambda: [simplejpeg.decode_jpeg(content) for content in contents]
    taken = rounds_of(runs, rounds=rounds, sample_ms=0, warmup=1, clock=ProcessorClock())
    ms = {name: statistics.median(times) / len(paths) for name, times in taken.items()}
    load = ms.pop("load")
    ms |= {"check": load - ms["read"] - ms["decode"], "resize": ms["all"] - load - ms["array"]}
    return ms


def _scaled(content: bytes, preprocessor: Preprocessor) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (preprocessor.width, preprocessor.height))
    image.load()
    return image


def show(row: dict[str, Any]) -> None:
    """Prints one size of image."""
    click.echo(f"{row['width']}x{row['height']}, {row['bytes'] / 1e3:.0f} kB a file")
    click.echo(f"  {'way':12s} workers  ms/image  images/s  per core  over a loop  95 % interval")
    for way in row["ways"]:
        interval = "" if way["low"] is None else f"{way['low']:.2f}..{way['high']:.2f}"
        click.echo(
            f"  {way['kind']:12s} {way['workers']:7d} {way['ms']:9.2f} {way['images_s']:9.1f} "
            f"{way['images_s_core']:9.1f} {way['speedup']:11.2f}x  {interval}"
        )
    click.echo("  steps, ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in row["steps"].items()))
    click.echo(f"  a GPU that takes {row['gpu_ms']} ms per image: {row['cores']} cores")


if __name__ == "__main__":
    main()
