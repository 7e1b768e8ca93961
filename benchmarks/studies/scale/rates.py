"""What one worker (a GPU and its cores) does per second, and how often it is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ....core.errors import ConfigError
from ....core.input_file import read_json
from ....core.records import Document, RecordError

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Engine = Literal["local", "ray"]

RESULTS = Path(__file__).parents[2] / "results"
"""Of a checkout; the installed package does not have them."""
H100 = RESULTS / "encoder-h100.json"
DECODING = RESULTS / "decoding-cpu.json"


class Rates(Document, frozen=True, kw_only=True):
    """One worker. Times are in seconds; what is not measured is an assumption of whoever asks.

    Attributes:
        encode_s: GPU time of an image.
        decode_s: processor time of an image on one core: reading, decoding, resizing.
        cores: that decode for one GPU.
        read_bytes, write_bytes: of an image: the file, and the features.
        read_bytes_s, write_bytes_s: that one worker reads and writes.
        id_bytes: length of an id.
        shard_s: that the encoder waits at each file of features; bytes count in `write_bytes_s`.
        sync_s: between two entries of the local engine's journal.
        bad: share of images that cannot be decoded.
        startup_s: from the start of a worker's process to its first image.
        loss_s: mean time between two losses of one worker (preemption, failure); 0 for never.
        restart_s: from a loss to the start of the process on a new machine, which is not paid for.
        gpu_hour, core_hour: prices.
    """

    encode_s: Positive
    decode_s: Positive
    cores: Positive = 16
    read_bytes: Amount = 200e3
    write_bytes: Amount = 2 * 256 * 3072
    read_bytes_s: Positive = 1e9
    write_bytes_s: Positive = 1e9
    id_bytes: Amount = 33
    shard_s: Amount = 0.05
    sync_s: Positive = 1.0
    bad: Share = 0.001
    startup_s: Amount = 60.0
    loss_s: Amount = 24 * 3600.0
    restart_s: Amount = 300.0
    gpu_hour: Amount = 3.0
    core_hour: Amount = 0.04

    @property
    def stages(self) -> dict[str, float]:
        """Seconds per image of each stage; they run at the same time."""
        return {
            "encode": self.encode_s * (1 - self.bad),
            "decode": self.decode_s / self.cores,
            "read": self.read_bytes / self.read_bytes_s,
            "write": self.write_bytes * (1 - self.bad) / self.write_bytes_s,
        }

    @property
    def image_s(self) -> float:
        """Seconds per image of one worker: those of its slowest stage."""
        return max(self.stages.values())

    @property
    def slowest(self) -> str:
        """The stage that the others wait for."""
        return max(self.stages, key=self.stages.__getitem__)

    @property
    def worker_hour(self) -> float:
        """Price of a GPU and its cores."""
        return self.gpu_hour + self.cores * self.core_hour


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done.

    Attributes:
        images: number.
        gpus: workers.
        engine: `local` runs one process on each GPU over its own part, and keeps a journal; `ray` hands out tasks, and
            an unfinished one is lost with its worker.
        rows: images in each file of features.
        rates: of each worker.
    """

    images: int
    gpus: int
    engine: Engine
    rows: int
    rates: Rates


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a job takes.

    Attributes:
        seconds: from the start to the last image.
        worker_s: that are paid for, of all workers together.
        again: images that were encoded once more.
        losses: of workers.
    """

    seconds: float
    worker_s: float
    again: float
    losses: float

    def cost(self, rates: Rates) -> float:
        """In the currency of the prices."""
        return self.worker_s / 3600 * rates.worker_hour


def read_rates(path: Path) -> Rates:
    """Rates from a JSON file, an object with the fields of `Rates`; raises ConfigError."""
    try:
        return known(read_json(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} has no rates ({error}); give a JSON object of numbers") from None


def known(content: object) -> Rates:
    """Rates of a dictionary; raises RecordError, also for a name that is none of theirs."""
    rates = Rates.from_dict(content)
    if rates.unknown:
        raise RecordError(f"$.{next(iter(rates.unknown))}: not a rate")
    return rates


def measured_encode(res: int, batch: int) -> float:
    """Seconds per image of `ours` on an H100, as benchmarks/results/encoder-h100.json has it."""
    name = f"{res} b{batch}"
    for row in read_json(H100)["rows"]:
        if row.get("kind") == "latency" and row.get("name") == "ours" and row.get("size") == name:
            return float(row["ms"]) / batch / 1e3
    raise ConfigError(f"{H100.name} has no measurement of {name}; give encode_s")


def measured_decode(width: int, height: int) -> tuple[float, float]:
    """Seconds of processor time per image, and bytes of its file, as benchmarks/results/decoding-cpu.json has them."""
    for row in read_json(DECODING)["rows"]:
        if (row["width"], row["height"]) == (width, height):
            return row["steps"]["all"] / 1e3, row["bytes"]
    raise ConfigError(f"{DECODING.name} has no measurement of {width}x{height}; give decode_s")
