"""Lets cuDNN choose the algorithm of each convolution by timing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cudnn_trials(device: torch.device) -> Iterator[None]:
    """Makes cuDNN time its algorithms at the first call of each shape, instead of using its heuristics.

    Args:
        device: the convolutions' device; a CPU is left as it is.
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
