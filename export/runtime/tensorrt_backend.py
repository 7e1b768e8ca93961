"""An artifact's engine through TensorRT, on torch's GPU memory.

Source of the order of calls: NVIDIA's "TensorRT Python API" (docs.nvidia.com/deeplearning/tensorrt), for 10.x and 11.x
alike: shapes, then addresses, then `execute_async_v3` on a stream of our own.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.dtypes import torch_dtype
from ...core.errors import ArtifactError
from ...core.hashing import file_sha256
from ...core.utf8_path import utf8_path
from ...kernels.capture import captured
from ..artifact import PLAN_FILE, Artifact
from ..backend_table import get_backend, require
from ..engines.api import load_api
from ..engines.binding import REBUILD, check_binding, current_gpu
from ..engines.engine_options import EngineOptions
from ..engines.layers import NAMES
from ..tensor_names import INPUT_NAME, OUTPUT_NAME
from .pickling import Opened
from .pixels import as_tensor

MAX_SHAPES = 4
"""Input shapes that are kept ready; each holds the engine's activations once."""


class TensorRTBackend(Opened):
    """Runs `encoder.plan` of an artifact.

    Each input shape has an execution context and buffers of its own and, from its second run on, a CUDA graph: the
    engine's kernels start with one call. (A graph holds what its context had when it was made, so none serves two
    shapes.) Tensors that lie on the GPU are not copied through the host. Calls may come from any thread and stream;
    each has the buffers to itself until its result is copied.

    Args:
        artifact: an opened artifact with an engine.
        target: `tensorrt` or `tensorrt-rtx`.
        threads: ignored; accepted so that backends share a signature.
        cuda_graph: whether graphs are made.

    Raises:
        UnavailableError: the target cannot run here.
        ArtifactError: no engine, a changed one, or one for another TensorRT or GPU.
    """

    def __init__(
        self, artifact: Artifact, target: str = "tensorrt", *, threads: int | None = None, cuda_graph: bool = True
    ) -> None:
        self._opened(artifact, target=target, threads=threads, cuda_graph=cuda_graph)
        row = get_backend(target)
        manifest = artifact.manifest
        if manifest.engine is None:
            raise ArtifactError(
                f"{artifact.path} holds no engine: `fvexport trt --artifact {artifact.path}` builds one"
            )
        require(row)
        api = load_api("tensorrt-rtx" if target == "tensorrt-rtx" else "tensorrt", to_build=False)
        check_binding(str(artifact.path), manifest.engine, api, current_gpu())
        plan = artifact.path / PLAN_FILE
        with artifact.one_version():
            if PLAN_FILE not in manifest.files or file_sha256(plan) != manifest.files[PLAN_FILE].sha256:
                raise ArtifactError(f"{plan} was changed after it was built (SHA-256 differs): {REBUILD}")
        self.name, self._api = target, api
        self.profile = manifest.engine.profile
        self.computes = f"{api.title}, {manifest.precision}" + (", CUDA graphs" if cuda_graph else "")
        self.device = torch.device("cuda", 0)
        self._cuda_graph = cuda_graph
        self._log = _Messages()
        with artifact.one_version():
            self._engine = _load(api.trt, plan, artifact, self._log, manifest.engine.options)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._dtypes = {name: _torch_dtype(self._engine.get_tensor_dtype(name)) for name in (INPUT_NAME, OUTPUT_NAME)}
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._lock = threading.Lock()

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W) -> features (B, N, C) float32."""
        features: np.ndarray = self.run_tensor(as_tensor(pixel_values)).float().cpu().numpy()
        return features

    def run_tensor(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` (B, 3, H, W) on any device -> features (B, N, C) on the GPU, in the engine's output type.

        Raises ConfigError for a shape outside the engine's profile.
        """
        self.check_process()
        batch, _, height, width = pixel_values.shape
        self.profile.check(batch, height, width)
        # One stream runs all calls in the order of their launches: the lock keeps a call's launches together.
        with self._lock:
            shape = self._shapes.get(tuple(pixel_values.shape)) or self._prepare(tuple(pixel_values.shape))
            caller = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                # Not `non_blocking`: from pinned memory that returns before the host's tensor was read.
                shape.pixels.copy_(pixel_values.to(self.device))
                self._execute(shape)
                features = shape.features.clone()
            caller.wait_stream(self._stream)
            features.record_stream(caller)
        return features

    def _prepare(self, size: tuple[int, ...]) -> _Shape:
        """A context and buffers for one input shape; the oldest shape's go where there are too many."""
        while len(self._shapes) >= MAX_SHAPES:
            torch.cuda.synchronize(self.device)
            self._shapes.pop(next(iter(self._shapes)))
        context = self._api.create_context(self._engine)
        if context is None:
            raise ArtifactError(
                f"TensorRT has no memory to run the engine ({self._log.reason()}); free some of the GPU's"
            )
        if not context.set_input_shape(INPUT_NAME, size):
            raise ArtifactError(f"TensorRT refuses an input of {size}: {self._log.reason()}")
        pixels = torch.empty(size, dtype=self._dtypes[INPUT_NAME], device=self.device)
        sizes = tuple(context.get_tensor_shape(OUTPUT_NAME))
        features = torch.empty(sizes, dtype=self._dtypes[OUTPUT_NAME], device=self.device)
        context.set_tensor_address(INPUT_NAME, pixels.data_ptr())
        context.set_tensor_address(OUTPUT_NAME, features.data_ptr())
        self._shapes[size] = shape = _Shape(context, pixels, features)
        return shape

    def _execute(self, shape: _Shape) -> None:
        """Starts the engine on our stream, through the shape's graph once there is one."""
        if shape.graph is not None:
            shape.graph.replay()
            return
        self._enqueue(shape)  # also does what TensorRT puts off until a shape is first run, which no graph may hold
        if self._cuda_graph and shape.runs:
            self._stream.synchronize()
            shape.graph, _ = captured(lambda: self._enqueue(shape), stream=self._stream)
        shape.runs += 1

    def _enqueue(self, shape: _Shape) -> None:
        if not shape.context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise ArtifactError(f"TensorRT failed to run the engine: {self._log.reason()}")


class _Shape:
    """What one input shape has: `pixels` (B, 3, H, W), `features` (B, N, C), and a graph once it was run twice."""

    def __init__(self, context: Any, pixels: Tensor, features: Tensor) -> None:
        self.context = context
        self.pixels = pixels
        self.features = features
        self.graph: Any = None
        self.runs = 0


class _Messages:
    """TensorRT's errors, kept for ours."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def reason(self) -> str:
        return self.errors[-1].splitlines()[0][:300] if self.errors else "TensorRT gives no reason"


def _load(trt: Any, plan: Any, artifact: Artifact, log: _Messages, options: EngineOptions) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # known at run time alone
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                log.errors.append(message)

    logger = Logger()
    runtime = trt.Runtime(logger)
    # A version-compatible plan carries the runtime that it runs in; TensorRT loads such code only where it is allowed.
    runtime.engine_host_code_allowed = options.version_compatible
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise ArtifactError(f"TensorRT refuses {plan}: {log.reason()}; {REBUILD}")
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != {INPUT_NAME, OUTPUT_NAME}:
        raise ArtifactError(f"{plan} has other inputs and outputs than {INPUT_NAME} and {OUTPUT_NAME}; {REBUILD}")
    if options.strip:
        refitter = trt.Refitter(engine, logger)
        weights = trt.OnnxParserRefitter(refitter, logger)
        with utf8_path(artifact.model_path) as file:
            read = weights.refit_from_file(file)
        if not (read and refitter.refit_cuda_engine()):
            raise ArtifactError(f"the weights of {artifact.model_path} do not fit {plan}: {log.reason()}; {REBUILD}")
    return engine


def _torch_dtype(dtype: Any) -> torch.dtype:
    """By name: TensorRT's own mapping to NumPy has no bfloat16."""
    name = dtype.name.lower()
    return torch_dtype(NAMES.get(name, name))
