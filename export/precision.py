"""The precisions of an artifact. Imports nothing heavy: the command line reads its choices from here."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
QUANTIZED: tuple[Precision, ...] = ("int8", "fp8")
"""Precisions whose file carries Q/DQ."""
