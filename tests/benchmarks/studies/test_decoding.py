"""The decoding study: every way and step is measured, on files of the size asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fvexport.benchmarks.studies import decoding
from fvexport.benchmarks.studies.decoding import Prepare, make_files
from fvexport.encoder.preprocess import Preprocessor


def test_files(tmp_path: Path) -> None:
    paths = make_files(tmp_path, 1500, 600, 2)
    levels = [np.asarray(Image.open(path)) for path in paths]
    assert {image.shape for image in levels} == {(600, 1500, 3)}
    for image in levels:  # photographs everywhere, not only where the first one is
        assert all(part.std() > 10 for part in np.array_split(image, 4, axis=1))
    assert np.abs(levels[0].astype(int) - levels[1]).mean() > 10


def test_shared_memory_gets_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Prepare(Preprocessor(64, 64), make_files(tmp_path, 90, 70, 2))
    pixels = [prepare(index) for index in range(2)]
    memory = bytearray(2 * 3 * 64 * 64)
    monkeypatch.setattr(decoding, "_shared", memory)
    assert [prepare(index) for index in range(2)] == [None, None]
    np.testing.assert_array_equal(np.frombuffer(memory, np.uint8).reshape(2, 3, 64, 64), np.stack(pixels))


@pytest.mark.slow
def test_a_row_for_each_way(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = ["--images", "90x70", "--res", "64", "--workers", "1", "--files", "2", "--rounds", "1", "--out", str(out)]
    done = CliRunner().invoke(decoding.main, command)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [way["kind"] for way in row["ways"]] == ["loop", "threads", "processes", "shared"]
    assert all(way["ms"] > 0 and way["images_s"] == pytest.approx(1e3 / way["ms"]) for way in row["ways"])
    assert {"read", "decode", "check", "resize", "array", "half", "all"} <= set(row["steps"])
    assert row["cores"] >= 1 and row["width"] == 90
