"""Jobs that a sweep sends to its processes, and the answers: one line of JSON each, tagged with what it is.

    {"do": "load", …}      -> {"answer": "ready", …}     a cell is loaded, compared, and has made its first call
    {"do": "window", …}    -> {"answer": "window", …}    milliseconds of some calls in a row
    {"do": "describe", …}  -> {"answer": "weights", …}   the identity of the weights
    {"do": "make", …}      -> {"answer": "file", …}      a file that cells need (see `file_builder`)

The answer to any of them may be {"answer": "failed", "status": …, "reason": …}.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from ...calibration.policy import QuantTarget
from ...core.input_file import parse_json
from ...core.records import Record, parse, plain
from ...core.verdict.sections import FiguresSection
from ...export.engines.engine_options import Flavour
from ...export.precision import Precision
from .result import Amount, Cell, Count, Parity, Parts, Status, Times

if TYPE_CHECKING:
    from ...encoder.checkpoint import Checkpoint


class Answer(Record, frozen=True, kw_only=True, tag_field="answer"):
    """What a process says about a job."""


class Failed(Answer, frozen=True, kw_only=True, tag="failed"):
    """A job that came to nothing, with the cell's status and the reason in one sentence."""

    status: Status
    reason: str


class Ready(Answer, frozen=True, kw_only=True, tag="ready"):
    """A cell that can be timed.

    Attributes:
        computes: the runtime's own words of how it computes.
        device: `cpu` or `cuda`.
        timer: as `Latency.timer` has it.
        call_ms: one call, after the first.
        load_s, first_ms, peak_host_mb, parity, tokens: as `Result` has them.
    """

    computes: str
    device: str
    timer: str
    load_s: Amount
    first_ms: Amount
    call_ms: Amount
    peak_host_mb: Amount | None
    parity: Parity | None
    tokens: Count


class WindowTaken(Answer, frozen=True, kw_only=True, tag="window"):
    """Calls in a row.

    Attributes:
        times_ms: of each call.
        parts_ms: encoder, connector and prefill of each call of a `ttft` cell.
        run_host_mb: largest resident memory after loading, None where the system cannot tell.
        gpu_mb: largest GPU memory, None if unknown.
        energy_j: GPU energy of one image, None if unknown.
    """

    times_ms: Times
    parts_ms: Parts
    run_host_mb: Amount | None
    gpu_mb: Amount | None
    energy_j: Amount | None


class Weights(Answer, frozen=True, kw_only=True, tag="weights"):
    """The identity of the weights: where they come from, their architecture, and the hash of the encoder's tensors."""

    checkpoint: str
    variant: str
    sha256: str


class File(Answer, frozen=True, kw_only=True, tag="file"):
    """A file or folder that cells need.

    Attributes:
        path: None for a cell that runs the checkpoint.
        seconds: that making it took, None if it is not timed.
        mb: its size, None if nobody asks.
        torch: PyTorch's own figures in its precision, None if they are not known.
    """

    path: str | None = None
    seconds: Amount | None = None
    mb: Amount | None = None
    torch: FiguresSection | None = None


A = TypeVar("A", bound=Answer)


class Job(Record, Generic[A], frozen=True, kw_only=True, tag_field="do"):
    """Something for a process to do.

    Attributes:
        answer: the type of its answer, unless it fails.
    """

    answer: ClassVar[type[Answer]]


class WeightSource(Record, frozen=True, kw_only=True):
    """The arguments of `load_checkpoint`."""

    source: str | None = None
    revision: str | None = None
    variant: str | None = None
    seed: int = 0

    def load(self) -> Checkpoint:
        """Loads the weights; raises what `load_checkpoint` raises."""
        from ...encoder.checkpoint import load_checkpoint

        return load_checkpoint(**plain(self))


class Load(Job[Ready], frozen=True, kw_only=True, tag="load"):
    """Load a cell, and compare its features.

    Attributes:
        cell: what to load.
        weights: the checkpoint.
        file: the artifact, or a peer's file; None for a cell that runs the checkpoint.
        reference: file of what to compare with, see `Reference`.
        torch: PyTorch's figures in the cell's precision, None if they are not known.
        cpus: the processors to stay on.
    """

    answer = Ready
    cell: Cell
    weights: WeightSource
    file: str | None
    reference: str
    torch: FiguresSection | None = None
    cpus: tuple[int, ...]


class TakeWindow(Job[WindowTaken], frozen=True, kw_only=True, tag="window"):
    """Call the loaded cell for `seconds`, at most `max_calls` times."""

    answer = WindowTaken
    seconds: float
    max_calls: int


class Describe(Job[Weights], frozen=True, kw_only=True, tag="describe"):
    """Identify the weights."""

    answer = Weights
    weights: WeightSource
    cpus: tuple[int, ...]


class Request(Record, frozen=True, kw_only=True, tag_field="file"):
    """A file to make at `path`, for images of `height` x `width` pixels."""

    path: str
    height: int
    width: int


class ReferenceRequest(Request, frozen=True, kw_only=True, tag="reference"):
    """The held-out photographs and what the eager model makes of them, see `Reference`."""


class TorchRequest(Request, frozen=True, kw_only=True, tag="torch"):
    """PyTorch's own figures in a float precision."""

    precision: Precision


class ArtifactRequest(Request, frozen=True, kw_only=True, tag="artifact"):
    """An artifact.

    Attributes:
        batch: images per call.
        precision: of the file.
        target: of quantization; None for float files.
        engine: the flavour of the engine to build into it; None for none.
        samples: pictures that a quantized file is calibrated on.
    """

    batch: int
    precision: Precision
    target: QuantTarget | None
    engine: Flavour | None
    samples: int


class PeerRequest(Request, frozen=True, kw_only=True, tag="peer"):
    """The file of a peer, by the peer's name; `batch` and `samples` as for artifacts."""

    name: str
    batch: int
    samples: int


AnyRequest = ReferenceRequest | TorchRequest | ArtifactRequest | PeerRequest


class Make(Job[File], frozen=True, kw_only=True, tag="make"):
    """Make one file, unless it is there."""

    answer = File
    request: AnyRequest
    weights: WeightSource
    cpus: tuple[int, ...]


def to_line(message: Job[Any] | Answer) -> str:
    """One line of JSON, with its line break."""
    return json.dumps(plain(message)) + "\n"


def read_job(line: str) -> Job[Any]:
    """A job from its line; raises ValueError."""
    return parse(parse_json(line), cast("type[Job[Any]]", Load | TakeWindow | Describe | Make))


def read_answer(line: str, job: Job[A]) -> A | Failed:
    """The answer to `job` from its line; raises ValueError, with the problem in one line."""
    return parse(parse_json(line), cast("type[A | Failed]", job.answer | Failed))
