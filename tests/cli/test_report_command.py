"""`fvexport report`: what it prints and writes, when it fails, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvexport.benchmarks.sweep.result import Absent, Cell, Environment, Latency, Parity, Result, Window
from fvexport.benchmarks.sweep.store import append


def sweep(folder: Path, factor: float = 1.0, date: str = "2000-01-01T00:00:00+00:00") -> Path:
    """A sweep of two cells that nobody measured; the second takes `factor` times as long as it could."""
    environment = Environment(
        date=date, command="fvexport sweep --res 256", cpu={"model": "Made-up CPU", "usable": 2, "cores": 2},
        memory_gb=8.0, gpus=(), platform="Made-up-1", python="3.11", versions={"fvexport": "0.1.0"},
    )  # fmt: skip
    records = [
        environment,
        Absent("openvino", None, "openvino is not installed", "pip install openvino", environment.id),
    ]
    for form, ms in (("train", 100.0), ("fused", 80.0 * factor)):
        windows = tuple(Window(n, ms * (1 + 0.004 * (n % 3)), 4, 100.0) for n in range(7))
        cell = Cell(
            kind="ours",
            backend="eager",
            precision="fp32",
            height=256,
            width=256,
            batch=1,
            threads=2,
            variant="tiny",
            checkpoint="seeded:0",
            weights="0" * 12,
            form=form,
        )
        latency = Latency(
            p50_ms=ms,
            p90_ms=ms,
            p99_ms=ms,
            mean_ms=ms,
            min_ms=ms,
            count=28,
            windows=windows,
            timer="wall",
            stable=True,
            spread=0.01,
        )
        parity = Parity("pass", 120.0, 1.0, 1.0, 1e-6)
        records.append(
            Result(
                cell=cell,
                status="ok",
                reason="",
                environment=environment.id,
                date=date,
                latency=latency,
                tokens=16,
                parity=parity,
            )
        )
    append(folder / "results.jsonl", *records)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return sweep(tmp_path / "old"), sweep(tmp_path / "new", 1.3, "2000-01-02T00:00:00+00:00")


def test_one_sweep(fvexport, tmp_path: Path) -> None:
    folder = sweep(tmp_path / "a")
    outcome = fvexport("report", folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert (
        "Made-up CPU, 2 cores" in outcome.out
        and "eager fused fp32" in outcome.out
        and "80.0 ms" in outcome.out.replace("\u00a0", " ")
    )
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert {file.name for file in folder.iterdir()} == {"results.jsonl", "report.html", "report.md", "report.csv"}
    assert fvexport("report", folder / "results.jsonl").code == 0  # again, by the file's name


def test_differences(fvexport, two) -> None:
    old, new = two
    outcome = fvexport("report", new, old)
    assert (outcome.code, outcome.err) == (0, "")
    said = " ".join(outcome.out.split())
    assert "eager fused fp32 at 256" in said and "+30 %" in said and "slower" in said and "1 within 5 %" in said
    assert Path("sweep-report/report.html").is_file()


@pytest.mark.parametrize(("above", "code"), [("5%", 1), ("25 %", 1), ("40%", 0)])
def test_fail_above(fvexport, two, above: str, code: int) -> None:
    old, new = two
    outcome = fvexport("report", new, "--baseline", old / "results.jsonl", "--fail-above", above, "--json")
    assert (outcome.code, outcome.err) == (code, "")
    answer = outcome.json
    assert answer["passed"] == (code == 0) and answer["comparison"]["regressions"] == code
    difference = answer["comparison"]["differences"][0]
    assert difference["cell"].startswith("ours eager fused fp32 256")
    assert difference["low"] <= difference["change"] <= difference["high"]
    assert difference["change"] == pytest.approx(0.3, abs=0.02)
    assert (new / "report.html").is_file()  # in any case


def test_the_other_way_round(fvexport, two) -> None:
    old, new = two
    outcome = fvexport("report", old, "--baseline", new, "--fail-above", "5%", "--relative")
    assert outcome.code == 0 and "1 faster" in outcome.out


def test_a_cut_off_line_is_told(fvexport, tmp_path: Path) -> None:
    folder = sweep(tmp_path / "a")
    with (folder / "results.jsonl").open("a") as stream:
        stream.write('{"schema": 1, "ty')
    outcome = fvexport("report", folder)
    assert outcome.code == 0 and "note: the last line of" in outcome.out


def test_refusals(fvexport, tmp_path: Path) -> None:
    folder = sweep(tmp_path / "a")
    fvexport("report", tmp_path / "nowhere").one_line_error("no results at", "fvexport sweep")
    fvexport("report", folder, "--fail-above", "5%").one_line_error("nothing to compare", "only one run", "--baseline")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    fvexport("report", tmp_path / "bad.jsonl").one_line_error("line 1", "bad.jsonl", "no line of a sweep's results")
    (tmp_path / "taken").write_text("a file")
    fvexport("report", folder, "--out", tmp_path / "taken").one_line_error("taken", "--out")
    (folder / "report.md").write_text("mine")
    fvexport("report", folder).one_line_error("report.md", "is no report of fvexport", "--out")
    assert {file.name for file in folder.iterdir()} == {"results.jsonl", "report.md"}


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["Missing argument 'RESULTS"]),
        (["a", "--fail-above", "0.05"], ["'0.05' is no percentage", "such as 5%"]),
        (["a", "--fail-above", "0%"], ["above 0"]),
        (["a", "--relative"], ["--relative is for comparing"]),
    ],
)
def test_usage(fvexport, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    fvexport("report", *args).one_line_error(*parts, code=2)
    assert not list(tmp_path.iterdir())


def test_every_option_stands_in_the_docs() -> None:
    from fvexport.cli.report_command import report

    page = (Path(__file__).parents[2] / "docs/report.md").read_text(encoding="utf-8")
    options = {name for option in report.params for name in option.opts if name.startswith("--")} - {"--verbose"}
    assert len(options) == 5 and {name for name in options if name not in page} == set()


def test_an_identical_run_is_no_difference(fvexport, tmp_path: Path) -> None:
    a = sweep(tmp_path / "a")
    file = sweep(tmp_path / "b") / "results.jsonl"
    outcome = fvexport("report", a, "--baseline", file, "--fail-above", "1%", "--json")
    assert outcome.code == 0
    assert {d["finding"] for d in outcome.json["comparison"]["differences"]} == {"same"}
