"""An artifact through OpenVINO, on the CPU."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from ...core.errors import ArtifactError, FvexportError, UnavailableError
from ...core.hardware import quota_threads
from ...core.utf8_path import utf8_path
from ...encoder.layers import encoder_layers
from ..artifact import AGAIN, Artifact
from ..backend_table import get_backend, has_bf16, import_openvino, require, stored_precision
from ..manifest import Manifest
from ..model_file import has_linked_weights, read_model
from .pickling import Opened

REQUESTS = 2
"""Calls at once: one computes while another's arrays are copied. OpenVINO has one stream, so more gain nothing."""


class OpenVinoBackend(Opened):
    """Runs `encoder.onnx` of an artifact. A request serves one call at a time; further calls wait for one.

    Args:
        artifact: an opened artifact.
        target: `openvino`.
        threads: for one image; None leaves it to OpenVINO, within the container's CPU quota.

    Attributes:
        settings: what the model was compiled with.

    Raises:
        UnavailableError: OpenVINO is not installed, or the file takes what NumPy has not.
        ArtifactError: OpenVINO refuses the file.
    """

    def __init__(self, artifact: Artifact, target: str = "openvino", *, threads: int | None = None) -> None:
        self._opened(artifact, target=target, threads=threads)
        row = get_backend(target)
        require(row)
        openvino = import_openvino()
        core = openvino.Core()
        manifest, self.where = artifact.manifest, artifact.model_path
        if manifest.options.attention_plugin:
            raise UnavailableError(
                f"OpenVINO reads no ONNX functions, which {artifact.path} has for its attention; "
                "export it again without --attention-plugin, or run it with onnxruntime"
            )
        # Left to itself OpenVINO computes float32 files in bfloat16 too, where the CPU has it.
        bf16 = stored_precision(row, manifest.precision, manifest.float_precision) == "bf16" and has_bf16()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if count := threads or quota_threads():
            settings["INFERENCE_NUM_THREADS"] = count
        if bf16 and _fuses_wrongly(manifest):
            settings["SNIPPETS_MODE"] = "DISABLE"
        self.name, self.settings = target, settings
        words = "bfloat16" if bf16 else "float32"
        quantized = {"int8": f"int8, all else in {words}", "fp8": f"{words}, rounded to FP8 at each Q/DQ pair"}
        self.computes = quantized.get(manifest.precision, words)
        try:
            with artifact.one_version():
                if has_linked_weights(artifact):
                    model = core.read_model(read_model(artifact).SerializeToString())
                else:
                    with utf8_path(artifact.model_path) as file:
                        model = core.read_model(file)
                self.edit(model, artifact)
                self.input_dtype = _input_dtype(model, artifact, openvino)
                self.model = core.compile_model(_float32_outputs(model, openvino), row.provider, settings)
        except Exception as error:  # RuntimeError, mostly; its Python part raises others
            if isinstance(error, FvexportError):
                raise
            raise ArtifactError(f"OpenVINO refuses {artifact.model_path}: {_last_line(error)}; {AGAIN}") from None
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(REQUESTS):
            self._requests.put(self.model.create_infer_request())

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W) -> features (B, N, C) float32."""
        features: np.ndarray = self.outputs(pixel_values)[self.model.output(0)]
        return features

    def edit(self, model: Any, artifact: Artifact) -> None:
        """What is done to the graph before it is compiled."""

    def outputs(self, pixel_values: np.ndarray) -> Any:
        """Every output of the graph, by OpenVINO's port."""
        self.check_process()
        values = pixel_values.astype(self.input_dtype, copy=False)
        request = self._requests.get()
        try:
            # The results are copies (`share_outputs` is off), made before the request serves another call.
            return request.infer([values], share_inputs=True)
        except Exception as error:  # as above
            raise ArtifactError(
                f"OpenVINO cannot run {self.where} on {tuple(pixel_values.shape)}: {_last_line(error)}"
            ) from None
        finally:
            self._requests.put(request)


def _fuses_wrongly(manifest: Manifest) -> bool:
    """Whether OpenVINO's fused attention would be wrong for this file.

    In bfloat16, at fixed sizes, it returns other values where there are as many tokens as heads: relative L2 error 0.5
    to 0.9, seen from 2025.0 to 2026.4, at no other number of tokens, nor unfused. The released encoder meets it at
    512 x 384, with 48 of each in its last stage.
    """
    height, width = manifest.input.shape[2:]
    if not (isinstance(height, int) and isinstance(width, int)):
        return False
    layers = encoder_layers(manifest.architecture, height, width)
    return any(layer.kind == "attention" and layer.positions == layer.heads for layer in layers)


def _input_dtype(model: Any, artifact: Artifact, openvino: Any) -> np.dtype[Any]:
    kind = model.input(0).element_type
    if kind == openvino.Type.bf16:
        raise UnavailableError(
            f"{artifact.model_path} takes bfloat16, which NumPy has not: run it from C++ or torch, "
            "or export without --io model"
        )
    return np.dtype(kind.to_dtype())


def _float32_outputs(model: Any, openvino: Any) -> Any:
    """The model with every other output converted to float32.

    OpenVINO hands bfloat16 to NumPy as float16 of the same bits. An output that is float32 already stays untouched: a
    step that converts nothing made INT8 at 1024 x 1024 a sixth slower.
    """
    from openvino.preprocess import PrePostProcessor

    others = [i for i, output in enumerate(model.outputs) if output.element_type != openvino.Type.f32]
    if not others:
        return model
    steps = PrePostProcessor(model)
    for index in others:
        steps.output(index).tensor().set_element_type(openvino.Type.f32)
    return steps.build()


def _last_line(error: Exception) -> str:
    """What went wrong: OpenVINO's messages begin with the places in its source that it passed through."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
