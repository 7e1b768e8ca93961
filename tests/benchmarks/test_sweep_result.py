"""Lines of a sweep: what is written is what is read, and a torn line costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.benchmarks.sweep.environment import find_environment
from fvexport.benchmarks.sweep.result import (
    Cell,
    Environment,
    Record,
    Result,
    Status,
    from_line,
    percentile,
    to_line,
)
from fvexport.benchmarks.sweep.store import RESULTS_FILE, ROUNDS_FILE, Rounds, append, read_sweep
from fvexport.benchmarks.sweep.sweep_options import Measuring
from fvexport.core.errors import ArtifactError

Synthetic = Callable[..., list[Record]]


def cell(**changes: object) -> Cell:
    plain = Cell(
        kind="ours",
        backend="openvino",
        precision="int8",
        height=256,
        width=256,
        batch=1,
        threads=2,
        variant="tiny",
        checkpoint="seeded:0",
        weights="0123456789ab",
        samples=8,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_every_line_comes_back(synthetic: Synthetic) -> None:
    records = synthetic()
    assert [from_line(to_line(record), "here") for record in records] == records


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no line of a sweep's results"),
        ('{"schema": 9, "type": "absent"}', "schema 9"),
        ('{"schema": 1, "type": "absent", "backend": 3}', r"\$\.backend: expected str, found int"),
        ('{"schema": 1, "type": "absent"}', "missing"),
        ('{"schema": 1, "type": "result", "cell": {}}', "missing"),
    ],
)
def test_a_strange_line_is_named(line: str, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as caught:
        from_line(line, "line 3 of results.jsonl")
    assert "line 3 of results.jsonl" in str(caught.value)


def test_entries_of_newer_versions(synthetic: Synthetic) -> None:
    """A result is read without them; an environment keeps them, since its id depends on them."""
    for record in synthetic(resolutions=(256,)):
        newer = json.loads(to_line(record)) | {"newer": [1]}
        if isinstance(record, Environment):
            newer["cpu"]["newer"] = 2
        found = from_line(json.dumps(newer), "here")
        if isinstance(found, Environment):
            assert json.loads(to_line(found)) == newer and found.id != record.id
            assert from_line(to_line(found), "here") == found
        else:
            assert found == record


def test_lines_of_earlier_versions(synthetic: Synthetic) -> None:
    """They had no tiles, no centred figures, no sizes of files."""
    for record in synthetic(resolutions=(256,)):
        old = json.loads(to_line(record))
        if isinstance(record, Result):
            del old["artifact_mb"], old["cell"]["tiles"]
            if old["parity"]:
                del old["parity"]["centred_sqnr_db"], old["parity"]["centred_rel_l2"]
        found = from_line(json.dumps(old), "here")
        assert found == (replace(record, artifact_mb=None) if isinstance(record, Result) else record)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "fine"}, r"\$\.status: unknown value 'fine'"),
        ({"tokens": "4"}, r"\$\.tokens: expected int \| null, found str"),
        ({"latency": {"p50_ms": 1}}, r"\$\.latency: object missing required field p90_ms"),
        ({"parity": {"status": "pass", "sqnr_db": "x"}}, r"\$\.parity\.sqnr_db: expected float \| null, found str"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(synthetic: Synthetic, change: dict[str, object], said: str) -> None:
    line = json.loads(to_line(next(r for r in synthetic() if isinstance(r, Result)))) | change
    with pytest.raises(ArtifactError, match=said):
        from_line(json.dumps(line), "here")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("status",), "failed", r"\$\.latency: a cell with the status failed has a latency"),
        (("latency",), None, r"\$\.latency: a cell with the status ok has none"),
        (("latency", "count"), 41, r"\$\.latency\.count: expected the 40 calls of its windows, found 41"),
        (("latency", "min_ms"), 1e9, r"\$\.latency: expected min_ms <= p50_ms"),
        (("latency", "p50_ms"), 0, r"\$\.latency\.p50_ms: expected float >= 1e-06, found 0"),
        (("latency", "p90_ms"), -3.5, r"p90_ms: expected float >= 1e-06, found -3.5"),
        (("latency", "p99_ms"), float("nan"), r"p99_ms: expected float >= 1e-06, found NaN"),
        (("latency", "p99_ms"), 10**400, r"p99_ms: Number out of range"),
        (("latency", "windows", 3, "round"), 2, r"\$\.latency\.windows: expected rounds in their order"),
        (
            ("latency", "windows", 3, "reference_ms"),
            float("inf"),
            r"windows\[3\]\.reference_ms: expected float <= 1000000000000\.0, found Infinity",
        ),
        (("latency", "windows", 0, "median_ms"), 1e-3, r"min_ms: expected no more than the median of any window"),
        (("cell", "precision"), "fp64", r"\$\.cell\.precision: unknown value 'fp64'"),
        (("cell", "backend"), "$\\frac$", r"\$\.cell\.backend: expected a name of lower-case letters"),
        (("cell", "llm"), "qwen2", r"\$\.cell\.llm: expected for cells of kind ttft"),
        (("cell", "height"), 2**40, r"\$\.cell\.height: expected int <= 1048576, found 1099511627776"),
        (("reason",), "two\nlines", r"\$\.reason: expected one line of text"),
        (("computes",), "\x1b[31m", r"\$\.computes: expected one line of text"),
        (("date",), "yesterday", r"\$\.date: expected a date of ISO 8601"),
        (("parity", "cosine"), 2, r"\$\.parity\.cosine: expected float <= 1\.001"),
    ],
)
def test_figures_that_cannot_be(synthetic: Synthetic, path: tuple[str | int, ...], value: object, said: str) -> None:
    line = json.loads(to_line(next(r for r in synthetic() if isinstance(r, Result))))
    from_line(json.dumps(line), "here")
    inner = line
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ArtifactError, match=said):
        from_line(json.dumps(line), "here")


def test_cells_that_differ_have_ids_that_differ() -> None:
    changed = {
        "kind": "ttft", "backend": "eager", "precision": "fp32", "height": 512, "width": 512, "batch": 8, "threads": 1,
        "variant": "fastvithd", "weights": "ba9876543210", "form": "train", "samples": 64, "llm": "qwen2-7b",
        "tiles": 5,
    }  # fmt: skip
    cells = [cell(), *(cell(**{name: value}) for name, value in changed.items()), cell(llm="qwen2-7b", prompt_tokens=9)]
    assert len({c.id for c in cells}) == len(cells)
    assert cell(checkpoint="elsewhere").id == cell().id  # the same weights from another place


def test_a_cell_says_its_resolution() -> None:
    assert cell().resolution == "256"
    assert cell(width=512).resolution == "256x512"
    assert cell(height=1024, width=1024, tiles=5).resolution == "2048 as 5 x 1024"
    assert cell(tiles=5).pixels == cell(height=512, width=512).pixels


def test_an_environment_is_known_again_on_another_day(synthetic: Synthetic) -> None:
    first = synthetic()[0]
    assert isinstance(first, Environment)
    assert replace(first, date="2001-01-01T00:00:00+00:00", command="another").id == first.id
    assert replace(first, versions=first.versions | {"torch": "3.0"}).id != first.id


def test_the_last_line_of_a_cell_counts(synthetic: Synthetic, tmp_path: Path) -> None:
    records = synthetic()
    result = next(r for r in records if isinstance(r, Result))
    append(tmp_path / RESULTS_FILE, *records)
    append(tmp_path / RESULTS_FILE, replace(result, status="failed", reason="later", latency=None))
    read = read_sweep(tmp_path)
    assert len(read.results) == sum(isinstance(r, Result) for r in records)
    assert [r.reason for r in read.results if r.cell == result.cell] == ["later"]
    assert {r.status for r in read.results} <= set(get_args(Status))
    assert len(read.absent) == 2 and len(read.environments) == 1


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(min_value=1, max_value=400))
def test_a_line_cut_off_by_a_kill_is_dropped(
    synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    file = tmp_path_factory.mktemp("torn") / RESULTS_FILE
    records = synthetic(resolutions=(256,))
    append(file, *records)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    lost = 1 + whole[-cut:-1].count(b"\n")
    assert len(read_sweep(file).results) == sum(isinstance(r, Result) for r in records) - lost
    append(file, *records[-lost:])
    assert file.read_bytes() == whole


def test_no_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no results at"):
        read_sweep(tmp_path)


WINDOW = {
    "environment": "e",
    "cell": "ours eager",
    "round": 0,
    "times_ms": [1.5, 2.5],
    "reference": "r",
    "reference_ms": 2,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([{"times_ms": []}], r"\$\.times_ms: expected array of length >= 1"),
        ([{"times_ms": [0]}], r"\$\.times_ms\[0\]: expected float >= 1e-06"),
        ([{"times_ms": ["1"]}], "expected float, found str"),
        ([{"reference_ms": float("nan")}], r"\$\.reference_ms: expected float"),
        ([{"round": 1}, {"round": 1}], r"\$\.round: expected more than 1, the cell's last, found 1"),
        ([{"parts_ms": [[1, 2, 3]]}], r"\$\.parts_ms: expected for cells of kind ttft"),
        ([{"reference_ms": None}], r"\$\.reference_ms: expected beside a reference"),
        ([{"cell": ["x"]}], r"\$\.cell: expected str, found array"),
    ],
)
def test_rounds_that_cannot_be(tmp_path: Path, changes: list[dict[str, object]], said: str) -> None:
    (tmp_path / ROUNDS_FILE).write_text("".join(json.dumps(WINDOW | change) + "\n" for change in changes))
    with pytest.raises(ArtifactError, match=f"line {len(changes)} of .* is damaged .*{said}.*; remove that file"):
        Rounds(tmp_path, "e")
    (tmp_path / ROUNDS_FILE).write_text(json.dumps(WINDOW) + "\n")
    assert Rounds(tmp_path, "e").windows.keys() == {"ours eager"} and not Rounds(tmp_path, "another").windows


def test_any_command_line_can_be_written_and_read(tmp_path: Path) -> None:
    """With the bytes of a name that is no UTF-8, and a line break in another."""
    environment = find_environment(Measuring(), "fvexport sweep --out 'a\udcff\n\x1b[31mb'")
    append(tmp_path / RESULTS_FILE, environment)
    (read,) = read_sweep(tmp_path).environments.values()
    assert read == environment and read.command == "fvexport sweep --out 'a\\udcff b'"


@settings(deadline=None)
@given(
    values=st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=30),
    share=st.floats(min_value=0, max_value=1),
)
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share), rel=1e-9, abs=1e-9)


def test_lines_are_strict_json(synthetic: Synthetic) -> None:
    for record in synthetic():
        assert json.loads(to_line(record), parse_constant=lambda _: pytest.fail("not JSON"))["schema"] == 1
