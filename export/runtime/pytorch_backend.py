"""The model that an artifact was made from, in PyTorch: eager, through torch.compile, and on our own kernels."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ...core.cache import has_blanks, keep_compilers_caches
from ...core.dtypes import torch_dtype
from ...core.errors import UnavailableError, first_line
from ...core.temporary import check_temporary_folder
from ...core.threads import fewer_torch_threads, torch_threads
from ...encoder.checkpoint import Checkpoint
from ...encoder.connector import Connector
from ...encoder.convolution_trials import cudnn_trials
from ...encoder.fastvithd import FastViTHD
from ...encoder.reparameterize import reparameterize
from ...kernels.accelerate import accelerate
from ...kernels.cuda_graph import CudaGraphs
from ...kernels.dispatch import FP8_CAPABILITY
from ...kernels.fp8_layers import count_fp8_layers
from ..artifact import Artifact
from ..artifact_source import exported_module, source_checkpoint
from ..backend_table import get_backend, require
from ..quantized_module import quantized_module
from .eager_backend import EagerBackend
from .pickling import Opened, check_torch_forked, torch_computed
from .pixels import as_tensor


class PyTorchBackend(Opened):
    """Runs the fused module of an artifact's checkpoint, channels-last, on the GPU where there is one.

    Args:
        artifact: an opened artifact, not quantized unless the target runs FP8: then its module is read from its ONNX
            file.
        target: `eager`, `torch-compile` or `triton`.
        threads: of torch while it runs; None leaves them as they are, within the container's CPU quota.
        checkpoint: the weights, or where they are; the artifact's own source by default.

    Raises:
        UnavailableError: the artifact is quantized in a way that the target does not run, or the target cannot run
            here.
        ArtifactError, CheckpointError: see `source_checkpoint`.
    """

    def __init__(
        self, artifact: Artifact, target: str = "eager", *, threads: int | None = None,
        checkpoint: Checkpoint | str | None = None,
    ) -> None:  # fmt: skip
        self._opened(artifact, target=target, threads=threads, checkpoint=checkpoint)
        check_torch_forked(torch.get_num_threads())
        torch_computed()
        row = get_backend(target)
        require(row)
        manifest = artifact.manifest
        if manifest.precision not in row.precisions:
            raise UnavailableError(
                f"backend {target} runs {', '.join(row.precisions)}; {artifact.path} is {manifest.precision}, "
                "whose quantized weights stand in its ONNX file alone: take --backend onnxruntime-cpu"
            )
        compiles = target == "torch-compile"
        if compiles or target == "triton":
            check_temporary_folder()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        fp8 = manifest.precision == "fp8"
        if fp8 and target == "triton":
            _require_fp8(self.device)
        encoder, connector = _modules(artifact, checkpoint)
        half = torch_dtype(manifest.float_precision)
        encoder = encoder.to(half)
        connector = None if connector is None else connector.to(half)
        if half == torch.float16 and self.device.type == "cpu":
            # PyTorch's float16 convolutions on a CPU take minutes where float32 takes seconds.
            encoder, connector = encoder.float(), None if connector is None else connector.float()
        self.name, self.threads = target, threads or fewer_torch_threads()
        encoder = encoder.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What `accelerate` makes is called like the model, and shows no inner tensors.
        quantized = count_fp8_layers(encoder)
        if target == "triton":
            encoder = cast("FastViTHD", accelerate(encoder, precision="fp8" if fp8 else None))
        self._model = self.eager(encoder, None if connector is None else connector.to(self.device), half)
        self.computes = f"{self._model.computes}, on {_device_name(self.device)}"
        self.computes += {"torch-compile": ", torch.compile", "triton": ", Triton kernels"}.get(target, "")
        if fp8:
            count = count_fp8_layers(encoder)
            others = "" if count == quantized else ", the others with FP8 weights and inputs in that dtype"
            self.computes += f", {count} of {quantized} quantized layers in FP8{others}"
        self._forward: Callable[[Tensor], Tensor] = self._model.forward
        self._prepare: Callable[[Tensor], Tensor] = self._channels_last
        if target == "triton" and self.device.type == "cuda":
            modules = [m for m in (self._model.encoder, self._model.connector) if m is not None]
            self._forward = CudaGraphs(torch.nn.Sequential(*modules), dtype=self._model.dtype)
            self._prepare = _as_it_is
        self._turn: AbstractContextManager[object] = nullcontext()
        if compiles:
            keep_compilers_caches()
            if self.device.type == "cuda":
                self._turn = _Turn(self.device)
            # With CUDA graphs where there is a GPU; on a CPU the modes are alike.
            self._forward = torch.compile(
                self._model.forward, dynamic=False, mode="max-autotune" if self.device.type == "cuda" else None
            )

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W) -> features (B, N, C) float32."""
        features = self.run_tensor(as_tensor(pixel_values))
        return features.float().cpu().numpy()

    def run_tensor(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` (B, 3, H, W) on any device -> features (B, N, C) on the backend's, in its dtype."""
        self.check_process()
        with self._threads(), self._mode(), self._turn:
            try:
                y = self._forward(self._prepare(pixel_values))
            except torch._dynamo.exc.BackendCompilerFailed as error:
                blanks = has_blanks(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
                fix = "set TORCHINDUCTOR_CACHE_DIR to a folder without blanks" if blanks else "install a C++ compiler"
                raise UnavailableError(
                    f"torch.compile fails here: {first_line(error)}; take --backend eager, or {fix}"
                ) from error
            # The graphs of torch.compile write their next result to the same place.
            return y if isinstance(self._turn, nullcontext) else y.clone()

    def _threads(self) -> AbstractContextManager[None]:
        return torch_threads(self.threads) if self.threads else nullcontext()

    @contextmanager
    def _mode(self) -> Iterator[None]:
        """As the model is to be called. A CUDA graph has all of it from its capture, and enters it there."""
        if isinstance(self._forward, CudaGraphs):
            yield
            return
        with self._model.mode(), cudnn_trials(self.device):
            yield

    def _channels_last(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` on the device as the model takes them, dtype and layout changed in one copy."""
        x = pixel_values.to(self.device)
        dtype = self._model.dtype if x.is_floating_point() else x.dtype
        return x.to(dtype=dtype, memory_format=torch.channels_last)

    def launch(self, pixel_values: Tensor) -> Tensor:
        """As `run_tensor`, each kernel launched from Python: what a CUDA graph of the caller's can record."""
        self.check_process()
        with self._threads(), self._model.mode(), cudnn_trials(self.device):
            return self._model.forward(self._channels_last(pixel_values))

    def eager(self, encoder: FastViTHD, connector: Connector | None, dtype: torch.dtype) -> EagerBackend:
        """What runs the modules, which are on the device; `dtype` is that of the file."""
        return EagerBackend(encoder, connector)


def _modules(artifact: Artifact, checkpoint: Checkpoint | str | None) -> tuple[FastViTHD, Connector | None]:
    """The fused encoder that was exported, and its connector if the artifact has one, in float32."""
    manifest = artifact.manifest
    projector = manifest.options.projector
    if not isinstance(checkpoint, Checkpoint) and (projector or manifest.quantization is None):
        checkpoint = source_checkpoint(artifact, checkpoint)
    connector = None
    if projector:
        assert isinstance(checkpoint, Checkpoint) and checkpoint.connector is not None  # `source_checkpoint` saw to it
        connector = reparameterize(checkpoint.connector)
    if manifest.quantization is not None:
        return quantized_module(artifact), connector
    assert isinstance(checkpoint, Checkpoint)
    return exported_module(manifest, checkpoint, uint8_input=manifest.input.dtype == "uint8"), connector


def _require_fp8(device: torch.device) -> None:
    """Raises UnavailableError for a GPU that cannot multiply FP8 numbers."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        raise UnavailableError(
            f"FP8 kernels need compute capability 8.9 (Ada, Hopper or later); {torch.cuda.get_device_name(device)} has "
            f"{found[0]}.{found[1]}: export with --fp16 for it, or take --backend eager"
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _as_it_is(pixel_values: Tensor) -> Tensor:
    """The copy into a CUDA graph's input changes device, dtype and layout."""
    return pixel_values


class _Turn:
    """One call at a time, each after the one before on the GPU too, whatever thread and stream either is on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        self._lock.acquire()
        torch.cuda.current_stream(self._device).wait_event(self._ended)

    def __exit__(self, *_: object) -> None:
        self._ended.record(torch.cuda.current_stream(self._device))
        self._lock.release()
