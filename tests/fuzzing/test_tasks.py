"""Data that users ask about, and rows of results that a run resumes from, with any content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import json_files, json_lines_files

from fvexport.benchmarks.json_lines import append_lines, complete_rows
from fvexport.benchmarks.peers.tool_files import _read_note as read_tool_note
from fvexport.benchmarks.tasks.contenders import EAGER, Contender
from fvexport.benchmarks.tasks.eval_report import make_report
from fvexport.benchmarks.tasks.items import TASKS, Kind, Task, count_items, read_items
from fvexport.benchmarks.tasks.retrieval import packed
from fvexport.benchmarks.tasks.rows import Rows, read_rows
from fvexport.encoder.fastvlm.prompt import segments
from fvexport.encoder.image import load_image

ITEMS: list[dict[str, Any]] = [
    {"image": "a.png", "question": "What is this?", "answers": ["a cat", "cat"], "id": 7, "captions": ["A cat."]},
    {"images": ["a.png", "b.png"], "question": "Which?", "answers": [{"answer": "yes"}] * 10, "captions": "Two."},
    {"image": "b.png", "question": "How many?", "answer": "3", "label": 2.5, "caption": "Three."},
]
RUNS = {EAGER: "run-1", "other": "run-2"}


def rows_of(task: Task) -> list[dict[str, Any]]:
    """A row with each encoder for each item, of which one failed."""
    vectors = np.eye(4, dtype=np.float32)
    found = []
    for encoder, run in RUNS.items():
        for line in (1, 2, 3):
            row = {"encoder": encoder, "line": line, "image": "a.png", "key": "k", "run": run}
            if task == "retrieval":
                row["features"] = packed(vectors[line])
            else:
                row |= {
                    "answer": "a cat on a bench",
                    "token_ids": [1, 2, line],
                    "stop": "end",
                    "timings": {"ttft_ms": 1.5},
                }
            found.append(row)
    return [*found, {"encoder": "other", "line": 4, "error": "gone", "run": "run-2"}]


ROWS = {task: rows_of(task) for task in TASKS}


def written(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(out: Path) -> None:
    with Rows(out, RUNS) as rows:
        kept = rows.kept
    assert kept == sum(1 for encoder in RUNS for row in read_rows(out, encoder) if "error" not in row)


def figures(task: Task, data: Path, out: Path) -> None:
    report = make_report(task, data, out, [Contender(name, (64, 64)) for name in RUNS])
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("task", TASKS)
def test_sound_files_are_read(task: Task, tmp_path: Path) -> None:
    data, out = written(tmp_path / "data.jsonl", ITEMS), written(tmp_path / "out.jsonl", ROWS[task])
    if task == "retrieval":
        data = written(tmp_path / "data.jsonl", [{"image": "a.png", "label": "x"}] * 3)
    assert count_items(data, task) == 3
    read(out)
    report = make_report(task, data, out, [Contender(name, (64, 64)) for name in RUNS])
    assert report.items == 3


@fuzz(examples=60, content=json_lines_files(ITEMS), kind=st.sampled_from(("ask", *TASKS)))
def test_items(content: bytes, kind: Kind, folder: Path) -> None:
    """What `ask --batch` and `eval` do before a model is needed."""
    file = folder / "data.jsonl"
    file.write_bytes(content)
    with only_our_errors():
        for item in read_items(file, kind):
            json.dumps([item.id, item.key])
            for text in (item.question, item.label or "", *item.references):
                text.encode()
            for path in item.paths:
                with only_our_errors():
                    load_image(path)
            if item.question:
                with only_our_errors():
                    segments(item.question, len(item.images))


@fuzz(examples=25, task=st.sampled_from(TASKS), data=st.data())
def test_rows(task: Task, data: st.DataObject, folder: Path) -> None:
    """A run that is resumed, and its figures."""
    out, items = folder / "out.jsonl", written(folder / "data.jsonl", ITEMS)
    out.write_bytes(data.draw(json_lines_files(ROWS[task])))
    if task == "retrieval":
        written(items, [{"image": "a.png", "label": "x"}] * 3)
    with only_our_errors():
        read(out)
        figures(task, items, out)


@fuzz(examples=30, content=json_lines_files(ITEMS))
def test_json_lines(content: bytes, folder: Path) -> None:
    """Lines that are added to any file can be read."""
    file = folder / "rows.jsonl"
    file.write_bytes(content)
    before = len(list(complete_rows(file)))
    append_lines(file, ['{"added": 1}'], begins="")
    after = list(complete_rows(file))
    assert after[-1] == {"added": 1} and len(after) == before + 1


@fuzz(
    examples=30,
    content=json_files({"path": "model.onnx", "settings": "x", "seconds": 1.5, "versions": {"torch": "2.13"}}),
)
def test_tool_notes(content: bytes, folder: Path) -> None:
    (folder / "made.json").write_bytes(content)
    note = read_tool_note(folder / "made.json")
    assert note is None or (".." not in note.path.split("/") and not note.path.startswith("/"))
