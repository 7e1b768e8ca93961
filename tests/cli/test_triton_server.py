"""`--triton-server` of `fvexport trt`: an engine in a model repository, or a refusal before any work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fvexport.export.engines import api


def test_an_engine_goes_there(
    fvexport: Any, artifact: Path, tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "has_cuda_gpu", lambda: True)  # full TensorRT builds nowhere else
    args = ("trt", "--artifact", artifact, "--out", "a 128", "--no-parity", "--triton-server", "models")
    outcome = fvexport(*args)
    assert outcome.code == 0, outcome.err
    assert "served from" in outcome.out and "models/a-128" in outcome.out
    plan = (tmp_path / "models/a-128/1/model.plan").read_bytes()
    assert plan == (tmp_path / "a 128/encoder.plan").read_bytes()
    assert 'backend: "tensorrt"' in (tmp_path / "models/a-128/config.pbtxt").read_text()
    shutil.rmtree(tmp_path / "a 128")
    fvexport(*args).one_line_error("models/a-128 exists", "--force")  # before the build
    fvexport(*args, "--strip").one_line_error("no weights", "without --strip")
    fvexport(*args, "--out", "models/a").one_line_error("must lie apart", "--out")
    fvexport(*args, "--out", ".a").one_line_error("does not begin with a dot")
    fvexport(*args, "--triton-server", "").one_line_error("--triton-server", "empty", code=2)
    fvexport(*args, "--dry-run").one_line_error("--triton-server", "--dry-run", code=2)
    assert not (tmp_path / "a 128").exists()


def test_rtx_is_refused_before_the_build(fvexport: Any, artifact: Path, tmp_path: Path, tensorrt_rtx: Any) -> None:
    args = ("trt", "--artifact", artifact, "--out", "a", "--flavour", "tensorrt-rtx", "--triton-server", "models")
    fvexport(*args).one_line_error("TensorRT-RTX", "serve the ONNX file")
    assert not list(tmp_path.iterdir())
