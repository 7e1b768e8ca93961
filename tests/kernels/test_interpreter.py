"""Runs `interpreted/` in a process of its own, where kernels are interpreted from the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILES = sorted(str(file) for file in (Path(__file__).parent / "interpreted").glob("check_*.py"))


def run(marker: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", marker, *FILES]
    # One core is this process's share; the variables of pytest-xdist would make it a worker.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, env={**kept, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.mark.slow
def test_interpreted() -> None:
    run("not long")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_shapes_interpreted() -> None:
    run("long")
