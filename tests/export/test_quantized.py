"""INT8 and FP8 files compute what PyTorch does, run everywhere they should, and are refused where they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper

from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.core.errors import ConfigError, ExportError
from fvexport.core.progress import silent
from fvexport.core.records import plain
from fvexport.core.verdict.figures import compare
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.export import onnx_export
from fvexport.export.artifact import Artifact
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import ExportReport, export_onnx
from fvexport.export.parity_backends import ParityOnnxRuntime
from fvexport.export.prepare import prepare
from fvexport.export.rules import check_quantized
from fvexport.export.runtime import Encoder, OnnxRuntimeBackend, OpenVinoBackend
from fvexport.export.simplification import _output

ort = pytest.importorskip("onnxruntime")

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FEW = CalibrationOptions(samples=4)
BLOCKS = [f"stages.{s}.blocks.{i}" for s, depth in enumerate((1, 1, 2, 1, 1)) for i in range(depth)]
CONVOLUTIONS = [f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")]
PRODUCTS = [f"{block}.token_mixer.{layer}" for block in BLOCKS[-2:] for layer in ("qkv", "proj")]
LAYERS = {*CONVOLUTIONS, *PRODUCTS}
CASES = ["tensorrt", "onnxruntime-cpu", "openvino, as traced", "fp8, projector", "any size, uint8"]
Made = Callable[[str], ExportReport]


def load(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.model_path)


def source_of(case: str, tiny: Checkpoint) -> Checkpoint:
    return load_checkpoint(GOLDEN / "llava_tiny") if "projector" in case else tiny


def options_of(report: ExportReport) -> ExportOptions:
    return ExportOptions(**{k: v for k, v in vars(report.artifact.manifest.options).items() if k != "connector"})


# --- what it computes --------------------------------------------------------------------------


def eager(case: str, report: ExportReport, tiny: Checkpoint) -> FastViTHD:
    """The very module that was exported: calibration and rounding give the same every time."""
    return prepare(source_of(case, tiny), options_of(report), FEW, {}, silent).encoder


def as_written(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    """Without graph optimizations, which multiply integers and so round sums elsewhere."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": feed})[0]


@pytest.mark.parametrize("case", ["onnxruntime-cpu", "openvino, as traced", "any size, uint8"])
def test_the_file_is_the_eager_model(
    made: Made, tiny: Checkpoint, photographs: dict[str, Path], distance: Any, case: str
) -> None:
    model, distances = eager(case, made(case), tiny), []
    for name in ("astronaut", "camera", "coffee", "rocket", "brick"):
        levels = Preprocessor(128, 128).pixels(photographs[name])[None]
        feed = levels if "uint8" in case else levels.astype(np.float32) / 255
        with torch.inference_mode():
            wanted = model(torch.from_numpy(feed))
        distances.append(distance(as_written(load(made(case).artifact), feed), wanted))
    # A value within float32's noise of a tie is rounded either way, and then changes what follows it. A picture without
    # such a value shows that nothing else differs.
    assert sorted(distances)[1] < 1e-5 and max(distances) < 5e-2, distances


@pytest.mark.parametrize("case", ["tensorrt", "fp8, projector"])
def test_the_file_holds_the_eager_models_weights(made: Made, tiny: Checkpoint, case: str) -> None:
    wanted = eager(case, made(case), tiny).half().state_dict()
    stored = {t.name: numpy_helper.to_array(t) for t in load(made(case).artifact).graph.initializer}
    checked = 0
    for name, value in wanted.items():
        if name in stored and value.numel() > 1 and not name.endswith("zero_point"):
            np.testing.assert_array_equal(stored[name].astype(np.float32), value.float().numpy())
            checked += 1
    assert checked > 70


@pytest.mark.parametrize("case", CASES)
def test_verdict(made: Made, case: str) -> None:
    report = made(case)
    verdict, manifest = report.verdict, report.artifact.manifest
    assert verdict.status == "pass"
    assert verdict.figures.sqnr_db > (18 if case.startswith("fp8") else 25)
    assert verdict.figures.rel_l2 <= 1.41 * verdict.torch.rel_l2
    judge = "openvino" if case.startswith("openvino") else "onnxruntime-cpu"
    assert verdict.backend.startswith(judge)
    assert verdict.first_bad_layer is None
    assert verdict.layers[0].name == "stem.0" and len(verdict.layers) == 16
    assert plain(manifest.parity) == json.loads(json.dumps(verdict.to_dict()))
    assert plain(manifest.quantization.predicted) == verdict.torch.to_dict()
    assert manifest.quantization.blocks == {layer.name: layer.torch_rel_l2 for layer in verdict.layers}
    assert any("scikit-image ships" in notice for notice in report.notices)


def test_other_sizes_and_batches(made: Made, tiny: Checkpoint, distance: Any) -> None:
    """Calibrated and traced at 128 x 128, run at others, several at once, as uint8."""
    backend = OnnxRuntimeBackend(made("any size, uint8").artifact)
    photo = np.random.default_rng(0).integers(0, 256, (3, 4, 6)).astype(np.uint8)
    for batch, height, width in ((1, 64, 64), (3, 192, 128), (2, 64, 256)):
        smooth = np.kron(photo, np.ones((1, height // 4, width // 6 + 1), np.uint8))[:, :, :width]
        levels = np.stack([np.roll(smooth, 16 * i, 2) for i in range(batch)])
        found = backend.run(levels)
        assert found.shape == (batch, height * width // 64**2, 256)
        with torch.inference_mode():
            wanted = tiny.encoder(torch.from_numpy(levels).float() / 255)
        assert distance(found, wanted) < 0.25
        assert distance(found[-1:], backend.run(levels[-1:])) < 0.05
    assert made("any size, uint8").verdict.resolutions == ["128x128", "64x64"]


def test_projector(made: Made, photographs: dict[str, Path]) -> None:
    """The connector stands behind the encoder, in float, and the features keep their direction."""
    artifact = made("fp8, projector").artifact
    checkpoint = load_checkpoint(GOLDEN / "llava_tiny")
    pixels = Preprocessor(128, 128)(photographs["astronaut"])
    with torch.inference_mode():
        wanted = checkpoint.connector(checkpoint.encoder(torch.from_numpy(pixels))).numpy()
    found = OnnxRuntimeBackend(artifact).run(pixels)
    assert found.shape == wanted.shape == (1, 4, 64)
    assert compare(wanted, found).sqnr_db > 15
    names = {t.name for t in load(artifact).graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN}
    assert not [n for n in names if n.startswith("connector")]


# --- runtimes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["onnxruntime-cpu", "openvino, as traced", "tensorrt"])
def test_openvino_runs_int8(
    made: Made, tiny: Checkpoint, photographs: dict[str, Path], case: str, saturates: bool
) -> None:
    pytest.importorskip("openvino")
    if case == "tensorrt" and saturates:
        pytest.skip("OpenVINO's 8-bit products saturate on this CPU, and a file for TensorRT has the full range")
    backend = OpenVinoBackend(made(case).artifact)
    assert backend.computes.startswith("int8, all else in ")
    pixels = Preprocessor(128, 128)(photographs["coffee"])
    with torch.inference_mode():
        wanted = tiny.encoder(torch.from_numpy(pixels)).numpy()
    assert compare(wanted, backend.run(pixels)).sqnr_db > 22


@pytest.mark.parametrize("emulate_half", [False, True])
def test_onnxruntime_runs_fp8(made: Made, photographs: dict[str, Path], emulate_half: bool) -> None:
    """Left to itself its optimizer puts FP8 where its own operators refuse it."""
    artifact = made("fp8, projector").artifact
    backend = ParityOnnxRuntime(artifact, emulate_half=emulate_half, taps=["stages.3.blocks.0"])
    features, inner = backend.run_taps(Preprocessor(128, 128)(photographs["coffee"]))
    assert np.isfinite(features).all() and np.isfinite(inner["stages.3.blocks.0"]).all()
    assert Encoder(artifact)(photographs["coffee"]).shape == (1, 4, 64)


def test_simplification_can_run_fp8(made: Made) -> None:
    artifact = made("fp8, projector").artifact
    options = options_of(made("fp8, projector"))
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128)).astype(np.uint8)
    wanted = ParityOnnxRuntime(artifact, emulate_half=True).run(levels.astype(np.float32) / 255)
    assert compare(wanted, _output(ir.load(artifact.model_path), options)).rel_l2 < 1e-6


# --- refusals ----------------------------------------------------------------------------------


def test_the_graph_is_checked_against_the_policy(made: Made) -> None:
    model = onnx.load(made("tensorrt").artifact.model_path, load_external_data=False)
    with pytest.raises(ExportError, match=r"other layers than the policy: without \['final_conv'\]"):
        check_quantized(model, {*LAYERS, "final_conv"})
    with pytest.raises(ExportError, match=f"with \\['{CONVOLUTIONS[0]}'\\]"):
        check_quantized(model, LAYERS - {CONVOLUTIONS[0]})


def test_a_quantized_file_that_fails_is_not_written(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that is not what was prepared: found although eight bits lose much more than float32 does."""
    trace = onnx_export.trace

    def wrong(module: Any, options: ExportOptions) -> Any:
        model = trace(module, options)
        name = "stages.2.blocks.0.mlp.fc1.weight_scale"
        scale = model.graph.initializers[name]
        scale.const_value = ir.tensor(3 * scale.const_value.numpy(), name=name)
        return model

    monkeypatch.setattr(onnx_export, "trace", wrong)
    options = ExportOptions(height=64, width=64, precision="int8", target="tensorrt")
    with pytest.raises(ExportError, match="parity failed, nothing written"):
        export_onnx(tiny, tmp_path / "out", options=options, calibration=FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "calibration",
    [CalibrationOptions(calib="nowhere"), CalibrationOptions(ranges="nowhere.json")],
    ids=["pictures", "ranges"],
)
def test_nothing_to_calibrate_on(tmp_path: Path, tiny: Checkpoint, calibration: CalibrationOptions) -> None:
    with pytest.raises(Exception, match="nowhere") as caught:
        export_onnx(
            tiny,
            tmp_path / "out",
            options=ExportOptions(height=64, width=64, precision="int8"),
            calibration=calibration,
        )
    assert type(caught.value).__name__ in ("ConfigError", "ImageError")
    assert not list(tmp_path.iterdir())


def test_a_bound_out_of_reach_is_found_before_the_trace(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace", None)
    calibration = CalibrationOptions(samples=2, min_sqnr=150)
    with pytest.raises(ConfigError, match=r"no quantized model reaches 150\.0 dB.*--min-sqnr"):
        export_onnx(
            tiny,
            tmp_path / "out",
            options=ExportOptions(height=64, width=64, precision="int8"),
            calibration=calibration,
        )
    assert not list(tmp_path.iterdir())
