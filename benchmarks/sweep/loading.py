"""From a cell to something that runs: a backend of ours in any form, or a peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.dtypes import torch_dtype
from ...encoder.checkpoint import Checkpoint
from ...encoder.reparameterize import reparameterize
from ...export.artifact import Artifact
from ...export.backend_table import BackendInfo, get_backend
from ...export.runtime.backends import make_backend
from ...export.runtime.base import TensorBackend
from ...export.runtime.eager_backend import EagerBackend
from ...export.runtime.pytorch_backend import PyTorchBackend
from ..peers.table import get_peer, load_peer
from .messages import WeightSource
from .result import Cell


@dataclass(frozen=True)
class Loaded:
    """A cell that is ready.

    Attributes:
        run: `pixel_values` (B, 3, H, W) float32 -> features (B, N, C) float32.
        computes: how, in words.
        device: `cpu` or `cuda`.
        run_tensor: the same from tensor to tensor on that device, where the backend can.
        captures: `launch` or `run_tensor` may be recorded in a CUDA graph.
        launch: `run_tensor` without the CUDA graph that it replays, where it replays one and can do without.
    """

    run: Callable[[np.ndarray], np.ndarray]
    computes: str
    device: str
    run_tensor: Callable[[Tensor], Tensor] | None = None
    captures: bool = False
    launch: Callable[[Tensor], Tensor] | None = None


def load_cell(cell: Cell, weights: WeightSource, file: str | None) -> Loaded:
    """Loads what `cell` names.

    Args:
        cell: any cell; of a `ttft` cell its encoder.
        weights: the checkpoint.
        file: the artifact, or a peer's file.

    Raises whatever the runtime trips over.
    """
    if cell.kind == "peer":
        return _peer(cell, weights, file)
    if cell.form in ("train", "fused"):
        return _eager(cell, weights.load())
    assert file is not None
    row = get_backend(cell.backend)
    checkpoint = weights.load() if row.module == "torch" else None
    backend = make_backend(Artifact.open(file), cell.backend, threads=cell.threads, checkpoint=checkpoint)
    tensors = backend.run_tensor if isinstance(backend, TensorBackend) else None
    launch = backend.launch if isinstance(backend, PyTorchBackend) and cell.backend == "triton" else None
    return Loaded(backend.run, backend.computes, _device(row, backend), tensors, not row.replays, launch)


def _eager(cell: Cell, checkpoint: Checkpoint) -> Loaded:
    """The checkpoint's own form, or the fused one, in PyTorch's default layout."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = checkpoint.encoder if cell.form == "train" else reparameterize(checkpoint.encoder)
    encoder = encoder.to(torch_dtype(cell.precision))
    if cell.precision == "fp16" and device.type == "cpu":
        encoder = encoder.float()  # as `PyTorchBackend`: float16 convolutions on a CPU take minutes
    backend = EagerBackend(encoder.to(device))

    def run_tensor(pixel_values: Tensor) -> Tensor:
        with backend.mode():
            return backend.forward(backend.pixels(pixel_values))

    return Loaded(backend.run, backend.computes, device.type, run_tensor, captures=True)


def _peer(cell: Cell, weights: WeightSource, file: str | None) -> Loaded:
    peer = load_peer(
        get_peer(cell.backend), cell.precision, None if file is None else Path(file),
        weights.load, cell.threads,
    )  # fmt: skip
    return Loaded(peer.run, peer.computes, peer.device, peer.run_tensor)


def _device(row: BackendInfo, backend: Any) -> str:
    if (device := getattr(backend, "device", None)) is not None:
        return torch.device(device).type
    return "cuda" if row.gpu else "cpu"
