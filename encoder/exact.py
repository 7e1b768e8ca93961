"""Float32 that is computed in float32, whatever the process allows PyTorch to round.

On GPUs from Ampere on, cuDNN computes float32 convolutions in TF32 unless told otherwise: 10 bits of the inputs'
mantissas instead of 23, and an error a hundred times that of float32. That is PyTorch's default. Matrix products do the
same where `torch.set_float32_matmul_precision` allows it, and on CPUs even in bfloat16.

Source: PyTorch's notes "CUDA semantics" and "Numerical accuracy". PyTorch 2.9 brought one setting per backend and
operator (`fp32_precision`) beside the older switches, and refuses to read those if the two disagree, so both are set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

_EXACT = ("ieee", "none")
"""Values of `fp32_precision` that round nothing; "none" where no setting above it says otherwise."""

_lock = threading.Lock()
_depth = 0
_before: _Settings | None = None


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turns TF32 and bfloat16 off for float32 convolutions and matrix products, on GPUs and CPUs.

    A CUDA graph and a compiled model keep the settings that they are captured or compiled with, so enter it there too.
    The settings belong to the process, not to the thread: the last of nested or concurrent uses to end restores them.
    """
    global _before, _depth  # noqa: PLW0603  # as PyTorch's settings are
    with _lock:
        if _depth == 0:
            _before = _Settings.read()
            _before.turn_off()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _before is not None:
                _before.restore()
                _before = None


@dataclass(frozen=True)
class _Settings:
    """What PyTorch may round. Only what has to change is written, since this surrounds calls of a millisecond.

    Attributes:
        cudnn_tf32, matmul: the older switches; None where PyTorch refuses to read them.
        precisions: the newer settings, in the order of `_operators`; none before PyTorch 2.9.
    """

    cudnn_tf32: bool | None
    matmul: str | None
    precisions: tuple[str, ...]

    @classmethod
    def read(cls) -> _Settings:
        cudnn_tf32 = matmul = None
        with suppress(RuntimeError):  # the user has set only the newer ones
            cudnn_tf32 = torch.backends.cudnn.allow_tf32
        with suppress(RuntimeError):
            matmul = torch.get_float32_matmul_precision()
        return cls(cudnn_tf32, matmul, tuple(op.fp32_precision for op in _operators()))

    def turn_off(self) -> None:
        if self.cudnn_tf32 is not False:
            torch.backends.cudnn.allow_tf32 = False
        if self.matmul != "highest":
            torch.set_float32_matmul_precision("highest")
        for op, precision in zip(_operators(), self.precisions, strict=True):
            # Asked again: the older switches change the newer ones, but not what a setting above them says.
            if precision not in _EXACT and op.fp32_precision not in _EXACT:
                op.fp32_precision = "ieee"

    def restore(self) -> None:
        if self.cudnn_tf32:
            torch.backends.cudnn.allow_tf32 = True
        if self.matmul not in (None, "highest"):
            torch.set_float32_matmul_precision(self.matmul)
        for op, precision in zip(_operators(), self.precisions, strict=True):
            if op.fp32_precision != precision:
                op.fp32_precision = precision


@lru_cache
def _operators() -> tuple[Any, ...]:
    """What has a precision of its own in PyTorch 2.9 and later. (cuDNN's two have to agree for the older switch.)"""
    if not hasattr(torch.backends.cudnn, "conv"):
        return ()
    cudnn: Any = torch.backends.cudnn  # replaced by an object at run time, as is mkldnn
    mkldnn: Any = torch.backends.mkldnn
    return cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul, mkldnn.conv, mkldnn.matmul
