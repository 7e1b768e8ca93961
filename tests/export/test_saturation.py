"""Pairs of weights that saturate: against 16-bit arithmetic, and in files against what runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fvexport.calibration.gptq import REDUCED_LIMIT
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export import placement
from fvexport.export.artifact import Artifact
from fvexport.export.manifest import Manifest, Saturation
from fvexport.export.onnx_export import ExportReport
from fvexport.export.runtime.onnxruntime_backend import OnnxRuntimeBackend
from fvexport.export.saturation import count_saturating, saturating_pairs, saturation_of

Made = Callable[[str], ExportReport]


def cut_off(weight: np.ndarray) -> int:
    """Pairs whose sum 16 bits cannot hold with some activations: the largest for one sign, 0 for the other."""
    count = 0
    for row in weight.astype(int):
        for a, b in zip(row[::2], row[1::2], strict=False):
            for x in (0, 255):
                for y in (0, 255):
                    if not -(2**15) <= a * x + b * y < 2**15:
                        count += 1
    return count


@given(arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 9))))
def test_pairs_are_those_that_16_bits_cannot_hold(weight: np.ndarray) -> None:
    assert saturating_pairs(weight) == cut_off(weight)
    assert saturating_pairs(weight.clip(-REDUCED_LIMIT, REDUCED_LIMIT)) == 0


def test_the_ends() -> None:
    weight = np.array([[64, 64, 64, 65, -64, -65, 127, -127, -128, 0]], np.int8)
    assert saturating_pairs(weight) == 2


def test_files_record_their_pairs(made: Made) -> None:
    """The full range has some in every layer, the reduced one has none, and both are counted from the file."""
    full, reduced = made("any size, uint8").artifact, made("onnxruntime-cpu").artifact
    record = full.manifest.quantization.saturation
    assert record.affected == sum(record.layers.values()) > 0
    assert set(record.layers) <= set(full.manifest.quantization.quantized)
    assert reduced.manifest.quantization.saturation == Saturation(pairs=record.pairs, affected=0, layers={})
    assert (full.manifest.quantization.reduce_range, reduced.manifest.quantization.reduce_range) == (False, True)
    model = onnx.load(str(reduced.model_path))
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(w.astype(int)).max() for w in weights) == REDUCED_LIMIT


def test_a_file_without_a_record_is_counted(made: Made) -> None:
    artifact = made("any size, uint8").artifact
    content = artifact.manifest.to_dict()
    del content["quantization"]["saturation"], content["quantization"]["reduce_range"]
    opened = Artifact(artifact.path, Manifest.from_dict(content))
    assert saturation_of(opened) == artifact.manifest.quantization.saturation
    assert count_saturating(onnx.load(str(artifact.model_path))) == saturation_of(artifact)


def test_onnxruntime_multiplies_exactly(
    made: Made, tiny: Checkpoint, distance: Any, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    """Levels at their ends, where products are largest: with the exact products as with PyTorch's, at any size."""
    from fvexport.calibration.calibration_options import CalibrationOptions
    from fvexport.core.progress import silent
    from fvexport.export.export_options import ExportOptions
    from fvexport.export.prepare import prepare

    artifact = made("any size, uint8").artifact
    names = {field.name for field in dataclasses.fields(ExportOptions)}
    options = ExportOptions(**{name: getattr(artifact.manifest.options, name) for name in names})
    eager = prepare(tiny, options, CalibrationOptions(samples=4), {}, silent).encoder
    rng = np.random.default_rng(0)
    levels = np.kron(rng.choice([0, 255], (1, 3, 16, 16)), np.ones((8, 8), int)).astype(np.uint8)
    with torch.inference_mode():
        wanted = eager(torch.from_numpy(levels)).numpy()
    monkeypatch.setattr(placement, "products_saturate", lambda: True)
    exact = OnnxRuntimeBackend(artifact)
    assert exact.computes == "natively, 8-bit products exact"
    monkeypatch.setattr(placement, "products_saturate", lambda: False)
    plain = OnnxRuntimeBackend(artifact)
    assert plain.computes == "natively"
    assert distance(exact.run(levels), wanted) < 2e-2
    if saturates:
        assert distance(plain.run(levels), wanted) > 2 * distance(exact.run(levels), wanted)


def test_a_reduced_file_needs_no_care(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(placement, "products_saturate", lambda: True)
    full, reduced = made("any size, uint8").artifact, made("onnxruntime-cpu").artifact
    for backend in ("onnxruntime-cpu", "openvino"):
        assert placement.may_saturate(full, backend) and not placement.may_saturate(reduced, backend)
    assert not placement.may_saturate(full, "tensorrt")
    assert not placement.may_saturate(made("tensorrt").artifact, "onnxruntime-cpu")  # multiplies in float
    (notice,) = placement.runtime_notices(full, "onnxruntime-cpu")
    assert "8-bit products saturate" in notice and "computed exactly" in notice
    (notice,) = placement.runtime_notices(full, "openvino")
    assert "features can be wrong" in notice and "--reduce-range" in notice
    assert placement.runtime_notices(reduced, "onnxruntime-cpu") == []
