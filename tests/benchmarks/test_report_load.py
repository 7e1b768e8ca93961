"""Files become runs: in any order, named twice, cut off, foreign."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fvexport.benchmarks.report.load import Loaded, load
from fvexport.benchmarks.report.tables import to_csv
from fvexport.benchmarks.sweep.result import Environment, Record, to_line
from fvexport.benchmarks.sweep.store import append
from fvexport.core.errors import ArtifactError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(name: str, records: Sequence[Record]) -> Path:
        append(tmp_path / name / "results.jsonl", *records)
        return tmp_path / name

    return made


def dated(records: Sequence[Record], date: str) -> list[Record]:
    return [replace(r, date=date) if isinstance(r, Environment) else r for r in records]


def content(loaded: Loaded) -> list[tuple[str, bool, set]]:
    return [(run.label, run.baseline, set(run.results)) for run in loaded.runs]


def test_one_file(synthetic, write: Write) -> None:
    records = synthetic()
    loaded = load([write("a", records)])
    (run,) = loaded.runs
    assert run.label == "Synthetic CPU, 2 cores" and not run.baseline and loaded.notices == ()
    assert len(run.results) == len(records) - 3 and len(run.absent) == 2
    assert len(run.measured) == len(run.results) - 3  # one of each resolution failed


def test_order_and_repetition(synthetic, write: Write) -> None:
    """Three runs in every order, one of them named twice and once more as a copy."""
    a = write("a", dated(synthetic(0, resolutions=(256,)), "2000-01-02T00:00:00+00:00"))
    b = write("b", synthetic(1, resolutions=(256,), cpu="Other CPU"))
    c = write("c", dated(synthetic(2, resolutions=(256,)), "2000-01-03T00:00:00+00:00"))
    copy = write("copy", synthetic(1, resolutions=(256,), cpu="Other CPU"))
    expected = content(load([a, b, c]))
    labels = [label for label, *_ in expected]
    assert labels == [
        "Other CPU, 2 cores, 2000-01-01",
        "Synthetic CPU, 2 cores, 2000-01-02",
        "Synthetic CPU, 2 cores, 2000-01-03",
    ]
    assert [baseline for _, baseline, _ in expected] == [True, False, False]
    tables = set()
    for order in itertools.permutations((a, b / "results.jsonl", c, copy, b)):
        loaded = load(order)
        assert content(loaded) == expected
        tables.add(to_csv(loaded.runs))
    assert len(tables) == 1


def test_parts_of_one_sweep_are_one_run(synthetic, write: Write) -> None:
    """Two files of the same environment without a common cell; with one, they are two runs."""
    whole = synthetic(0)
    environment, results = whole[0], list(whole[1:])
    one, other = write("one", [environment, *results[:20]]), write("other", [environment, *results[20:]])
    (run,) = load([one, other]).runs
    (expected,) = load([write("whole", whole)]).runs
    assert (run.results, run.absent) == (expected.results, expected.absent)
    again = dated(synthetic(5), "2000-02-01T00:00:00+00:00")
    assert len(load([one, write("again", again)]).runs) == 2


def test_the_baseline_stays_alone(synthetic, write: Write) -> None:
    """Even where it is of the same environment, or named among the results too."""
    whole = synthetic(0)
    old, new = write("old", whole[:30]), write("new", [whole[0], *whole[30:]])
    runs = load([new, old], baseline=old).runs
    assert sorted(run.baseline for run in runs) == [False, True]
    mixed = write("mixed", [*whole, *synthetic(1, cpu="Other CPU")])
    assert len(load([mixed]).runs) == 2
    with pytest.raises(ArtifactError, match="was measured in 2 environments"):
        load([new], baseline=mixed)


def test_a_line_that_was_cut_off(synthetic, write: Write) -> None:
    folder = write("a", synthetic(resolutions=(256,)))
    file = folder / "results.jsonl"
    before = load([folder])
    file.write_bytes(file.read_bytes() + to_line(synthetic(resolutions=(512,))[5]).encode()[:100])
    loaded = load([folder])
    assert content(loaded) == content(before)
    (notice,) = loaded.notices
    assert str(file) in notice and "cut off" in notice


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{", ["line 3", "cannot be read"]),
        ('{"schema": 99, "type": "result"}', ["line 3", "schema 99"]),
        ('{"event": "of another tool"}', ["line 3", "no line of a sweep's results"]),
        ('{"schema": 1, "type": "result", "cell": 7}', ["line 3"]),
    ],
)
def test_foreign_lines(synthetic, write: Write, line: str, parts: list[str]) -> None:
    file = write("a", synthetic(resolutions=(256,))) / "results.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[2:], ""]))
    with pytest.raises(ArtifactError) as caught:
        load([file])
    for part in [str(file), *parts]:
        assert part in str(caught.value)


def test_nothing_to_show(synthetic, write: Write, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no results at"):
        load([tmp_path / "missing"])
    records = synthetic()
    with pytest.raises(ArtifactError, match="no cell has ended"):
        load([write("empty", records[:3])])
    with pytest.raises(ArtifactError, match="no line that describes it"):
        load([write("headless", records[4:6])])
