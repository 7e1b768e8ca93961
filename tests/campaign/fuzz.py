"""The fuzz tests of `tests/fuzzing` with many inputs for each reader; a row for each test."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import inputs
from cases import Case, Failed, expect

FUZZING = inputs.TESTS / "fuzzing"


def make_cases(count: int) -> Iterator[Case]:
    """`count` inputs for each fuzz test."""
    for file in sorted(FUZZING.glob("test_*.py")):
        for test in re.findall(r"^@fuzz\((?:.|\n)*?^def (test_\w+)", file.read_text(encoding="utf-8"), re.M):
            name = f"{file.stem.removeprefix('test_')}, {test.removeprefix('test_')}"
            yield Case(part="fuzz", name=name, run=_fuzzing(file, test, count), seconds=1500)


def prepare(names: set[str]) -> None:
    """Nothing: each test makes what it damages."""


def _fuzzing(file: Path, test: str, count: int) -> Callable[[Path, random.Random], int]:
    def case(folder: Path, draw: random.Random) -> int:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", f"{file}::{test}"]
        own = {"FUZZ_EXAMPLES": str(count), "FUZZ_COUNTS": str(folder / "counts")}
        command += [f"--hypothesis-seed={draw.randrange(2**32)}", f"--basetemp={folder / 'tmp'}", "--timeout=1400"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **own}, cwd=inputs.TESTS.parent
        )
        (folder / "output").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            errors = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
            raise Failed("\n".join(errors[-3:]) or done.stdout[-500:] + done.stderr[-500:])
        counts = [json.loads(path.read_text()) for path in (folder / "counts").glob("*.json")]
        tried = sum(row["tried"] for table in counts for row in table.values())
        expect(tried > 0, "no input was tried")
        return tried

    return case
