"""Artifacts of the tiny model, each exported once and copied by tests that damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.export.artifact import Artifact
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.engine_section import EngineSection
from fvexport.export.export_options import ExportOptions
from fvexport.export.manifest import CalibrationData, QuantizationSection
from fvexport.export.onnx_export import ExportReport, export_onnx

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
Export = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None, torchlib_once: None) -> None:
    """For every test of this folder."""


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """Seeded, in train form."""
    return load_checkpoint(variant="tiny")


@pytest.fixture(scope="session")
def static(exported: Export) -> Artifact:
    return exported()


@pytest.fixture(scope="session")
def dynamic(exported: Export) -> Artifact:
    """Any batch, any resolution."""
    return exported(batch=None, dynamic_res=True)


@pytest.fixture(scope="session")
def made(made_once: Callable[..., Path], tiny: Checkpoint) -> Callable[[str], ExportReport]:
    """`made(case)`: the report of a quantized export with its verdict, made once by one of the workers.

    Not to be written to.

    On a CPU where products saturate, OpenVINO's file has the reduced range of weights.
    """
    cases: dict[str, dict[str, Any]] = {
        "tensorrt": {"precision": "int8", "target": "tensorrt"},
        "onnxruntime-cpu": {"precision": "int8", "target": "onnxruntime-cpu", "reduce_range": True},
        "openvino, as traced": {"precision": "int8", "target": "openvino", "simplify": False},
        "fp8, projector": {"precision": "fp8", "projector": True},
        "any size, uint8": {
            "precision": "int8", "target": "onnxruntime-cpu", "batch": None, "dynamic_res": True, "input": "uint8",
            "reduce_range": False,
        },
    }  # fmt: skip
    reports: dict[str, ExportReport] = {}

    def export(case: str) -> ExportReport:
        if case.startswith("openvino"):
            pytest.importorskip("openvino")  # its verdict comes from there
        if case not in reports:
            source: Any = GOLDEN / "llava_tiny" if "projector" in case else tiny
            options = ExportOptions(height=128, width=128, **cases[case])

            def write(out: Path) -> None:
                out.mkdir()
                report = export_onnx(
                    source, out / "artifact", options=options, calibration=CalibrationOptions(samples=4)
                )
                torch.save(report, out / "report")  # pickle alone cannot read tensors of FP8 back

            reports[case] = torch.load(made_once(f"quantized {case}", write) / "report", weights_only=False)
        return reports[case]

    return export


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Artifact], Path]:
    """`copied(artifact)`: a folder of its own to damage."""
    return lambda artifact: Path(shutil.copytree(artifact.path, tmp_path / f"copy-{artifact.manifest.precision}"))


@pytest.fixture(scope="session")
def distance() -> Callable[[Any, Any], float]:
    """Relative L2 in float64, of equal shapes."""

    def relative_l2(found: Any, wanted: Any) -> float:
        a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        assert a.shape == b.shape
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return relative_l2


@pytest.fixture(scope="session")
def quantization_section() -> Callable[..., QuantizationSection]:
    """`quantization_section(target="openvino", …)`: a section with these values, whatever else it needs."""

    def make(**values: Any) -> QuantizationSection:
        defaults = {
            "target": "tensorrt", "format": "int8", "float_precision": "fp32", "method": "minmax",
            "data": CalibrationData(source="sample", fingerprint="0" * 64, samples=4), "equalization": (),
            "quantized": (), "kept_float": (), "bound_db": None, "predicted": None, "blocks": {},
        }  # fmt: skip
        return QuantizationSection(**{**defaults, **values})

    return make


@pytest.fixture(scope="session")
def engine_section() -> Callable[..., EngineSection]:
    """`engine_section(flavour="tensorrt-rtx", …)`: the same of an engine for 128 x 128 pixels."""

    def make(**values: Any) -> EngineSection:
        defaults = {
            "flavour": "tensorrt", "version": "10.13.3.9", "gpu": None, "options": EngineOptions(),
            "profile": Profile(batch=(1, 1, 1), height=(128,) * 3, width=(128,) * 3), "memory": {},
            "timing_cache": None, "layers": None, "parity": None, "bound_to": "",
        }  # fmt: skip
        return EngineSection(**{**defaults, **values})

    return make
