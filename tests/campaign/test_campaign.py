"""The campaign itself: its cheapest cases pass, and what fails is in its table with what reproduces it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAMPAIGN = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the campaign runs on Linux")

SCRIPT = """
import os, random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import table
from cases import Case, Failed, Skipped, expect, run_cases

def fails(folder, draw):
    (folder / "evidence").write_text("here")
    raise Failed(f"found {draw.random()}")

def leaves_process(folder, draw):
    if os.fork() == 0:
        time.sleep(60)
    return 3

def unable(folder, draw):
    raise Skipped("no rights")

cases = [
    Case(part="kills", name="good", run=leaves_process),
    Case(part="kills", name="bad, full disk", run=fails, index=7),
    Case(part="faults", name="slow", run=lambda *_: time.sleep(60), seconds=0.5),
    Case(part="faults", name="dead", run=lambda *_: os.kill(os.getpid(), 9)),
    Case(part="faults", name="broken", run=lambda *_: 1 / 0),
    Case(part="faults", name="unable", run=unable),
]
assert [case.matches(["kills.bad", "faults.*w"]) for case in cases] == [False, True, True, False, False, False]
out = Path(sys.argv[2])
rows = run_cases(cases, out / "cases", seed=5, jobs=2)
table.write(rows, out, seed=5, seconds=1)
"""


def test_failures_are_in_the_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        command = [sys.executable, "-c", SCRIPT, str(CAMPAIGN), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
        assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / name / "campaign.json").read_text())["rows"] for name in ("a", "b"))
    rows = {row["name"]: row for row in first}
    assert {name: (row["tried"], len(row["failed"])) for name, row in rows.items()} == {
        "good": (3, 0), "bad, full disk": (1, 1), "slow": (1, 1), "dead": (1, 1), "broken": (1, 1), "unable": (0, 0),
    }  # fmt: skip
    bad = rows["bad, full disk"]["failed"][0]
    assert bad["what"].startswith("found 0.") and bad["what"] == second[1]["failed"][0]["what"]  # of the seed
    assert bad["again"] == "make campaign SEED=5 ONLY=kills.bad.full-disk INDEX=7"
    assert Path(bad["folder"], "evidence").read_text() == "here"
    assert not (tmp_path / "a" / "cases" / "kills.good.0").exists()
    assert "did not end within" in rows["slow"]["failed"][0]["what"]
    assert "ZeroDivisionError" in rows["broken"]["failed"][0]["what"]
    text = (tmp_path / "a" / "campaign.md").read_text()
    assert text in done.stdout.replace(str(tmp_path / "b"), str(tmp_path / "a"))
    assert "| kills | bad, full disk | 1 | 1 |" in text and "| faults | unable | skipped: no rights | 0 |" in text


@pytest.mark.slow
def test_cheap_cases_pass(tmp_path: Path) -> None:
    only = ("kills.encode", "faults.encode.full-disk", "faults.encode.signal", "faults.encode.descriptors")
    only += ("containers.encode.two-at-once", "hostile.onnx.training_info", "hostile.artifact.links-among-files")
    command = [sys.executable, str(CAMPAIGN), "--count", "1", "--only", ",".join(only), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "campaign.json").read_text())["rows"]
    assert done.returncode == 0, done.stdout
    assert {row["part"] for row in rows} == {"kills", "faults", "containers", "hostile"}
    assert all(row["tried"] or row["skipped"] for row in rows)


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(CAMPAIGN), "--only", "kill", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2 and "no case is named kill" in done.stderr
