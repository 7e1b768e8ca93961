"""onnxruntime's `quantize_static`, on the photographs that every tool calibrates on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ...export.tensor_names import INPUT_NAME
from .photos import Floats, Photographs
from .tool_files import Job, Tool

NEEDS = (("onnxruntime",), "pip install onnxruntime")


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


def quantize_static(
    job: Job, folder: Path, settings: dict[str, Any], quantizes: Callable[[str], bool] | None = None
) -> Path:
    """Quantizes the FP32 file of `job` into `folder`, and returns the model's path.

    Args:
        job: what to quantize, and on which photographs to calibrate.
        folder: an empty folder.
        settings: of `onnxruntime.quantization.quantize_static`.
        quantizes: whether to quantize the node of that name; by default onnxruntime decides.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, model = folder / "prepared.onnx", folder / "model.onnx"
    quant_pre_process(str(job.fp32), str(prepared))
    if quantizes is not None:
        nodes = onnx.load(str(prepared), load_external_data=False).graph.node
        settings = settings | {"nodes_to_exclude": [n.name for n in nodes if not quantizes(n.name)]}
    quantization.quantize_static(str(prepared), str(model), _Reader(job.photographs), **settings)
    prepared.unlink()
    return model


DEFAULT = Tool(
    "quantize_static, defaults: QDQ, int8, per tensor, min-max", lambda job, folder: quantize_static(job, folder, {}),
    *NEEDS,
)  # fmt: skip
