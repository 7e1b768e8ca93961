"""The folder of a fuzz test, and how many inputs each test tried."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from limits import COUNTS


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing")


@pytest.fixture
def folder(_folders: Path, request: pytest.FixtureRequest) -> Path:
    """An empty folder for all inputs of a test; made of a wider scope, since hypothesis runs a test many times."""
    path = _folders / f"{request.path.stem}-{request.node.name}"
    path.mkdir()
    return path


def pytest_sessionfinish() -> None:
    """Writes the counts below FUZZ_COUNTS, a folder, in a file per process."""
    if (counts := os.environ.get("FUZZ_COUNTS")) and COUNTS:
        Path(counts).mkdir(parents=True, exist_ok=True)
        file = Path(counts, f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.json")
        file.write_text(json.dumps(COUNTS, indent=1), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many inputs each reader got, and refused."""
    for name, count in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{name}: {count['tried']} inputs tried, {count['refused']} of them refused")
