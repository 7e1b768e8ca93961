"""The tables of docs/scale.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from ....core.input_file import read_json
from .closed import best_rows, estimate
from .rates import DECODING, Engine, Job, Rates, measured_decode, measured_encode

IMAGES = (10**6, 10**7, 10**8, 10**9)
GPUS = (1, 8, 64, 1000)
PHOTO = (1024, 768)
RES, BATCH = 1024, 8
TOKENS, CHANNELS = 256, 3072
FORMS = {"tokens, float16": 2 * TOKENS * CHANNELS, "mean of the tokens, float16": 2 * CHANNELS}
"""Bytes of an image's features."""
LOSSES_H = (1, 6, 24)
OBJECT_BYTES = 57
"""What Python and NumPy add to each id (ASCII) in an array of objects: 49 bytes of a text and 8 of its address."""


def scale_tables() -> str:
    """All tables, as Markdown."""
    decode_s, read_bytes = measured_decode(*PHOTO)
    rates = Rates(encode_s=measured_encode(RES, BATCH), decode_s=decode_s, read_bytes=read_bytes)
    parts = [["### Rates", *_rates(rates)], ["### Decoding cores for each GPU", *_cores()]]
    for form, size in FORMS.items():
        parts.append([f"### Time and cost, {form}", *_times(replace(rates, write_bytes=size))])
    parts.append(["### Repeated work", *_engines(replace(rates, write_bytes=2 * CHANNELS))])
    parts.append(["### Storage and ids", *_storage(rates)])
    return "\n\n".join("\n".join([title, "", *lines]) for title, *lines in parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(str(cell) for cell in cells) + " |"


def _rates(rates: Rates) -> Iterator[str]:
    width, height = PHOTO
    yield from _table(
        ("rate", "value", "source"),
        [
            ("encoding", f"{1e3 * rates.encode_s:.2f} ms per image", f"measured: H100, {RES}², batch {BATCH}, float16"),
            ("decoding", f"{1e3 * rates.decode_s:.1f} ms per image and core", f"measured: JPEG, {width}x{height}"),
            ("cores", f"{rates.cores:g} for each GPU", "assumed"),
            ("reading", f"{_bytes(rates.read_bytes)} per image, {_bytes(rates.read_bytes_s)}/s", "measured, assumed"),
            ("writing", f"{_bytes(rates.write_bytes_s)}/s, and {rates.shard_s:g} s for each file", "assumed"),
            ("images that fail", f"{1e2 * rates.bad:g} %", "assumed"),
            ("a worker starts in", f"{rates.startup_s:g} s", "assumed"),
            ("a worker is lost after", f"{rates.loss_s / 3600:g} h on average", "assumed"),
            ("a new machine comes after", f"{rates.restart_s:g} s", "assumed"),
            ("price", f"{rates.gpu_hour:g} per GPU hour, {rates.core_hour:g} per core hour", "an example"),
        ],
    )


def _cores() -> Iterator[str]:
    speeds = {f"{RES}², batch {batch}": measured_encode(RES, batch) for batch in (1, 8)}
    head = ("file", "ms per image and core", *(f"cores, {name}: {1e3 * s:.2f} ms" for name, s in speeds.items()))
    rows = [
        (
            f"{row['width']}x{row['height']}, {_bytes(row['bytes'])}",
            f"{row['steps']['all']:.1f}",
            *(f"{row['steps']['all'] / 1e3 / encode_s:.1f}" for encode_s in speeds.values()),
        )
        for row in read_json(DECODING)["rows"]
    ]
    yield from _table(head, rows)


def _job(images: int, gpus: int, engine: Engine, rates: Rates) -> Job:
    job = Job(images=images, gpus=gpus, engine=engine, rows=1, rates=rates)
    return replace(job, rows=best_rows(job))


def _times(rates: Rates) -> Iterator[str]:
    head = ("images", "GPUs", "hours", "cost per million", "losses", "images again", "best rows a file", "files")
    rows = []
    for images in IMAGES:
        for gpus in GPUS:
            job = _job(images, gpus, "ray", rates)
            found = estimate(job)
            rows.append((
                _power(images), gpus, _short(found.seconds / 3600), _short(1e6 * found.cost(rates) / images),
                _short(found.losses), _short(found.again), job.rows, _short(math.ceil(images / job.rows)),
            ))  # fmt: skip
    yield from _table(head, rows)


def _engines(rates: Rates) -> Iterator[str]:
    head = ("a worker is lost after", "engine", "best rows a file", "images again per million", "hours")
    rows = []
    for hours in LOSSES_H:
        for engine in ("local", "ray"):
            job = _job(10**8, 64, engine, replace(rates, loss_s=3600.0 * hours))
            found = estimate(job)
            rows.append(
                (f"{hours} h", engine, job.rows, _short(found.again / 100), _short(found.seconds / 3600))
            )  # fmt: skip
    yield from _table(head, rows)


def _storage(rates: Rates) -> Iterator[str]:
    head = ("images", *FORMS, "ids of a resumed Ray run, in each worker that filters")
    yield from _table(
        head,
        [
            (
                _power(images),
                *(_bytes(images * size) for size in FORMS.values()),
                _bytes(images * (OBJECT_BYTES + rates.id_bytes)),
            )
            for images in IMAGES
        ],
    )


def _power(number: int) -> str:
    return f"10^{len(str(number)) - 1}"


def _short(value: float) -> str:
    """Three digits, without an exponent below 10^7."""
    if value >= 100 or value == 0:
        return f"{value:.3g}" if value >= 1e7 else f"{float(f'{value:.3g}'):.0f}"
    return f"{value:.3g}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
