"""Which of cuDNN's algorithms computes a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cudnn_trials(device: torch.device) -> Iterator[None]:
    """On a GPU cuDNN times its algorithms at the first call of each shape, instead of trusting its heuristics.

    Args:
        device: where the convolutions are; nothing changes for a CPU.
    """
    before = torch.backends.cudnn.benchmark
    if device.type != "cuda" or before:
        yield
        return
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
