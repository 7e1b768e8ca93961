"""docs/ray.md: its Python runs as it stands, on a tiny artifact under the page's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")


def test_the_pipeline(
    cluster: Any, artifact: Path, encoder: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert code.count('"photos"') == 1 and code.count('"features"') == 1
    # Workers were started elsewhere, so their current folder is another one.
    code = code.replace('"fastvithd-1024"', repr(str(artifact)))
    (tmp_path / "photos").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    rows = pq.read_table(tmp_path / "features").to_pylist()
    assert len(rows) == len(list(images.iterdir()))
    for row in rows:
        assert row["error"] is None
        wanted = encoder(images / Path(row["path"]).name)[0].mean(axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(row["features"], np.float32), wanted)
