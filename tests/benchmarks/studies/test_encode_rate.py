"""The study of docs/encode.md runs on a tiny encoder, and its committed result says what the page says."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

from click.testing import CliRunner

from fvexport.benchmarks.studies.encode_rate import main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "encode.md").read_text(encoding="utf-8")


def test_runs(exported, tmp_path: Path) -> None:
    assert "python -m fvexport.benchmarks.studies.encode_rate --ray" in PAGE
    out = tmp_path / "rate.json"
    args = ["--artifact", str(exported().path), "--count", "12", "--rounds", "2", "--out", str(out)]
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    assert result.exit_code == 0 and result.output.count("/s (") == 4
    rows = json.loads(out.read_text())["rows"]
    assert [list(row) for row in rows] == [["bare", "encode"]] * 2 and min(min(row.values()) for row in rows) > 0


def test_the_page_has_the_committed_ratios() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "encode_rate-cpu.json").read_text())["rows"]
    said = re.search(
        r"keeps ([\d.]+) of the pace of a bare loop over decoded batches, and the same on Ray ([\d.]+)", PAGE
    )
    assert said is not None
    for kind, value in zip(("encode", "ray"), said.groups(), strict=True):
        assert float(value) == round(statistics.median(row[kind] / row["bare"] for row in rows), 2)
