"""docs/encode.md: its commands and its Python run as they stand, on a small artifact under the page's names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PAGE = (Path(__file__).parents[3] / "docs" / "encode.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_commands_and_code(exported, photographs: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fastvithd-1024").symlink_to(exported().path)
    Path("photos").mkdir()
    for index, name in enumerate(("astronaut", "coffee")):
        shutil.copy(photographs[name], f"photos/{index}.jpg")
        with tarfile.open(f"shard-00000{index}.tar", "w") as tar:
            tar.add(photographs[name], f"{index:09}.jpg")
    contents = [Path(f"photos/{index}.jpg").read_bytes() for index in range(2)]
    pq.write_table(pa.table({"name": ["a", "b"], "image": contents, "thumbnail": contents}), "photos.parquet")
    script = "".join(block for block in blocks("console") if "studies" not in block)  # test_encode_rate.py runs those
    assert script.count("fvexport encode") == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pq.read_table("from_table.parquet").column("id").to_pylist() == ["a", "b"]
    assert pq.read_table("from_tars.parquet").column("id").to_pylist() == ["000000000", "000000001"]
    reading, encoding = blocks("python")
    found: dict = {}
    exec(reading, found)
    assert found["array"].shape == (2, 256) and len(found["rows"]) == len(found["dataset"]) == 2
    exec(encoding, found)  # finished already
    assert (found["report"].encoded, found["report"].resumed) == (2, 2)
