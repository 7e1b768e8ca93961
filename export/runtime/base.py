"""What every backend is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Backend(Protocol):
    """Something that turns pixels into features.

    Attributes:
        name: as in the table of backends.
        computes: how it computes, in words for a report.
    """

    name: str
    computes: str

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W), float32 or uint8 -> features (B, N, C) float32."""
        ...


@runtime_checkable
class TensorBackend(Backend, Protocol):
    """A backend that takes and gives torch tensors on its own device, with no copy through the host."""

    def run_tensor(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` (B, 3, H, W), as `run` takes them, on any device -> features (B, N, C) on the backend's.

        The result is the caller's to keep.
        """
        ...
