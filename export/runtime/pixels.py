"""Which pixels an artifact takes: checked once, before any backend, so that all refuse the same in the same words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ConfigError, ImageError
from ...encoder.config import FastViTHDConfig
from ...encoder.preprocess_config import TOLERANCE, PreprocessConfig
from ..artifact import Artifact

if TYPE_CHECKING:
    from torch import Tensor

ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Largest relative error of rounding to each floating type that is taken."""


@dataclass(frozen=True)
class PixelRules:
    """What `Encoder.run` and `run_tensor` take: uint8 levels, or floats as the checkpoint's preprocessing makes them.

    Attributes:
        name: of the artifact, for messages.
        config: of its preprocessing.
        architecture: says which sizes are possible.
        size: (height, width) of an artifact that takes one size alone; None for any that the architecture takes.
    """

    name: str
    config: PreprocessConfig
    architecture: FastViTHDConfig
    size: tuple[int, int] | None

    @classmethod
    def of(cls, artifact: Artifact, config: PreprocessConfig) -> PixelRules:
        """The rules of an opened artifact."""
        manifest = artifact.manifest
        height, width = manifest.input.shape[2:]
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        return cls(str(artifact.path), config, manifest.architecture, size)

    def array(self, pixels: object) -> np.ndarray[Any, Any]:
        """`pixels` (B, 3, H, W) as a contiguous array, uint8 or float32; the caller's own where it is one already.

        Raises:
            ImageError: no array, another dtype, number of axes or channels, or values out of range.
            ConfigError: a size that the artifact cannot take.
        """
        if not isinstance(pixels, np.ndarray) or isinstance(pixels, np.ma.MaskedArray):
            hint = "call run_tensor" if type(pixels).__module__.startswith("torch") else "call the encoder itself"
            raise ImageError(
                f"run takes a NumPy array (B, 3, H, W); found a {type(pixels).__name__}: {hint}, or convert it"
            )
        name = pixels.dtype.name
        self._check(name, tuple(pixels.shape))
        if name == "uint8":
            return np.ascontiguousarray(pixels)
        with np.errstate(over="ignore"):  # what overflows float32 is out of range
            values = np.ascontiguousarray(pixels, np.float32)
        if values.size:
            self._check_range(float(values.min()), float(values.max()), ROUNDOFF[name])
        return values

    def tensor(self, pixels: object) -> Tensor:
        """`pixels` (B, 3, H, W) as `array` has them, on the device where they are, without a gradient.

        The range of floats on a GPU is checked there, for which the host waits; levels need no such check. Inside a
        CUDA graph's capture nothing can be waited for, and the range is not checked.

        Raises ImageError and ConfigError as `array` does.
        """
        import torch

        if not isinstance(pixels, torch.Tensor):
            raise ImageError(
                f"run_tensor takes a torch tensor (B, 3, H, W); found a {type(pixels).__name__}: call run, or "
                "convert it"
            )
        if pixels.layout != torch.strided or pixels.is_meta or pixels.is_nested:
            layout = "nested" if pixels.is_nested else str(pixels.layout).removeprefix("torch.")
            kind = "no data" if pixels.is_meta else layout
            raise ImageError(f"run_tensor takes a dense torch tensor (B, 3, H, W); found one with {kind}")
        name = str(pixels.dtype).removeprefix("torch.")
        self._check(name, tuple(pixels.shape))
        pixels = pixels.detach().resolve_neg()  # NumPy reads no lazily negated values
        if name == "uint8":
            return pixels
        values = pixels.float()
        if values.is_cuda and torch.cuda.is_current_stream_capturing():
            return values
        if values.numel():
            if values.device.type == "cpu":
                array = values.numpy()  # on one thread: PyTorch's own may be gone, in a worker that was forked off
                low, high = float(array.min()), float(array.max())
            else:
                low, high = torch.stack(torch.aminmax(values)).tolist()  # one copy from the device
            self._check_range(low, high, ROUNDOFF[name])
        return values

    def tokens(self, pixels: Any) -> int:
        """Visual tokens of each image of a checked array or tensor."""
        height, width = pixels.shape[2:]
        return self.architecture.tokens(height, width)

    def _check(self, dtype: str, shape: tuple[int, ...]) -> None:
        found = f"found {dtype} of shape {shape}"
        if len(shape) == 3 and 3 in (shape[0], shape[2]):
            raise ImageError(f"pixels must be (B, 3, H, W); {found}: add the axis of images with pixels[None]")
        if len(shape) != 4 or shape[1] != 3:
            last = len(shape) == 4 and shape[3] == 3
            hint = ": move channels forward with transpose (0, 3, 1, 2)" if last else "; three channels, RGB"
            raise ImageError(f"pixels must be (B, 3, H, W); {found}{hint}")
        if dtype != "uint8" and dtype not in ROUNDOFF:
            raise ImageError(
                f"pixels must be levels 0 to 255 as uint8, or normalized floats ({', '.join(ROUNDOFF)}); "
                f"found {dtype}: convert levels to uint8"
            )
        height, width = shape[2:]
        if self.size is None:
            self.architecture.check_resolution(height, width)
        elif (height, width) != self.size:
            own = "x".join(map(str, self.size))
            raise ConfigError(
                f"{self.name} takes {own} alone; found pixels of {height}x{width}: prepare them with the encoder's "
                "preprocessor, or export with --dynamic-res"
            )

    @cached_property
    def _range(self) -> tuple[float, float]:
        return self.config.value_range()

    def _check_range(self, low: float, high: float, roundoff: float) -> None:
        lowest, highest = self._range
        margin = TOLERANCE * (highest - lowest) + roundoff * max(abs(lowest), abs(highest))
        if lowest - margin <= low and high <= highest + margin:  # neither is true of NaN
            return
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError("pixels are infinite or not a number (NaN) in places; check how they were made")
        if low >= 0 and highest < high <= 255 and high > 2:
            raise ImageError(
                f"pixels from {low:g} to {high:g} look like levels 0 to 255 in a floating type; convert them to uint8, "
                f"or normalize them to {lowest:.4g}..{highest:.4g} with the preprocessor's config.normalize"
            )
        raise ImageError(
            f"pixels are from {low:g} to {high:g}, and normalized ones from {lowest:.4g} to {highest:.4g} for "
            f"{self.name} ({self.config.describe()}); normalize them with the preprocessor's config.normalize, or give "
            "levels as uint8"
        )


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor on the memory of `array`, or on a copy of a read-only one, at which PyTorch warns."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())
