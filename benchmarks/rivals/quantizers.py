"""Each tool that makes a file of the weights: what it needs, its settings, and the call.

Every tool starts from our FP32 file but ours, which starts from the checkpoint. Settings are the tool's defaults, or
what its own documentation advises for such a model on a CPU.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import io
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...calibration.policy import Policy
from ...core.errors import UnavailableError
from ...core.versions import versions_of
from ...encoder.checkpoint import Checkpoint
from ...export.tracing import INPUT_NAME
from .data import Floats, Photographs

MADE_FILE = "made.json"
PRODUCTS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Job:
    """What a tool is given.

    Attributes:
        photographs: the calibration inputs.
        checkpoint: loads the weights.
        fp32: our FP32 file of them.
    """

    photographs: Photographs
    checkpoint: Callable[[], Checkpoint]
    fp32: Path


@dataclass(frozen=True)
class Tool:
    """One row.

    Attributes:
        settings: in words.
        make: writes into the empty folder it is given, and returns the model's path.
        needs: modules that must be installed.
        install: the command that installs them.
    """

    settings: str
    make: Callable[[Job, Path], Path]
    needs: tuple[str, ...] = ()
    install: str = ""


@dataclass(frozen=True)
class Made:
    """A file that a tool made.

    Attributes:
        path: the model.
        size: bytes of it and its weights.
        seconds: it took to make.
        versions: of the tools at that time.
        reused: it stood in the folder already.
    """

    path: Path
    size: int
    seconds: float
    versions: dict[str, str]
    reused: bool


def make(tool: Tool, job: Job, folder: Path) -> Made:
    """Runs a tool, or takes the file it left in `folder` with the same settings.

    Raises UnavailableError where the tool is not installed and has left no file.
    """
    note = folder / MADE_FILE
    if note.exists() and (known := json.loads(note.read_text("utf-8")))["settings"] == tool.settings:
        path = folder / known["path"]
        return Made(path, _size(path), known["seconds"], known["versions"], reused=True)
    missing = [name for name in tool.needs if _absent(name)]
    if missing:
        raise UnavailableError(f"{missing[0]} is not installed: {tool.install}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    try:
        with _quiet():
            path = tool.make(job, folder)
    finally:
        release()
    made: dict[str, Any] = {
        "path": str(path.relative_to(folder)), "settings": tool.settings, "seconds": time.perf_counter() - start,
        "versions": versions_of("fvexport", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
                                "nvidia-modelopt"),
    }  # fmt: skip
    note.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return Made(path, _size(path), made["seconds"], made["versions"], reused=False)


def release() -> None:
    """Hands memory that nobody holds any more back to the system, which glibc does not do by itself."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _absent(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is None or spec.origin is None  # without an origin it is a folder that happens to have the name


def _size(model: Path) -> int:
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.stem}.*"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars and remarks of the tools off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- ours --------------------------------------------------------------------------------------


def _ours(job: Job, folder: Path, **options: Any) -> Path:
    """Our exporter with these `ExportOptions`, without its own check: all candidates are judged by the same one."""
    from ...calibration.calibration_options import CalibrationOptions
    from ...export.export_options import ExportOptions
    from ...export.onnx_export import export_onnx

    shown = job.photographs
    report = export_onnx(
        job.checkpoint(), folder / "artifact", parity=False,
        options=ExportOptions(height=shown.resolution, width=shown.resolution, **options),
        calibration=CalibrationOptions(calib=shown.listing, samples=shown.samples) if "target" in options else None,
    )  # fmt: skip
    return report.artifact.model_path


# --- onnxruntime -------------------------------------------------------------------------------


class _Reader:
    """A `CalibrationDataReader` that prepares one photograph at a time."""

    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return self.photographs.samples

    def set_range(self, start_index: int, end_index: int) -> None:
        self.indices = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Floats] | None:
        index = next(self.indices, None)
        return None if index is None else {INPUT_NAME: self.photographs.sample(index)}


def _ort_default(job: Job, folder: Path) -> Path:
    return _quantize_static(job, folder, {})


def _ort_best(job: Job, folder: Path, *, our_layers: bool = False) -> Path:
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
    return _quantize_static(job, folder, settings, our_layers=our_layers)


def _quantize_static(job: Job, folder: Path, settings: dict[str, Any], *, our_layers: bool = False) -> Path:
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, model = folder / "prepared.onnx", folder / "model.onnx"
    quant_pre_process(str(job.fp32), str(prepared))
    if our_layers:
        nodes = onnx.load(str(prepared), load_external_data=False).graph.node
        policy = Policy("onnxruntime-cpu")
        settings = settings | {
            "nodes_to_exclude": [n.name for n in nodes if not policy.quantizes(n.name.partition("/")[0])]
        }
    quantize_static(str(prepared), str(model), _Reader(job.photographs), **settings)
    prepared.unlink()
    return model


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


ORT_NEEDS = (("onnxruntime",), "pip install onnxruntime")
NNCF_NEEDS = (("nncf", "openvino"), "pip install nncf openvino")
MODELOPT_NEEDS = (("modelopt",), "pip install nvidia-modelopt[onnx], which wants older onnx and onnxruntime")

TOOLS: dict[str, Tool] = {
    "fp32": Tool("fvexport, FP32", partial(_ours, precision="fp32")),
    "ort-default": Tool("quantize_static, defaults: QDQ, int8, per tensor, min-max", _ort_default, *ORT_NEEDS),
    "ort-best": Tool(
        "quantize_static: QDQ, uint8 activations, int8 weights per channel, Conv, MatMul and Gemm, percentile 99.99",
        _ort_best, *ORT_NEEDS,
    ),
    "ort-our-layers": Tool(
        "the same, told to quantize the layers of our policy alone", partial(_ort_best, our_layers=True), *ORT_NEEDS
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
