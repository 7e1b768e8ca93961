"""An artifact through onnxruntime, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx

from ...core.dtypes import DTYPES
from ...core.errors import ArtifactError, UnavailableError, first_line
from ...core.hardware import quota_threads, usable_cpus
from ...core.utf8_path import utf8_path
from ..artifact import AGAIN, MODEL_FILE, Artifact
from ..backend_table import BackendInfo, get_backend, require, rtx_devices
from ..model_file import has_linked_weights, located_graph
from ..placement import may_saturate
from .emulate_half import with_rounding
from .pickling import Opened

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
QDQ_AS_WRITTEN = "session.disable_quant_qdq"
"""Set to 1 for FP8: up to 1.31 onnxruntime moves Q/DQ past Transpose and refuses its own graph, which has FP8 there."""
STOP_SPINNING = "session.force_spinning_stop"
"""Set to 1, threads spin during a run and not after it. By default they go on for a while, and take the cores from what
comes next: a language model's prefill, or images being decoded. Measured on two cores, with the full encoder at
256 x 256 and four layers of a 0.5B Qwen2, in three processes each: time to first token 0.87 of the default's, the
encoder alone 1.04; without any spinning (`session.intra_op.allow_spinning=0`) 0.95 and 1.18."""
SPINNING = "session.intra_op.allow_spinning"
"""Set to 0 where threads outnumber the processors: spinning, they would keep those that compute waiting."""
EXACT_PRODUCTS = "session.x64quantprecision"
"""Set to 1, weights become uint8, whose products onnxruntime adds up in 32 bits on x86 without VNNI too."""
Edit = Callable[[onnx.ModelProto], onnx.ModelProto]
"""A step between the file and the session."""


class OnnxRuntimeBackend(Opened):
    """Runs `encoder.onnx` of an artifact.

    Args:
        artifact: an opened artifact.
        target: one of those that begin with `onnxruntime`.
        threads: for one operator; None leaves it to onnxruntime, within the container's CPU quota.

    Attributes:
        source: what the session was made of: the file, or the graph with what was put in.

    Raises:
        UnavailableError: the target cannot run here.
        ArtifactError: onnxruntime refuses the file.
    """

    def __init__(self, artifact: Artifact, target: str = "onnxruntime-cpu", *, threads: int | None = None) -> None:
        self._opened(artifact, target=target, threads=threads)
        row = get_backend(target)
        require(row)
        import onnxruntime as ort

        if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
            ort.disable_telemetry_events()  # it may have been imported before this package
        if target != "onnxruntime-cpu" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds the CUDA libraries that pip installed beside torch
        precision = artifact.manifest.float_precision
        rounds = precision != "fp32" and self.rounds(precision, row)
        self.name = target
        self.computes = f"float32, each stored value rounded to {DTYPES[precision]}" if rounds else "natively"
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised, too
        options.add_session_config_entry(STOP_SPINNING, "1")
        options.intra_op_num_threads = threads or quota_threads() or 0
        if options.intra_op_num_threads > len(usable_cpus()):
            options.add_session_config_entry(SPINNING, "0")
        exact = may_saturate(artifact, target)
        if exact:
            self.computes += ", 8-bit products exact"
            options.add_session_config_entry(EXACT_PRODUCTS, "1")
        if artifact.manifest.precision == "fp8":
            options.add_session_config_entry(QDQ_AS_WRITTEN, "1")
        self.where = artifact.model_path
        with artifact.one_version():
            self.source: str | bytes = str(artifact.model_path)
            edits, folder = self.edits(artifact, precision if rounds else None, exact=exact), artifact.path
            if edits or has_linked_weights(artifact):
                model, folder = located_graph(artifact)
                for edit in edits:
                    model = edit(model)
                self.source = model.SerializeToString()
            with utf8_path(folder.resolve()) as opened:
                source: str | bytes = f"{opened}/{MODEL_FILE}"
                if isinstance(self.source, bytes):
                    source = self.source
                    options.add_session_config_entry(EXTERNAL_FOLDER, opened)
                try:
                    self.session = ort.InferenceSession(source, options, **_providers(row, precision, options))
                except Exception as error:  # onnxruntime's exceptions share no public base
                    reason = first_line(error)
                    raise ArtifactError(f"onnxruntime refuses {artifact.model_path}: {reason}; {AGAIN}") from None
        if row.provider is not None and row.provider not in self.session.get_providers():
            raise ArtifactError(f"onnxruntime could not use {row.provider}; `{row.install}`")
        entry = self.session.get_inputs()[0]
        if entry.type == "tensor(bfloat16)":
            raise UnavailableError(
                f"{artifact.model_path} takes bfloat16, which NumPy has not: run it from C++ or torch, "
                "or export without --io model"
            )
        self.input_name = entry.name
        self.input_dtype = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(entry.type, np.float32)

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W) -> features (B, N, C) float32."""
        return self.outputs(pixel_values)[0]

    def rounds(self, precision: str, row: BackendInfo) -> bool:
        """Whether each stored value of a half-precision file is rounded: BF16 on the CPU has no other way."""
        return precision not in row.precisions

    def edits(self, artifact: Artifact, half: str | None, *, exact: bool) -> list[Edit]:
        """What is done to the graph before it is loaded; its weights stay in their file.

        Args:
            artifact: whose graph it is.
            half: the precision that each stored value is rounded to, if any.
            exact: whether 8-bit products are added up in 32 bits.
        """
        found: list[Edit] = [_own_zero_points] if exact else []
        return [*found, partial(with_rounding, precision=half)] if half else found

    def outputs(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        """Every output of the graph, in float32."""
        self.check_process()
        feed = {self.input_name: pixel_values.astype(self.input_dtype, copy=False)}
        try:
            found = self.session.run(None, feed)
        except Exception as error:  # as above
            raise ArtifactError(
                f"onnxruntime cannot run {self.where} on {tuple(pixel_values.shape)}: {first_line(error)}"
            ) from None
        return [out.astype(np.float32, copy=False) for out in found]


def _providers(row: BackendInfo, precision: str, options: Any) -> dict[str, Any]:
    """What tells a session where to run: arguments of it, or an entry in its options for a plug-in."""
    if row.provider is None:
        options.add_provider_for_devices(rtx_devices(), {})
        return {}
    if row.provider == "TensorrtExecutionProvider":
        # Its networks are not strongly typed: a type is allowed or not used. Engines are not cached: onnxruntime takes
        # one for another with the same graph, whatever its weights.
        allowed = {
            "trt_fp16_enable": precision == "fp16",
            "trt_bf16_enable": precision == "bf16",
            "trt_int8_enable": True,
        }
        return {"providers": [(row.provider, allowed), "CUDAExecutionProvider", "CPUExecutionProvider"]}
    if row.provider == "CUDAExecutionProvider":
        # By default it computes float32 in TF32, from Ampere on.
        return {"providers": [(row.provider, {"use_tf32": "0"}), "CPUExecutionProvider"]}
    return {"providers": [row.provider]}


def _own_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in which each DequantizeLinear has its own zero point.

    Up to 1.31, onnxruntime's pass behind `EXACT_PRODUCTS` makes each weight's zero point anew, and fails at the second
    weight that shares one.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[2] not in constants:
            continue
        if node.input[2] in seen:
            copy = model.graph.initializer.add()
            copy.CopyFrom(constants[node.input[2]])
            copy.name = f"{node.input[0]}/zero_point"
            node.input[2] = copy.name
        seen.add(node.input[2])
    return model
