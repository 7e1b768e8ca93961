"""Jobs and answers survive their line of JSON; a line that is no answer ends in one sentence."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fvexport.benchmarks.sweep.messages import (
    ArtifactRequest,
    Describe,
    Failed,
    File,
    Job,
    Load,
    Make,
    PeerRequest,
    Ready,
    ReferenceRequest,
    TakeWindow,
    TorchRequest,
    Weights,
    WeightSource,
    WindowTaken,
    read_answer,
    read_job,
    to_line,
)
from fvexport.benchmarks.sweep.result import Cell, Parity
from fvexport.benchmarks.sweep.worker import Server, serve
from fvexport.benchmarks.sweep.worker_process import Worker, WorkerError
from fvexport.core.verdict.sections import FiguresSection

TINY = WeightSource(variant="tiny", seed=3)
SIZE: dict[str, Any] = {"path": "x", "height": 64, "width": 128}
CELL = Cell(
    kind="ours", backend="openvino", precision="int8", height=64, width=128, batch=1, threads=2, variant="tiny",
    checkpoint="seeded:3", weights="0" * 12, samples=4,
)  # fmt: skip
TORCH = FiguresSection(max_abs=1, rel_l2=0.5, cosine=0.9, cosine_min=0.8, sqnr_db=None, finite=True)
REQUESTS = [
    ReferenceRequest(**SIZE),
    TorchRequest(precision="bf16", **SIZE),
    ArtifactRequest(precision="int8", target="openvino", engine=None, batch=2, samples=4, **SIZE),
    PeerRequest(name="plain-openvino", batch=1, samples=0, **SIZE),
]
WINDOW = WindowTaken(
    times_ms=(1.5, 2.0), parts_ms=((1.0, 0.25, 0.25),), run_host_mb=None, gpu_mb=3.5, energy_j=None
)  # fmt: skip
ANSWERS = {
    "load": Ready(
        computes="words", device="cpu", timer="wall", load_s=0.5, first_ms=9.5, call_ms=8.5, peak_host_mb=None,
        parity=Parity("pass", None, 1.0, 1.0, 1e-5), tokens=2,
    ),
    "window": WINDOW,
    "describe": Weights(checkpoint="seeded:3", variant="tiny", sha256="0" * 64),
    "make": File(path="x", seconds=1.5, mb=None, torch=TORCH),
}  # fmt: skip
JOBS: list[Job[Any]] = [
    Load(cell=CELL, weights=TINY, file=None, reference="r", torch=TORCH, cpus=(0, 1)),
    TakeWindow(seconds=0.5, max_calls=9),
    Describe(weights=TINY, cpus=(0,)),
    *(Make(request=request, weights=TINY, cpus=(0,)) for request in REQUESTS),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_jobs_and_their_answers_survive(job: Job[Any]) -> None:
    line = to_line(job)
    assert line.count("\n") == 1 and read_job(line) == job
    answer = ANSWERS[json.loads(line)["do"]]
    assert read_answer(to_line(answer), job) == answer
    failed = Failed(status="oom", reason="8 GB wanted")
    assert read_answer(to_line(failed), job) == failed


LINES = {
    "hello": "(Expecting value: line 1 column 1 (char 0))",
    "[]": "($: expected object, found array)",
    "{}": "($: object missing required field answer)",
    '{"answer": "weights"}': "($.answer: Invalid value 'weights')",
    '{"answer": "window", "times_ms": ["x"]}': "($.times_ms[0]: expected float, found str)",
    '{"answer": "failed", "status": "odd", "reason": ""}': "($.status: unknown value 'odd')",
}


@pytest.mark.parametrize("line", LINES)
def test_what_is_no_answer_fails_in_one_line(tmp_path: Path, line: str) -> None:
    worker = Worker(tmp_path / "log", 1, command=(sys.executable, "-c", "import sys; print(sys.argv[1])", line))
    with pytest.raises(WorkerError) as caught:
        worker.ask(TakeWindow(seconds=0.5, max_calls=9), timeout_s=60)
    assert (caught.value.status, caught.value.reason) == ("failed", "the process gave no valid answer " + LINES[line])
    assert worker.process.returncode is not None


def test_what_is_no_job_is_answered() -> None:
    answers = io.StringIO()
    serve(io.StringIO('{"do": "dance"}\n' + to_line(JOBS[1])), answers, Server())
    (line,) = answers.getvalue().splitlines()  # after an error there is no second one
    assert read_answer(line, JOBS[1]) == Failed(status="failed", reason="RecordError: $.do: Invalid value 'dance'")
