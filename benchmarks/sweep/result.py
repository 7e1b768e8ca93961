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
from itertools import pairwise
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ...core.errors import ArtifactError
from ...core.input_file import parse_json
from ...core.records import Name, RecordError, Text, matching, parse, plain, unknown_entries, with_unknown
from ...export.precision import Precision

SCHEMA_VERSION = 1

Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Index = Annotated[int, Meta(ge=0, le=1 << 31)]
Side = Annotated[int, Meta(ge=1, le=1 << 20)]
"""Pixels, or tiles."""
Milliseconds = Annotated[float, Meta(ge=1e-6, le=1e12)]
"""Of something that was timed: a clock's nanosecond at least, three decades at most."""
Times = Annotated[tuple[Milliseconds, ...], Meta(min_length=1)]
"""Of calls in a row."""
Amount = Annotated[float, Meta(ge=0, le=1e12)]
RelativeError = Annotated[float, Meta(ge=0, le=1e300)]
"""It may be large: features can be all wrong."""
Parts = tuple[tuple[Amount, Amount, Amount], ...]
"""Milliseconds of encoder, connector and prefill, by call."""
Decibels = Annotated[float, Meta(ge=-10_000, le=10_000)]
Cosine = Annotated[float, Meta(ge=-1.001, le=1.001)]
BackendName = Annotated[
    str, matching(r"\A[a-z0-9][a-z0-9._-]{0,99}\Z", "a name of lower-case letters, digits, hyphens and periods")
]
Date = Annotated[str, matching(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[0-9.:+-]{0,20}Z?\Z", "a date of ISO 8601")]
"""UTC, ISO 8601."""

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
    backend: BackendName
    precision: Precision
    height: Side
    width: Side
    batch: Count
    threads: Count
    variant: Name
    checkpoint: Text
    weights: Name
    form: Name = ""
    samples: Index | None = None
    llm: Name | None = None
    prompt_tokens: Index | None = None
    tiles: Side = 1

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

    round: Index
    median_ms: Milliseconds
    count: Count
    reference_ms: Milliseconds | None = None


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

    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds
    mean_ms: Milliseconds
    min_ms: Milliseconds
    count: Count
    windows: tuple[Window, ...]
    timer: Name
    stable: bool
    spread: Amount
    reference: Text = ""

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
    sqnr_db: Decibels | None
    cosine: Cosine | None
    cosine_min: Cosine | None
    rel_l2: RelativeError | None
    centred_sqnr_db: Decibels | None = None
    centred_rel_l2: RelativeError | None = None

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

    encoder_ms: Amount
    connector_ms: Amount
    prefill_ms: Amount
    total_ms: Milliseconds
    visual_tokens: Count
    prompt_tokens: Index


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
    reason: Text
    environment: Name
    date: Date
    computes: Text = ""
    latency: Latency | None = None
    tokens: Count | None = None
    build_s: Amount | None = None
    load_s: Amount | None = None
    first_ms: Amount | None = None
    peak_host_mb: Amount | None = None
    run_host_mb: Amount | None = None
    peak_gpu_mb: Amount | None = None
    energy_j: Amount | None = None
    parity: Parity | None = None
    ttft: Ttft | None = None
    artifact_mb: Amount | None = None

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

    backend: Name
    precision: Precision | None
    reason: Text
    install: Text
    environment: Name
    kind: Kind = "ours"


class Processor(TypedDict, total=False):
    """What `core.hardware.cpu` found."""

    model: Text | None
    cores: Count | None
    usable: Count | None
    quota: Amount | None
    features: list[Name] | None


Setting = (
    bool | Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)] | Annotated[float, Meta(ge=-1e12, le=1e12)] | Name | None
)
"""How something was measured."""


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

    date: Date
    command: Text
    cpu: Processor
    memory_gb: Amount | None
    gpus: tuple[Text, ...]
    platform: Text
    python: Name
    versions: dict[Name, Name]
    settings: dict[Name, Setting] = field(default_factory=dict)
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
        data = parse_json(line)
        if not isinstance(data, dict) or "schema" not in data or str(data.get("type")) not in _TYPES:
            raise RecordError("it is no line of a sweep's results")
        schema = data.pop("schema")
        if schema != SCHEMA_VERSION:
            raise RecordError(f"it has schema {json.dumps(schema)[:40]}, this fvexport reads {SCHEMA_VERSION}")
        record = parse(data, _TYPES[data.pop("type")])
        if isinstance(record, Result):
            _check_agreement(record)
    except ValueError as error:
        raise ArtifactError(f"{where} cannot be read ({error}); measure again with `fvexport sweep`") from None
    if isinstance(record, Environment):
        return replace(record, unknown=unknown_entries(data, plain(record)))
    return record


def _check_agreement(result: Result) -> None:
    """Raises RecordError for a result whose parts contradict one another: no figure of it can be trusted."""
    latency, cell = result.latency, result.cell
    if (latency is not None) != (result.status in MEASURED):
        found = "has a latency" if latency else "has none"
        raise RecordError(f"$.latency: a cell with the status {result.status} {found}")
    if (result.ttft is not None) != (cell.kind == "ttft" and latency is not None):
        found = "has times" if result.ttft else "has no times"
        raise RecordError(f"$.ttft: a cell of kind {cell.kind} {found} to the first token")
    if (cell.kind == "ttft") != (cell.llm is not None):
        raise RecordError(f"$.cell.llm: expected for cells of kind ttft and no others, found kind {cell.kind}")
    if latency is None:
        return
    figures = (latency.min_ms, latency.p50_ms, latency.p90_ms, latency.p99_ms)
    if any(a > b * (1 + 1e-9) for a, b in pairwise(figures)) or latency.mean_ms < latency.min_ms * (1 - 1e-9):
        raise RecordError("$.latency: expected min_ms <= p50_ms <= p90_ms <= p99_ms and min_ms <= mean_ms")
    if (calls := sum(window.count for window in latency.windows)) != latency.count:
        raise RecordError(f"$.latency.count: expected the {calls} calls of its windows, found {latency.count}")
    if any(a.round >= b.round for a, b in pairwise(latency.windows)):
        raise RecordError("$.latency.windows: expected rounds in their order, each once")
    if any(window.median_ms < latency.min_ms * (1 - 1e-9) for window in latency.windows):
        raise RecordError("$.latency.min_ms: expected no more than the median of any window")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie, interpolated as `numpy.percentile` does."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
