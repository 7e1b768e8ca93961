"""`ranges.json` as structs: round trips, what other versions wrote, and wrong values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fvexport.calibration.calibrate import load_ranges
from fvexport.calibration.ranges_record import RangesFile, SkippedImage, StatisticsFile, TensorRange
from fvexport.core.errors import ConfigError
from fvexport.core.records import parse, plain

ROW = {"tap": "a:in", "low": -1.5, "high": 2, "chosen_low": -1.0, "chosen_high": 2, "spread": None}
FILE = {
    "schema_version": 1, "checkpoint": "0" * 64, "height": 64, "width": 128, "data": "1" * 64, "samples": 4,
    "rows": 4096, "framing": "pad", "source": "sample", "variant": "tiny", "checkpoint_source": "seeded:0",
    "method": "weighted", "ranges": {"a:in": ROW}, "amax": {"a": 3.5}, "skipped": [{"image": "x", "reason": "small"}],
    "notices": ["few pictures"], "statistics": {"file": "ranges-012345678901.safetensors", "sha256": "2" * 64},
}  # fmt: skip


def test_round_trip() -> None:
    found = RangesFile.from_dict(FILE)
    assert json.dumps(found.to_dict()) == json.dumps(FILE) and RangesFile.from_dict(found.to_dict()) == found
    for record, kind in (
        (found.ranges["a:in"], TensorRange), (found.skipped[0], SkippedImage), (found.statistics, StatisticsFile),
    ):  # fmt: skip
        assert type(record) is kind and parse(plain(record), kind) == record


def test_entries_of_newer_versions_are_kept() -> None:
    newer = {**FILE, "new": [1], "ranges": {"a:in": {**ROW, "new": {"deep": 2}}}}
    assert RangesFile.from_dict(newer).to_dict() == newer


def test_earlier_versions() -> None:
    """They wrote no notices, and before that nothing of how pictures were framed."""
    older = {name: value for name, value in FILE.items() if name not in ("notices", "framing")}
    found = RangesFile.from_dict(older)
    assert (found.notices, found.framing) == ((), "pad")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schema_version", 2, "$.schema_version: unknown value 2"),
        ("height", "64", "$.height: expected int, found str"),
        ("statistics", {"file": "a"}, "$.statistics: object missing required field sha256"),
        ("ranges", {"a": {**ROW, "low": None}}, "$.ranges[...].low: expected int | float, found null"),
        ("skipped", [3], "$.skipped[0]: expected object, found int"),
    ],
)
def test_wrong_values_name_their_path(tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({**FILE, name: value}))
    with pytest.raises(ConfigError) as caught:
        load_ranges(path)
    assert (
        str(caught.value)
        == f"{path} is not what `fvexport calibrate` writes ({message}); run `fvexport calibrate` again"
    )
