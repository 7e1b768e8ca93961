"""A sweep as a whole, with processes that act: statuses, rounds, resuming after a kill, budgets. No model is run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvexport.benchmarks.json_lines import complete_lines
from fvexport.benchmarks.sweep.result import Result
from fvexport.benchmarks.sweep.run import LOCK_FILE, SweepReport, run_sweep
from fvexport.benchmarks.sweep.store import RESULTS_FILE, ROUNDS_FILE, read_sweep
from fvexport.benchmarks.sweep.sweep_options import Measuring, SweepOptions
from fvexport.core.errors import ArtifactError, CheckpointError, ConfigError
from fvexport.encoder.weight_options import WeightOptions

ACTOR = Path(__file__).with_name("acting_worker.py")
HOW = Measuring(window_s=0.0, min_rounds=3, max_rounds=5)
OPTIONS = SweepOptions(
    resolutions=((64, 64),), backends=("onnxruntime-cpu", "openvino", "eager"), precisions=("fp32",),
    weights=WeightOptions(variant="tiny"), threads=1, peers=False,
)  # fmt: skip
SERIES = ["onnxruntime-cpu fp32", "openvino fp32", "eager train fp32", "eager channels-last fp32", "eager fused fp32"]

Sweeping = Callable[..., SweepReport]


def actor(acts: dict[str, str] | None = None) -> tuple[str, ...]:
    return sys.executable, str(ACTOR), json.dumps(acts or {})


@pytest.fixture
def sweeping(tmp_path: Path) -> Sweeping:
    """Runs a sweep in `tmp_path / "out"`."""

    def call(acts: dict[str, str] | None = None, **changes: Any) -> SweepReport:
        return run_sweep(
            replace(OPTIONS, **changes), tmp_path / "out", measuring=HOW, command="fvexport sweep", worker=actor(acts)
        )

    return call


def by_series(report: SweepReport) -> dict[str, Result]:
    return {result.cell.series: result for result in report.results}


# --- measuring ---------------------------------------------------------------------------------


def test_every_cell_is_measured_beside_the_reference(sweeping: Sweeping, tmp_path: Path) -> None:
    found = by_series(sweeping())
    assert list(found) == SERIES
    assert {r.status for r in found.values()} == {"ok"}
    reference = found["onnxruntime-cpu fp32"]
    for series, speed in {"onnxruntime-cpu fp32": 2, "openvino fp32": 4, "eager train fp32": 1}.items():
        latency = found[series].latency
        assert latency is not None and latency.reference == reference.cell.id
        assert latency.ratio == pytest.approx(2 / speed)
        assert [w.round for w in latency.windows] == [0, 1, 2]
        assert latency.p50_ms == pytest.approx(64 * 64 / 1e3 / speed)
    openvino = found["openvino fp32"]
    assert openvino.images_per_second == pytest.approx(1e3 / (4.096 / 4))
    assert openvino.run_host_mb == 13 and openvino.build_s == 1 and openvino.artifact_mb == 0
    assert found["eager train fp32"].build_s is None  # runs the checkpoint
    assert read_sweep(tmp_path / "out").results == list(found.values())


def test_the_reference_is_measured_around_every_few_cells(sweeping: Sweeping, tmp_path: Path) -> None:
    sweeping()
    rounds = [json.loads(line) for _, line in complete_lines(tmp_path / "out" / ROUNDS_FILE)]
    # Before the first three, before the fourth, and at the end: three windows of three calls.
    assert Counter(len(w["times_ms"]) for w in rounds) == {3: 12, 9: 3}


def test_what_never_settles_is_marked_unstable(sweeping: Sweeping) -> None:
    found = by_series(sweeping({"openvino fp32": "drift"}))["openvino fp32"]
    assert found.status == "unstable" and found.latency is not None
    assert len(found.latency.windows) == HOW.max_rounds
    assert "after 5 rounds the last 3 windows still differ by" in found.reason


@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [
        ("abort", "crashed", "died of SIGABRT: the heap is corrupt"),
        ("vanish", "crashed", "ended with code 7"),
        ("exit", "failed", "SystemExit: 7"),
        ("killed", "oom", "killed the process, most likely since memory ran out"),
        ("memory", "oom", "MemoryError: 8 GB wanted"),
        ("raise", "failed", "RuntimeError: no such operator"),
        ("abort later", "crashed", "died of SIGABRT: the heap is corrupt (after 2 rounds)"),
        ("raise later", "failed", "no such operator (after 2 rounds)"),
    ],
)
def test_what_goes_wrong_is_in_its_cell_and_the_rest_goes_on(
    sweeping: Sweeping, act: str, status: str, reason: str
) -> None:
    report = sweeping({"openvino fp32": act}, backends=("onnxruntime-cpu", "openvino"))
    found = by_series(report)
    assert (found["openvino fp32"].status, found["openvino fp32"].latency) == (status, None)
    assert found["openvino fp32"].reason.endswith(reason)
    assert found["onnxruntime-cpu fp32"].status == "ok"
    assert report.measured == 2


def test_one_that_hangs_and_one_that_eats_memory_are_ended(sweeping: Sweeping) -> None:
    acts = {"openvino fp32": "hang", "eager train fp32": "eat", "eager fused fp32": "hang later"}
    found = by_series(sweeping(acts, timeout_s=1.5, memory_gb=0.3))
    assert found["openvino fp32"].status == "timeout"
    assert found["openvino fp32"].reason == "no answer within 2 s"
    assert found["eager train fp32"].status == "oom"
    assert found["eager train fp32"].reason.endswith("over the limit of 0.30 GB")
    assert found["eager fused fp32"].status == "timeout"
    assert {found[s].status for s in ("onnxruntime-cpu fp32", "eager channels-last fp32")} == {"ok"}


def test_when_the_reference_dies_another_takes_its_place(sweeping: Sweeping) -> None:
    found = by_series(sweeping({"onnxruntime-cpu fp32": "abort later"}))
    assert found["onnxruntime-cpu fp32"].status == "crashed"
    others = [r for s, r in found.items() if s != "onnxruntime-cpu fp32"]
    assert {r.status for r in others} <= {"ok", "unstable"}
    assert all(r.latency is not None and r.latency.ratio is not None for r in others)


def test_a_file_that_cannot_be_made_is_not_tried_again(sweeping: Sweeping, tmp_path: Path) -> None:
    found = by_series(sweeping({"make fp32": "raise"}))
    assert found["eager train fp32"].status == "ok"  # needs none
    for series in ("onnxruntime-cpu fp32", "openvino fp32", "eager channels-last fp32"):
        assert found[series].status == "failed"
        assert found[series].reason == "its file could not be made: RuntimeError: no such operator"
    log = (tmp_path / "out" / "logs" / "making.log").read_text()
    assert log.count("no such operator") <= 1  # the process after it made the reference features alone


def test_a_file_for_which_memory_ran_out_is_made_once_more_when_others_are_gone(sweeping: Sweeping) -> None:
    found = by_series(sweeping({"make bf16": "memory once"}, backends=("openvino",), precisions=("fp32", "bf16")))
    assert {s: r.status for s, r in found.items()} == {"openvino fp32": "ok", "openvino bf16": "ok"}


def test_what_libraries_print_disturbs_nothing(sweeping: Sweeping) -> None:
    found = by_series(sweeping({"openvino fp32": "chatty"}))
    assert {r.status for r in found.values()} == {"ok"}


# --- once and again ----------------------------------------------------------------------------


def lines(out: Path) -> Counter[str]:
    """How often each cell stands in the results."""
    found = [json.loads(line) for _, line in complete_lines(out / RESULTS_FILE)]
    return Counter(line["cell"]["backend"] + line["cell"]["form"] for line in found if line["type"] == "result")


def test_the_same_again_appends_nothing(sweeping: Sweeping, tmp_path: Path) -> None:
    first = sweeping({"openvino fp32": "raise"})
    files = [tmp_path / "out" / name for name in (RESULTS_FILE, ROUNDS_FILE)]
    before = [file.read_bytes() for file in files]
    again = sweeping()
    assert again.measured == 0 and again.results == first.results
    assert [file.read_bytes() for file in files] == before


def test_retry_measures_what_failed(sweeping: Sweeping, tmp_path: Path) -> None:
    sweeping({"openvino fp32": "raise"})
    again = sweeping(retry=True)
    assert again.measured == 1
    latency = by_series(again)["openvino fp32"].latency
    assert latency is not None and latency.ratio == pytest.approx(0.5)  # beside the same reference
    assert lines(tmp_path / "out")["openvino"] == 2 and len(read_sweep(tmp_path / "out").results) == 5


def whole_rounds(out: Path) -> int:
    return len(list(complete_lines(out / ROUNDS_FILE)))


@pytest.mark.parametrize("rounds", [0, 8, 20])
def test_killed_and_started_again_nothing_is_lost_or_doubled(sweeping: Sweeping, tmp_path: Path, rounds: int) -> None:
    """Kill -9 as it begins, in the first rounds, and after the first results."""
    out = tmp_path / "out"
    acts = dict.fromkeys(SERIES, "slow") | {"eager fused fp32": "drift"}
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_sweep as t\n"
        "t.run_sweep(t.replace(t.OPTIONS, resolutions=((64, 64), (128, 128))), sys.argv[2], measuring=t.HOW, "
        "worker=t.actor(eval(sys.argv[3])))"
    )
    command = [sys.executable, "-c", program, str(ACTOR.parent), str(out), repr(acts)]
    sweep = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while whole_rounds(out) < rounds and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    killed = lines(out) if (out / RESULTS_FILE).is_file() else Counter()
    left = wait_until_gone(str(ACTOR))
    assert not left, "processes outlived their parent"
    taken = whole_rounds(out)
    report = sweeping(acts, resolutions=((64, 64), (128, 128)))
    assert report.measured == 10 - sum(killed.values())
    assert set(lines(out).values()) == {2}  # one at each resolution
    assert whole_rounds(out) >= taken
    for result in report.results:
        assert result.latency is not None
        numbers = [w.round for w in result.latency.windows]
        assert len(set(numbers)) == len(numbers) <= HOW.max_rounds


def wait_until_gone(script: str) -> list[int]:
    """Processes that still run `script` after five seconds."""
    deadline = time.monotonic() + 5
    while True:
        found = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and script.encode() in _command_line(entry)
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _command_line(entry: Path) -> bytes:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return b""
    return words[1] if len(words) > 1 else b""


def test_a_budget_ends_it_and_the_rest_is_said_to_be_skipped(sweeping: Sweeping, tmp_path: Path) -> None:
    acts = dict.fromkeys(SERIES, "slow load")
    start = time.monotonic()
    first = sweeping(acts, budget_s=2.0)
    assert time.monotonic() - start < 6
    statuses = [r.status for r in first.results]
    assert "skipped" in statuses and statuses == sorted(statuses, key=lambda s: s == "skipped")
    assert all(r.reason.startswith("the budget of 2 s ended") for r in first.results if r.status == "skipped")
    assert len(read_sweep(tmp_path / "out").results) == 5
    again = sweeping()
    assert {r.status for r in again.results} == {"ok"}
    assert again.measured >= statuses.count("skipped")


def test_another_environment_is_measured_anew(sweeping: Sweeping, tmp_path: Path) -> None:
    sweeping()
    other = Measuring(window_s=0.0, min_rounds=4, max_rounds=5)
    again = run_sweep(OPTIONS, tmp_path / "out", measuring=other, worker=actor())
    assert again.measured == 5
    read = read_sweep(tmp_path / "out")
    assert len(read.environments) == 2 and len(read.results) == 10


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RESULTS_FILE, ROUNDS_FILE])
def test_a_line_that_no_sweep_wrote_is_kept(sweeping: Sweeping, tmp_path: Path, name: str) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir()
    (file.parent / LOCK_FILE).touch()
    file.write_text("precious")
    with pytest.raises(ArtifactError, match=rf"{name}, line 1 is no result of this command; choose another --out"):
        sweeping()
    assert file.read_text() == "precious"


def test_a_folder_of_something_else_is_left_alone(sweeping: Sweeping, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="holds no sweep of fvexport"):
        sweeping()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_two_sweeps_do_not_share_a_folder(sweeping: Sweeping, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / LOCK_FILE).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another sweep is writing"):
            sweeping()


def test_weights_that_cannot_be_loaded_end_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        run_sweep(replace(OPTIONS, weights=WeightOptions(checkpoint="nowhere")), tmp_path / "out")


def test_nothing_to_measure_is_said(sweeping: Sweeping) -> None:
    with pytest.raises(ConfigError, match=r"nothing to measure here .eager: does not run int8 natively"):
        sweeping(backends=("eager",), precisions=("int8",))
