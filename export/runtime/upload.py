"""Pixels from the host to a GPU."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from .pixels import as_tensor


class Upload:
    """Copies NumPy arrays to a device through one buffer of pinned memory.

    A copy from pinned memory runs beside the host, so the buffer is written again only after the device has read it.
    From any thread and stream: the result is ordered on the stream that was current at the call.

    Args:
        device: where tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = torch.empty(0, dtype=torch.uint8)  # replaced at the first call
        self._read: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    def __call__(self, array: np.ndarray) -> Tensor:
        """An array of any shape and dtype that torch has -> the same on the device, the caller's to keep."""
        source = as_tensor(np.ascontiguousarray(array))
        result = torch.empty_like(source, device=self.device)
        with self._lock:
            if self._read is not None:
                self._read.synchronize()
            if self._pinned.numel() < array.nbytes:
                self._pinned = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            staged = self._pinned[: array.nbytes].view(source.dtype).view(source.shape)
            staged.copy_(source)
            result.copy_(staged, non_blocking=True)
            if self.device.type == "cuda":
                self._read = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._read.record(torch.cuda.current_stream(self.device))
        return result
