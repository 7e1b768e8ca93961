"""docs/python.md: its Python runs as it stands, on a tiny artifact under the page's names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fvexport.export.artifact import Artifact
from fvexport.export.runtime import Encoder

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
USE, WORKERS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def place(static: Artifact, photographs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with what the page names."""
    (tmp_path / "fastvithd-1024").symlink_to(static.path)
    Image.open(photographs["astronaut"]).save(tmp_path / "photo.jpg")
    Image.open(photographs["chelsea"]).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_use(place: Path) -> None:
    names: dict[str, Any] = {}
    exec(USE, names)
    wanted = Encoder("fastvithd-1024")("photo.jpg")
    np.testing.assert_allclose(names["features"], wanted, rtol=1e-4, atol=1e-5)


def test_workers_are_spawned(place: Path) -> None:
    (place / "workers.py").write_text(WORKERS)
    done = subprocess.run([sys.executable, "workers.py"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(1, 4, 256)"] * 2
