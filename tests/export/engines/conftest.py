"""Real engines of the tiny model, built once, with no GPU: TensorRT-RTX leaves kernels to where they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export.artifact import Artifact
from fvexport.export.engine_export import EngineReport, export_trt
from fvexport.export.engines import api as module
from fvexport.export.engines.api import Api, load_api
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx
from fvexport.export.precision import QUANTIZED

Built = Callable[..., EngineReport]


@pytest.fixture(scope="session")
def rtx(tensorrt_rtx: Any) -> Api:
    return load_api("tensorrt-rtx")


@pytest.fixture
def full(tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> Api:
    """Full TensorRT as it is where a GPU is; it builds through the libraries of RTX."""
    monkeypatch.setattr(module, "has_cuda_gpu", lambda: True)
    return load_api("tensorrt")


@pytest.fixture(scope="session")
def onnx_artifact(
    made_once: Callable[..., Path], exported: Callable[..., Artifact], tiny: Checkpoint
) -> Callable[..., Artifact]:
    """`onnx_artifact(precision="int8", …)`: an ONNX artifact at 128 x 128, made once. Not to be changed."""
    made: dict[str, Artifact] = {}

    def export(**options: Any) -> Artifact:
        options = {"precision": "fp16", **options}
        if options["precision"] not in QUANTIZED:
            return exported(**options)
        key = repr(sorted(options.items()))
        if key not in made:
            wanted = ExportOptions(**{"height": 128, "width": 128, "target": "tensorrt", **options})
            calibration = CalibrationOptions(samples=2)

            def write(out: Path) -> None:
                export_onnx(tiny, out, options=wanted, parity=False, calibration=calibration)

            made[key] = Artifact.open(made_once(f"for an engine {key}", write))
        return made[key]

    return export


@pytest.fixture(scope="session")
def tasks() -> dict[Path, list[str]]:
    """By its folder, the tasks that each engine of `built` went through."""
    return {}


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, rtx: Api, onnx_artifact: Callable[..., Artifact],
    tasks: dict[Path, list[str]],
) -> Built:  # fmt: skip
    """`built(precision="int8", …)`: the report of an engine of such an artifact, made once."""
    made: dict[str, EngineReport] = {}

    def build(**options: Any) -> EngineReport:
        key = repr(sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("engine") / "made"
            done = tasks.setdefault(out, [])
            made[key] = export_trt(
                out=out, artifact=onnx_artifact(**options), parity=False, progress=lambda task, *_: done.append(task)
            )
        return made[key]

    return build
