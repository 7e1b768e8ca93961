"""Data files and result files: what is refused, what is kept, what an interruption leaves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fvexport.benchmarks.tasks.evaluate import EvalOptions, evaluate
from fvexport.benchmarks.tasks.items import Item, count_items, read_items
from fvexport.benchmarks.tasks.model_options import ModelOptions
from fvexport.benchmarks.tasks.retrieval import packed
from fvexport.benchmarks.tasks.rows import Rows, check_rows, read_rows
from fvexport.benchmarks.tasks.session import answer_batch
from fvexport.core.errors import ArtifactError, ConfigError
from fvexport.encoder.fastvlm import Sampling

RUNS = {"eager": "run-1"}


def data(tmp_path: Path, *lines: object) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def item(line: int, image: str = "a.png", question: str = "What?") -> Item:
    return Item(line, (image,), Path("/data"), question)


# --- data ----------------------------------------------------------------------------------------


def test_lines_of_every_kind(tmp_path: Path) -> None:
    file = data(tmp_path, {"image": "a.png", "question": "What?", "answers": ["x", 3], "id": "q1", "other": []})
    (found,) = read_items(file, "vqa")
    assert found == Item(1, ("a.png",), tmp_path, "What?", ("x", "3"), id="q1")
    assert found.paths == [tmp_path / "a.png"]
    (found,) = read_items(file, "ask")
    assert found.references == ()
    file = data(tmp_path, "", {"images": ["a.png", "/b.png"], "caption": "A cat."})
    (found,) = read_items(file, "caption")
    assert (found.line, found.references, found.question) == (2, ("A cat.",), "")
    assert found.paths == [tmp_path / "a.png", Path("/b.png")]
    file = data(tmp_path, {"image": "a.png", "label": 7}, {"image": "b.png"})
    assert [one.label for one in read_items(file, "retrieval")] == ["7", None]


def test_the_annotations_of_vqa_v2(tmp_path: Path) -> None:
    answers = [{"answer": "yes", "answer_confidence": "maybe", "answer_id": 1}, {"answer": "no", "answer_id": 2}]
    file = data(tmp_path, {"image": "a.png", "question": "Is it?", "answers": answers, "question_id": 42})
    (found,) = read_items(file, "vqa")
    assert found.references == ("yes", "no") and found.id == 42


def test_a_byte_order_mark_is_none_of_the_data(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('\ufeff{"image": "a.png"}\n', encoding="utf-8")
    assert count_items(file, "caption") == 1


@pytest.mark.parametrize(
    ("kind", "line", "part"),
    [
        ("ask", "{", "not valid JSON"),
        ("ask", "[]", "not a JSON object"),
        ("ask", {"question": "What?"}, '"image"'),
        ("ask", {"image": [], "question": "What?"}, '"image"'),
        ("ask", {"image": 3, "question": "What?"}, '"image"'),
        ("ask", {"image": "a.png"}, '"question"'),
        ("vqa", {"image": "a.png", "question": " "}, '"question"'),
        ("vqa", {"image": "a.png", "question": "What?", "answers": [["a"]]}, '"answers"'),
        ("vqa", {"image": "a.png", "question": "What?", "answers": [{"text": "a"}]}, '"answers"'),
        ("caption", {"image": "a.png", "captions": [True]}, '"captions"'),
        ("retrieval", {"image": ["a.png", "b.png"]}, "one image"),
        ("retrieval", {"image": "a.png", "label": ["cat"]}, '"label"'),
        ("ask", {"image": "a\0.png", "question": "What?"}, '"image"'),
        ("ask", {"image": "x" * 5000, "question": "What?"}, '"image"'),
        ("ask", {"image": ["a.png"] * 1001, "question": "What?"}, "1001 images"),
        ("ask", {"image": "a.png", "question": "\ud800"}, "lone surrogates"),
        ("vqa", {"image": "a.png", "question": "What?", "answers": ["\udcff"]}, "lone surrogates"),
        ("vqa", {"image": "a.png", "question": "What?", "answers": ["x" * 10_001]}, '"answers"'),
        ("vqa", {"image": "a.png", "question": "What?", "answers": ["x"] * 1001}, '"answers"'),
        ("retrieval", {"image": "a.png", "label": "\ud800"}, '"label"'),
        ("ask", "[" * 100_000, "nested too deeply"),
        ("ask", '{"image": "a.png", "question": "What?", "id": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, kind, line: object, part: str) -> None:
    good = {"image": "a.png", "question": "What?"}
    file = data(tmp_path, good, line)
    with pytest.raises(ConfigError) as error:
        count_items(file, kind)
    assert (
        f"{file}, line 2: " in str(error.value) and part in str(error.value) and "a line is like {" in str(error.value)
    )


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*check the path"):
        count_items(tmp_path / "none.jsonl", "ask")
    with pytest.raises(ConfigError, match="holds no line"):
        count_items(data(tmp_path, "", " "), "ask")
    (tmp_path / "data.jsonl").write_bytes(b'{"image": "\xff"}\n')
    with pytest.raises(ConfigError, match="not UTF-8"):
        count_items(tmp_path / "data.jsonl", "ask")


def test_what_is_no_file_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a FIFO, not a regular file"):
        count_items(tmp_path / "pipe", "ask")
    monkeypatch.setattr("fvexport.benchmarks.json_lines.LONGEST_LINE", 1 << 20)
    file = data(tmp_path, {"image": "a.png", "question": "What?", "note": "x" * (1 << 20)})
    with pytest.raises(ConfigError, match="longer than 1 MB"):
        count_items(file, "ask")


# --- results -------------------------------------------------------------------------------------


def test_rows_are_added_and_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    with Rows(out, RUNS) as rows:
        rows.add("eager", item(1, "é\udcff.png"), {"answer": "très bien"})
        rows.add("eager", item(2), {"error": "a.png is gone"})
    with Rows(out, RUNS) as rows:
        assert rows.kept == 1
        assert rows.has("eager", item(1, "é\udcff.png")) and not rows.has("eager", item(2))
        rows.add("eager", item(2), {"answer": "a cat"})
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(row["line"], row["answer"]) for row in found] == [(1, "très bien"), (2, "a cat")]
    assert found == list(read_rows(out, "eager")) and list(read_rows(out, "other")) == []
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_half_a_line_at_the_end_is_dropped(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out.jsonl"
    with Rows(out, RUNS) as rows:
        for line in (1, 2):
            rows.add("eager", item(line), {"answer": "x"})
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    out.write_bytes(whole[: first + cut])
    with Rows(out, RUNS) as rows:
        assert rows.has("eager", item(1)) and not rows.has("eager", item(2))
        rows.add("eager", item(2), {"answer": "x"})
    assert out.read_bytes() == whole


def test_rows_of_other_encoders_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Rows(out, {"a": "1", "b": "2"}) as rows:
        rows.add("a", item(1), {"error": "gone"})
        rows.add("b", item(1), {"error": "gone"})
    with Rows(out, {"b": "2", "c": "3"}) as rows:
        rows.add("c", item(1), {"answer": "x"})
    assert [(row["encoder"], "error" in row) for row in map(json.loads, out.open())] == [("a", True), ("c", False)]


def test_what_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Rows(out, RUNS) as rows:
        rows.add("eager", item(1), {"answer": "x"})
    before = out.read_bytes()
    with pytest.raises(ArtifactError, match="other settings or weights"):
        Rows(out, {"eager": "run-2"})
    with Rows(out, RUNS) as rows, pytest.raises(ArtifactError, match="another line 1"):
        rows.has("eager", item(1, question="Why?"))
    assert out.read_bytes() == before
    with pytest.raises(ArtifactError, match="is a folder"):
        Rows(tmp_path, RUNS)
    whose = {"encoder": "eager", "line": 1, "run": "run-1"}
    wrong = (
        {}, {"answer": 3}, {"answer": "x", "line": True}, {"answer": "x", "line": 0}, {"answer": "x", "key": []},
        {"error": None}, {"error": ["x"]}, {"answer": "x", "error": "y"}, {"token_ids": [1]},
        {"answer": "x", "token_ids": [-1]}, {"answer": "x", "token_ids": "1"}, {"features": "no base64"},
        {"features": packed(np.array([np.nan]))}, {"features": "AAA="},
    )  # fmt: skip
    for content in ("[1]\n", '{"image": "a.png"}\n', "text\n", *(json.dumps(whose | row) + "\n" for row in wrong)):
        out.write_text(content)
        with pytest.raises(ArtifactError, match=r"line 1 is no result of this command; choose another --out"):
            Rows(out, RUNS)
        assert out.read_text() == content


@pytest.mark.parametrize(
    "content", ["precious", "\n[1, 2]", '{"encoder": "mine"}', '{"image": "a.png", "question": "x"']
)
def test_an_only_line_without_a_line_break_that_is_not_ours_is_kept(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    line = content.count("\n") + 1
    for opened in (lambda: check_rows(out), lambda: Rows(out, RUNS)):
        with pytest.raises(ArtifactError, match=f"line {line} is no result of this command; choose another --out"):
            opened()
        assert out.read_text() == content


def test_a_foreign_file_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    model, sampling = ModelOptions(checkpoint="no/such-checkpoint"), Sampling(max_new_tokens=1)
    asked = data(tmp_path, {"image": "a.png", "question": "What?", "answers": ["x"]})
    for content in ("precious", "precious\n"):
        out.write_text(content)
        for run in (
            lambda: answer_batch(model, sampling, asked, out),
            lambda: evaluate(model, asked, out, EvalOptions(task="vqa")),
        ):
            with pytest.raises(ArtifactError, match="line 1 is no result of this command"):
                run()
            assert out.read_text() == content


@pytest.mark.parametrize("cut", [0, 1, 5, 30, -1])
def test_half_a_first_line_is_dropped(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out.jsonl"
    with Rows(out, RUNS) as rows:
        rows.add("eager", item(1), {"answer": "x"})
    whole = out.read_bytes()
    out.write_bytes(whole[:cut])
    check_rows(out)
    with Rows(out, RUNS) as rows:
        rows.add("eager", item(1), {"answer": "x"})
    assert out.read_bytes() == whole


@pytest.mark.skipif(sys.platform == "win32", reason="files are locked on Unix alone")
@pytest.mark.parametrize("content", ["", '{"encoder": "eager", "line": 1, "run": "run-1", "error": "x"}\n'])
def test_two_runs_at_once(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    with Rows(out, RUNS) as rows:
        rows.add("eager", item(1), {"answer": "x"})
        with pytest.raises(ArtifactError, match="another run is writing"):
            Rows(out, RUNS)
    with Rows(out, RUNS) as rows:
        assert rows.kept == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    with Rows(out, RUNS) as rows:
        with monkeypatch.context() as patch:
            patch.setattr(rows, "_stream", open("/dev/full", "wb"))  # noqa: SIM115, PTH123 - closed with the test
            with pytest.raises(ArtifactError, match="the disk is full"):
                rows.add("eager", item(1), {"answer": "x"})
        assert not rows.has("eager", item(1))
