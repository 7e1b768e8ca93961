"""The PyTorch model itself: the reference of every comparison."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...encoder.connector import Connector
from ...encoder.exact import exact_float32
from ...encoder.fastvithd import FastViTHD
from ...encoder.float32 import in_float32_now
from .pixels import as_tensor


class EagerBackend:
    """Runs the eager model, in the dtype of its weights.

    Args:
        encoder: in any form, on any device.
        connector: applied after it where given.
        stores: a half type to round weights and every result to, while computing in float32:
            PyTorch in half precision as a GPU runs it, at a speed a CPU can bear (its own
            float16 convolutions take minutes there). The modules given are left as they are.
    """

    name = "eager"

    def __init__(
        self, encoder: FastViTHD, connector: Connector | None = None, *, stores: torch.dtype | None = None
    ) -> None:
        if stores is not None:
            encoder = copy.deepcopy(encoder).to(stores).float()
            connector = None if connector is None else copy.deepcopy(connector).to(stores).float()
        self.encoder = encoder
        self.connector = connector
        self.stores = stores
        weight = next(encoder.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        words = str(stores or self.dtype).removeprefix("torch.")
        self.computes = f"PyTorch, {encoder.form} form, {words}"

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W), float32 normalized, or uint8 for a uint8 model -> (B, N, C) float32."""
        with self.mode():
            return self.forward(self.pixels(as_tensor(pixel_values))).float().cpu().numpy()

    def pixels(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` as the model takes them: on its device, and where they are floating in its dtype."""
        x = pixel_values.to(self.device)
        return x.to(self.dtype) if x.is_floating_point() else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C), to be called inside `mode()`."""
        y = self.encoder(x)
        return y if self.connector is None else self.connector(y)

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Without gradients, with float32 in full (no TF32), and rounding where `stores` says so."""
        rounding = nullcontext() if self.stores is None else _Stored(self.stores)
        with torch.inference_mode(), exact_float32(), rounding:
            yield

    def run_taps(
        self, pixel_values: np.ndarray, see: Callable[[str, np.ndarray], None]
    ) -> np.ndarray:  # one block at a time: at 1024 x 1024 all of them together are a gigabyte
        """Like `run`; calls `see(block, output (B, C, H, W) float32)` as each block ends."""
        with _hooks(self.encoder.named_blocks(), lambda name, y: see(name, y.float().cpu().numpy())):
            return self.run(pixel_values)


class _Stored(TorchFunctionMode):
    """Rounds every floating result to a half type and back, but those inside an `InFloat32`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.half = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if in_float32_now():
            return result
        if isinstance(result, Tensor) and result.dtype == torch.float32 and func is not Tensor.float:
            with torch._C.DisableTorchFunction():
                return result.to(self.half).float()
        return result


@contextmanager
def _hooks(blocks: Iterator[tuple[str, nn.Module]], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `see(name, output)` for each block that this thread runs; others may run the same modules meanwhile."""
    thread = threading.get_ident()

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: see(name, output) if threading.get_ident() == thread else None

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
