"""Each tool that makes a file of the weights: what it needs, its settings, and the call.

Every tool starts from our FP32 file but ours, which starts from the checkpoint. Settings are the tool's defaults, or
what its own documentation advises for such a model on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ....calibration.calibration_options import CalibrationOptions
from ....calibration.policy import Policy
from ....export.export_options import ExportOptions
from ....export.onnx_export import export_onnx
from ...peers.quantize_static import DEFAULT as ORT_DEFAULT
from ...peers.quantize_static import NEEDS as ORT_NEEDS
from ...peers.quantize_static import quantize_static
from ...peers.tool_files import Job, Tool

PRODUCTS = ("Conv", "MatMul", "Gemm")


# --- ours --------------------------------------------------------------------------------------


def _ours(job: Job, folder: Path, **options: Any) -> Path:
    """Our exporter with these `ExportOptions`, without its own check: all candidates are judged by the same one."""
    shown = job.photographs
    report = export_onnx(
        job.checkpoint(), folder / "artifact", parity=False,
        options=ExportOptions(height=shown.resolution, width=shown.resolution, **options),
        calibration=CalibrationOptions(calib=shown.listing, samples=shown.samples) if "target" in options else None,
    )  # fmt: skip
    return report.artifact.model_path


# --- onnxruntime -------------------------------------------------------------------------------


def _ort_best(job: Job, folder: Path, quantizes: Callable[[str], bool] | None = None) -> Path:
    """The settings of the best signal over error found: fastvithd at 256 px, 8 samples, worst photograph in dB.

    Defaults 9.6. Then uint8 x int8: min-max on every operator, per channel 10.5; on products alone, per tensor 9.8, per
    channel 11.0; with entropy 11.0, percentile 99.9 9.6, 99.99 12.7, 99.999 10.2; 99.99 with symmetric ranges 12.6.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType

    settings = {
        "per_channel": True, "reduce_range": False, "op_types_to_quantize": list(PRODUCTS),
        "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.Percentile,
        "extra_options": {
            "CalibPercentile": 99.99, "CalibTensorRangeSymmetric": False,
            # One sample at a time: otherwise all activations of all samples are held at once.
            "CalibStridedMinMax": 1,
        },
    }  # fmt: skip
    return quantize_static(job, folder, settings, quantizes)


def _ort_our_layers(job: Job, folder: Path) -> Path:
    policy = Policy("onnxruntime-cpu")
    return _ort_best(job, folder, lambda node: policy.quantizes(node.partition("/")[0]))


# --- NNCF --------------------------------------------------------------------------------------


def _nncf(job: Job, folder: Path, transformer: bool) -> Path:
    import openvino as ov

    nncf = import_module("nncf")
    settings = {}
    if transformer:
        settings = {"model_type": nncf.ModelType.TRANSFORMER, "preset": nncf.QuantizationPreset.MIXED}
    samples = job.photographs.samples
    data = nncf.Dataset(list(range(samples)), job.photographs.sample)
    model = nncf.quantize(ov.Core().read_model(str(job.fp32)), data, subset_size=samples, **settings)
    path = folder / "model.xml"
    ov.save_model(model, str(path), compress_to_fp16=False)
    return path


# --- ModelOpt ----------------------------------------------------------------------------------


def _modelopt(job: Job, folder: Path) -> Path:
    from modelopt.onnx.quantization import quantize

    data = np.concatenate([job.photographs.sample(i) for i in range(job.photographs.samples)])
    path = folder / "model.onnx"
    quantize(
        str(job.fp32), calibration_data=data, calibration_eps=["cpu"], high_precision_dtype="fp32",
        output_path=str(path), log_level="ERROR",
    )  # fmt: skip
    return path


NNCF_NEEDS = (("nncf", "openvino"), "pip install nncf openvino")
MODELOPT_NEEDS = (("modelopt",), "pip install nvidia-modelopt[onnx], which wants older onnx and onnxruntime")

TOOLS: dict[str, Tool] = {
    "fp32": Tool("fvexport, FP32", partial(_ours, precision="fp32")),
    "ort-default": ORT_DEFAULT,
    "ort-best": Tool(
        "quantize_static: QDQ, uint8 activations, int8 weights per channel, Conv, MatMul and Gemm, percentile 99.99",
        _ort_best, *ORT_NEEDS,
    ),
    "ort-our-layers": Tool(
        "the same, told to quantize the layers of our policy alone", _ort_our_layers, *ORT_NEEDS
    ),
    "nncf-default": Tool("nncf.quantize, defaults", partial(_nncf, transformer=False), *NNCF_NEEDS),
    "nncf-transformer": Tool(
        "nncf.quantize: model type transformer, preset mixed", partial(_nncf, transformer=True), *NNCF_NEEDS
    ),
    "ours-onnxruntime": Tool(
        "fvexport, INT8 for onnxruntime-cpu, defaults", partial(_ours, precision="int8", target="onnxruntime-cpu")
    ),
    "ours-openvino": Tool("fvexport, INT8 for openvino, defaults", partial(_ours, precision="int8", target="openvino")),
    # Last: it puts functions of its own in place of onnxruntime.quantization's.
    "modelopt": Tool("modelopt.onnx.quantization.quantize, defaults, float32 around", _modelopt, *MODELOPT_NEEDS),
}  # fmt: skip
"""In the order in which they run."""
