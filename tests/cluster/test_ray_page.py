"""docs/ray.md: its Python runs as it stands, on a tiny artifact under the page's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")


def test_the_commands(cluster: Any, artifact: Path, images: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """On the cluster of the tests, which a process that is connected uses; the second line only names another one."""
    from fvexport.cli.main import main

    lines = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(lines) == 2 and lines[1] == f"{lines[0]} --ray-address auto"
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(images)
    Path("fastvithd-1024").symlink_to(artifact)
    with pytest.raises(SystemExit) as ended:
        main(lines[0].split()[1:])
    assert ended.value.code == 0, capsys.readouterr().err
    import pyarrow.parquet as pq

    names = {f"photos/{path.name}" for path in images.iterdir()}
    assert set(pq.read_table("features").column("id").to_pylist()) == names


def test_the_pipeline(cluster: Any, artifact: Path, encoder: Any, images: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    code = code.replace("/data/fastvithd-1024", str(artifact)).replace("/data/photos", str(images))
    code = code.replace("/data/features", str(tmp_path / "features"))
    assert "/data/" not in code
    exec(code, {})
    rows = pq.read_table(tmp_path / "features").to_pylist()
    assert len(rows) == len(list(images.iterdir()))
    for row in rows:
        assert row["error"] is None
        wanted = encoder(images / Path(row["path"]).name)[0].mean(axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(row["features"], np.float32), wanted)
