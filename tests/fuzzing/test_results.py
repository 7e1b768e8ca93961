"""Results of sweeps, and what reports make of them, with any content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from limits import MANY, fuzz, only_our_errors
from mutations import json_files, json_lines_files

from fvexport.benchmarks.report.compare import compare_runs
from fvexport.benchmarks.report.load import Loaded, load
from fvexport.benchmarks.report.markdown import build_markdown
from fvexport.benchmarks.report.speedup import over_eager
from fvexport.benchmarks.report.tables import to_csv
from fvexport.benchmarks.report.write import write_report
from fvexport.benchmarks.sweep.file_builder import _read_note as read_file_note
from fvexport.benchmarks.sweep.messages import Describe, Load, Make, TakeWindow, read_answer, read_job
from fvexport.benchmarks.sweep.result import Absent, Environment, Result, from_line, to_line
from fvexport.benchmarks.sweep.store import Rounds, read_sweep
from fvexport.benchmarks.sweep.sweep_options import Measuring
from fvexport.benchmarks.sweep.windows import summarize

MEASURED = Path(__file__).parents[2] / "benchmarks/results/sweep-256-cpu.jsonl"
ROUNDS = 6


def sound_rows() -> list[dict[str, Any]]:
    """An environment, two absent backends, and cells of every kind; with few rounds, so that other places change."""
    rows = [json.loads(line) for line in MEASURED.read_text("utf-8").splitlines()]
    environment = next(row for row in rows if row["type"] == "environment")
    absent = [row for row in rows if row["type"] == "absent"][:2]
    results = [row for row in rows if row["type"] == "result"][:4]
    for row in results:
        latency = row["latency"]
        latency["windows"] = latency["windows"][:ROUNDS]
        latency["count"] = sum(window["count"] for window in latency["windows"])
    ttft = json.loads(json.dumps(results[0]))
    ttft["cell"] |= {"kind": "ttft", "llm": "qwen2-0.5b", "prompt_tokens": 32, "tiles": 5}
    ttft["ttft"] = {
        "encoder_ms": 100.0, "connector_ms": 2.5, "prefill_ms": 50.0, "total_ms": 153.0, "visual_tokens": 80,
        "prompt_tokens": 32,
    }  # fmt: skip
    large = json.loads(json.dumps(results[1]))
    large["cell"] |= {"height": 512, "width": 384, "batch": 2}
    crashed = json.loads(json.dumps(results[2])) | {"status": "crashed", "reason": "it died", "latency": None}
    crashed["cell"] |= {"height": 1024, "width": 1024}
    return [environment, *absent, *results, ttft, large, crashed]


SOUND = sound_rows()
WINDOWS = [
    {
        "environment": "e", "cell": cell, "round": number, "times_ms": [1.5, 2, 1.25], "reference": "x",
        "reference_ms": 2.5, "parts_ms": [[1.0, 0.25, 0.5]] if cell.startswith("ttft") else [],
    }
    for number in range(3) for cell in ("ours eager fp32", "ttft eager fp32")
]  # fmt: skip


def written(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def show(loaded: Loaded) -> None:
    """All of a report but its plots, which take long to draw."""
    for relative in (False, True):
        comparison = compare_runs(loaded, relative=relative)
        shown = over_eager(loaded)
        for text in (build_markdown(shown, comparison), to_csv(shown.runs)):
            text.encode()
            assert not any(c in text for c in "\0\x1b\r\u202e\ufffe")
    for run in loaded.runs:
        for result in run.results:
            result.cell.id.encode()


def test_sound_results_are_read(tmp_path: Path) -> None:
    file = written(tmp_path / "results.jsonl", SOUND)
    sweep = read_sweep(file)
    assert len(sweep.results) == 7 and len(sweep.absent) == 2
    show(load([file]))
    lines = [to_line(record) for record in (*sweep.environments.values(), *sweep.absent, *sweep.results)]
    kinds = [type(from_line(line, "here")) for line in lines]
    assert kinds == [Environment, Absent, Absent, *[Result] * 7]
    rounds = Rounds(written(tmp_path / "rounds.jsonl", WINDOWS).parent, "e")
    assert {cell: len(windows) for cell, windows in rounds.windows.items()} == {row["cell"]: 3 for row in WINDOWS}


@fuzz(examples=60, content=json_lines_files(SOUND))
def test_results(content: bytes, folder: Path) -> None:
    file = folder / "results.jsonl"
    file.write_bytes(content)
    with only_our_errors():
        show(load([file]))


@fuzz(examples=20, content=json_lines_files(SOUND), base=st.booleans())
def test_two_results(content: bytes, base: bool, folder: Path) -> None:
    other = written(folder / "sound" / "results.jsonl", SOUND)
    file = folder / "results.jsonl"
    file.write_bytes(content)
    with only_our_errors():
        show(load([file], baseline=other) if base else load([other], baseline=file))


@pytest.mark.skipif(not MANY, reason="takes seconds for each input: make fuzz")
@fuzz(examples=1, share=0.02, content=json_lines_files(SOUND))
def test_page(content: bytes, folder: Path) -> None:
    """What can be read can be drawn."""
    file = folder / "results.jsonl"
    file.write_bytes(content)
    readable = False
    with only_our_errors():
        readable = bool(load([file]).runs)
    assume(readable)
    with only_our_errors(seconds=60):
        page = write_report([file], folder / "report").html.read_text(encoding="utf-8")
        assert not any(c in page for c in "\0\x1b\u202e\ufffe")


@fuzz(examples=60, content=json_lines_files(WINDOWS))
def test_rounds(content: bytes, folder: Path) -> None:
    """What is resumed from can be summarized, and read as a result."""
    (folder / "rounds.jsonl").write_bytes(content)
    result = next(from_line(json.dumps(row), "here") for row in SOUND if row["type"] == "result")
    assert isinstance(result, Result)
    with only_our_errors():
        for windows in Rounds(folder, "e").windows.values():
            latency = summarize(windows, Measuring(), "wall")
            line = json.loads(to_line(result)) | {"latency": json.loads(json.dumps(vars(latency), default=vars))}
            from_line(json.dumps(line), "here")


MESSAGES: list[dict[str, Any]] = [
    {"answer": "failed", "status": "oom", "reason": "x"},
    {
        "answer": "ready", "computes": "x", "device": "cpu", "timer": "wall", "load_s": 1.0, "first_ms": 2.0,
        "call_ms": 1.0, "peak_host_mb": 900.0, "tokens": 4,
        "parity": {"status": "pass", "sqnr_db": 40.0, "cosine": 1.0, "cosine_min": 0.9, "rel_l2": 0.01},
    },
    {"answer": "window", "times_ms": [1.0], "parts_ms": [], "run_host_mb": None, "gpu_mb": None, "energy_j": None},
    {"answer": "weights", "checkpoint": "seeded:0", "variant": "tiny", "sha256": "0" * 64},
    {"answer": "file", "path": "x", "seconds": 1.0, "mb": 2.0},
    {"do": "window", "seconds": 0.3, "max_calls": 50},
    {"do": "describe", "weights": {"variant": "tiny"}, "cpus": [0]},
    {"seconds": 3.5},
]  # fmt: skip


@fuzz(examples=40, content=st.sampled_from(MESSAGES).flatmap(json_files))
def test_messages_and_notes(content: bytes, folder: Path) -> None:
    line = content.decode("utf-8", "replace")
    weights = Describe(weights=read_job(json.dumps(MESSAGES[6])).weights, cpus=(0,))
    jobs: list[Any] = [weights, TakeWindow(seconds=1.0, max_calls=1), *(kind for kind in (Load, Make))]
    for job in jobs:
        with only_our_errors(ValueError):
            read_answer(line, job)
    with only_our_errors(ValueError):
        read_job(line)
    (folder / "note.json").write_bytes(content)
    with only_our_errors():
        read_file_note(folder / "note.json")


@pytest.mark.parametrize("row", range(len(MESSAGES) - 1))
def test_sound_messages_are_read(row: int) -> None:
    line, sound = json.dumps(MESSAGES[row]), 0
    for reader in (
        read_job,
        *(lambda line, kind=kind: read_answer(line, kind) for kind in (Load, TakeWindow, Describe, Make)),
    ):
        try:
            reader(line)
        except ValueError:
            continue
        sound += 1
    assert sound
