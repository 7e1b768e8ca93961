"""What a sweep writes, line by line, and a report reads: cells, results, environments. Imports nothing heavy.

Every line of `results.jsonl` is one JSON object with `schema` and `type`: an `environment`, then the `absent` backends,
then a `result` as each cell ends. Times are in milliseconds, memory in MB (10^6 bytes), unless the name says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from ...core.errors import ArtifactError
from ...core.records import RecordError, parse, plain, unknown_entries, with_unknown

SCHEMA_VERSION = 1

Kind = Literal["ours", "peer", "ttft"]
Status = Literal["ok", "unstable", "failed", "timeout", "oom", "crashed", "skipped"]
MEASURED: tuple[Status, ...] = ("ok", "unstable")
"""Of these a result has a latency."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep. Everything that makes it another measurement is here, and nothing else.

    Attributes:
        kind: `ours` is a row of the table of backends, `peer` a plain way without fvexport, `ttft` a row of ours with
            a language model behind it.
        backend: a name of the table of backends, or a peer's.
        precision: `fp32`, `fp16`, `bf16`, `int8` or `fp8`.
        height, width: of one image in pixels; with tiles, of one tile.
        batch: images per call.
        threads: of one call on the CPU.
        variant: the architecture.
        checkpoint: where the weights come from, `seeded:0` for seeded ones.
        weights: the first 12 hex digits of the SHA-256 of the encoder's tensors.
        form: of `eager`: `train`, `fused`, or `channels-last` for the fused form in that memory layout; else empty.
        samples: pictures that a quantized file was calibrated on; None for others.
        llm: the language model of a `ttft` cell, such as `qwen2-0.5b`.
        prompt_tokens: of the text beside the visual tokens, in a `ttft` cell.
        tiles: images that stand for one: 5 for AnyRes of 2 x 2 tiles and an overview, else 1.
    """

    kind: Kind
    backend: str
    precision: str
    height: int
    width: int
    batch: int
    threads: int
    variant: str
    checkpoint: str
    weights: str
    form: str = ""
    samples: int | None = None
    llm: str | None = None
    prompt_tokens: int | None = None
    tiles: int = 1

    @property
    def id(self) -> str:
        """The cell as one line of text, the same in every sweep."""
        return f"{self.place} {self.threads} threads {self.weights}" + (
            f" {self.samples} samples" if self.samples else ""
        )

    @property
    def place(self) -> str:
        """The cell without what differs between machines: what to compare results of two machines or dates by."""
        llm = f" {self.llm}+{self.prompt_tokens}" if self.llm else ""
        return f"{self.kind} {self.series}{llm} {self.resolution} b{self.batch} {self.variant}"

    @property
    def runner(self) -> str:
        """The backend, with the form where there are several: `openvino`, `eager train`."""
        return f"{self.backend} {self.form}".strip()

    @property
    def series(self) -> str:
        """Backend, form and precision: the curve that the cell lies on."""
        return f"{self.runner} {self.precision}"

    @property
    def resolution(self) -> str:
        """`1024`, `512x384` (height first), or `2048 as 5 x 1024` for AnyRes of 5 tiles."""
        one = str(self.height) if self.height == self.width else f"{self.height}x{self.width}"
        if self.tiles == 1:
            return one
        side = math.isqrt(self.tiles - 1)
        whole = str(side * self.height) if self.height == self.width else f"{side * self.height}x{side * self.width}"
        return f"{whole} as {self.tiles} x {one}"

    @property
    def pixels(self) -> int:
        """Of one image; with tiles, of the image that they were cut from."""
        return self.height * self.width * max(1, self.tiles - 1)


@dataclass(frozen=True)
class Window:
    """Some calls in a row, within one round.

    Attributes:
        round: counted from 0.
        median_ms: of its calls.
        count: calls.
        reference_ms: the median of the reference cell's window in the same round, None where it has none.
    """

    round: int
    median_ms: float
    count: int
    reference_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of one call (a whole batch), over all rounds.

    Attributes:
        p50_ms, p90_ms, p99_ms, mean_ms, min_ms: over all calls.
        count: calls.
        windows: one for each round; resample these for a confidence interval, since calls in a row are not independent.
        timer: `wall` (host clock, arrays in and out), or device time: `cuda-events` of the call, `cuda-graph` of the
            replay of its graph.
        stable: the last windows agreed within the tolerance.
        spread: (largest - smallest) / median of those last windows, of their times or of their ratios to the reference,
            whichever is smaller.
        reference: id of the cell whose times stand in the windows; empty where there was none.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    count: int
    windows: tuple[Window, ...]
    timer: str
    stable: bool
    spread: float
    reference: str = ""

    @property
    def ratios(self) -> list[float]:
        """Time over the reference cell's, by round: what is comparable on a machine that drifts."""
        return [w.median_ms / w.reference_ms for w in self.windows if w.reference_ms]

    def quiet_ratios(self, most: float) -> list[float]:
        """`ratios` of the rounds in which the reference took at most `most` times its shortest."""
        shortest = min((w.reference_ms for w in self.windows if w.reference_ms), default=0.0)
        limit = most * shortest
        return [w.median_ms / w.reference_ms for w in self.windows if w.reference_ms and w.reference_ms <= limit]

    @property
    def ratio(self) -> float | None:
        """The median of `ratios`; None without a reference."""
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(frozen=True)
class Parity:
    """Features against the eager float32 train form on the held-out photographs; the worst of them.

    Attributes:
        status: `pass`, `fail` or `non-finite`, as an export is judged, see core/verdict/judging.py.
        sqnr_db: signal over error; None where undefined, or infinite for features that are equal bit by bit.
        cosine: mean over tokens; `cosine_min` that of the worst token.
        rel_l2: relative L2 error.
        centred_sqnr_db, centred_rel_l2: the same of what varies, see core/verdict/figures.py; None if nothing does, and
            in results of earlier versions.
    """

    status: Literal["pass", "fail", "non-finite"]
    sqnr_db: float | None
    cosine: float | None
    cosine_min: float | None
    rel_l2: float | None
    centred_sqnr_db: float | None = None
    centred_rel_l2: float | None = None

    @property
    def strict_sqnr_db(self) -> float | None:
        """The lower of the plain and the centred SQNR in dB; None as for `sqnr_db`."""
        found = [db for db in (self.sqnr_db, self.centred_sqnr_db) if db is not None]
        return min(found, default=None)


PARITY_FIGURES = tuple(f.name for f in fields(Parity) if f.name != "status")


@dataclass(frozen=True)
class Ttft:
    """Time to first token, by part, in milliseconds: medians of each.

    Attributes:
        encoder_ms, connector_ms, prefill_ms: image to features, features to embeddings, all tokens to the first token.
        total_ms: of the three, timed as one.
        visual_tokens: that the image became.
        prompt_tokens: of the text beside them.
    """

    encoder_ms: float
    connector_ms: float
    prefill_ms: float
    total_ms: float
    visual_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell's measurement, or why there is none.

    Attributes:
        cell: the point.
        status: `ok`; `unstable` (measured, yet the last windows disagree); `failed` with an error; `timeout`; `oom`
            (out of memory); `crashed`; `skipped` (the budget ended first).
        reason: one sentence where the status is not `ok`.
        environment: id of the environment it was taken in.
        date: UTC, ISO 8601.
        computes: the runtime's own words of how it computed.
        latency: None without a measurement.
        tokens: visual tokens of one image, None where the cell never loaded.
        build_s: seconds to make its file (export, calibration), which is done once and shared between cells.
        load_s: seconds from weights or file to a backend that is ready.
        first_ms: the first call, in which some compile.
        peak_host_mb: largest resident memory of the process, loading included.
        run_host_mb: the same after loading, None where the system cannot tell.
        peak_gpu_mb: largest GPU memory, None without a GPU.
        energy_j: GPU energy of one image (NVML), None where it is not measured.
        parity: None where it was not measured.
        ttft: of a `ttft` cell.
        artifact_mb: size of the file that it runs, None where it runs a checkpoint.
    """

    cell: Cell
    status: Status
    reason: str
    environment: str
    date: str
    computes: str = ""
    latency: Latency | None = None
    tokens: int | None = None
    build_s: float | None = None
    load_s: float | None = None
    first_ms: float | None = None
    peak_host_mb: float | None = None
    run_host_mb: float | None = None
    peak_gpu_mb: float | None = None
    energy_j: float | None = None
    parity: Parity | None = None
    ttft: Ttft | None = None
    artifact_mb: float | None = None

    @property
    def measured(self) -> bool:
        """Whether there is a latency to show."""
        return self.status in MEASURED and self.latency is not None

    @property
    def images_per_second(self) -> float | None:
        """From the median call; None without a measurement."""
        return 1e3 * self.cell.batch / self.latency.p50_ms if self.latency else None


@dataclass(frozen=True)
class Absent:
    """A backend that has no cell here, or one of its precisions.

    Attributes:
        backend: a name of the table of backends, or a peer's.
        precision: None for all of them.
        reason: in a few words.
        install: the command that mends it, empty where none does.
        environment: id of the environment in which it is absent.
        kind: of the cells that are missing.
    """

    backend: str
    precision: str | None
    reason: str
    install: str
    environment: str
    kind: Kind = "ours"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a sweep ran on.

    Attributes:
        date: when the sweep began, UTC, ISO 8601.
        command: the command line that reproduces it.
        cpu: model, cores, usable, features; as `fvexport doctor --json` shows it.
        memory_gb: of the machine.
        gpus: names with their memory, as the driver tells them.
        platform, python: as Python tells them.
        versions: distribution -> version, fvexport's own included.
        settings: how it was measured: seconds of a window, rounds, tolerance.
        unknown: entries that a newer version wrote.
    """

    date: str
    command: str
    cpu: dict[str, Any]
    memory_gb: float | None
    gpus: tuple[str, ...]
    platform: str
    python: str
    versions: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    unknown: dict[Any, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        content: dict[str, Any] = plain(self)
        return with_unknown(content, content.pop("unknown"))

    @property
    def id(self) -> str:
        """12 hex digits; the same for every sweep on this machine with these versions and settings, whenever it ran."""
        known = self.to_dict()
        del known["date"], known["command"]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


Record = Environment | Absent | Result
_TYPES: dict[str, type[Record]] = {"environment": Environment, "absent": Absent, "result": Result}


def to_line(record: Record) -> str:
    """One line of JSON, without its line break."""
    name = next(name for name, kind in _TYPES.items() if isinstance(record, kind))
    content = record.to_dict() if isinstance(record, Environment) else asdict(record)
    return json.dumps({"schema": SCHEMA_VERSION, "type": name} | content, allow_nan=False)


def from_line(line: str, where: str) -> Record:
    """The inverse of `to_line`; raises ArtifactError, naming `where`, for anything else.

    Entries of newer versions stay in the file, which is only ever appended to; of an environment, whose id depends on
    them, they are kept.
    """
    try:
        data = json.loads(line)
        if not isinstance(data, dict) or "schema" not in data or data.get("type") not in _TYPES:
            raise RecordError("it is no line of a sweep's results")
        schema = data.pop("schema")
        if schema != SCHEMA_VERSION:
            raise RecordError(f"it has schema {schema!r}, this fvexport reads {SCHEMA_VERSION}")
        record = parse(data, _TYPES[data.pop("type")])
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} cannot be read ({error}); measure again with `fvexport sweep`") from None
    if isinstance(record, Environment):
        return replace(record, unknown=unknown_entries(data, plain(record)))
    return record


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie, interpolated as `numpy.percentile` does."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
