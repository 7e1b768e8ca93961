"""`fvexport tune`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def test_dry_run_lists_the_searches(fvexport) -> None:
    outcome = fvexport("tune", "--dry-run", "--variant", "tiny", "--res", "64", "--res", "128x64", "--batch", "2")
    assert outcome.code == 0 and "searches on sm_" in outcome.out and "attention" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_json(fvexport) -> None:
    answer = fvexport("tune", "--dry-run", "--variant", "tiny", "--res", "64", "--fp32", "--json").json
    assert answer["file"] is None and answer["searches"]
    for search in answer["searches"]:
        assert search["key"].split()[1] == "float32" and search["predicted_us"] > 0
        assert search["key"].startswith("depthwise") and search["start"]["blocks"].keys() >= {"BLOCK_W", "BLOCK_C"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(fvexport) -> None:
    outcome = fvexport("tune", "--variant", "tiny", "--res", "64")
    assert outcome.code == 1 and "cannot time kernels" in outcome.err and not outcome.out


@pytest.mark.parametrize(("args", "code"), [(["--res", "100"], 1), (["--batch", "0"], 2), (["--variant", "tin"], 2)])
def test_wrong_values(fvexport, args: list[str], code: int) -> None:
    assert fvexport("tune", "--dry-run", *args).code == code


def test_limits_are_numbers(fvexport) -> None:
    assert fvexport("tune", "--dry-run", "--variant", "tiny", "--res", "64", "--budget", "10", "--jobs", "2").code == 0
    for wrong in (["--budget", "-1"], ["--jobs", "0"]):
        assert fvexport("tune", "--dry-run", *wrong).code == 2


def test_report_of_a_search_that_ended_early(capsys: pytest.CaptureFixture[str]) -> None:
    from fvexport.cli.tune_command import tune_report
    from fvexport.kernels.table import Config
    from fvexport.kernels.tune import Search, TuneReport

    start, found = Config({"BLOCK_M": 64}, 4, 2), Config({"BLOCK_M": 128}, 4, 2)
    ran = Search("linear half", start, 4, 10.0, found, 0.002, 0.001, 3, 1, True)
    broken = Search("attention half", start, 4, 5.0, error="no kernel image")
    tune_report(TuneReport("sm_90", (ran, broken), Path("gpu.json"), 7, "the time is over"))
    out = capsys.readouterr().out
    assert "128 4 2" in out and "2.0" in out and "gpu.json" in out
    assert "attention half: no kernel image" in out and "7 (the time is over)" in out
