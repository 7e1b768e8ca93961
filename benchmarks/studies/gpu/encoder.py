"""The whole encoder on its kernels, with and without a CUDA graph, against the eager model in float64.

Every model runs twice on the same photographs. A result that moves by more than rounding is a race.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ....core.errors import first_line
from ....encoder.fastvithd import FastViTHD
from ....encoder.image import sample_images
from ....encoder.preprocess import Preprocessor
from ....encoder.preprocess_config import PreprocessConfig
from ....kernels.accelerate import accelerate
from ....kernels.cuda_graph import CudaGraph, cuda_graph
from .scope import Size

FACTOR = 2.0
"""How many times PyTorch's own error in the same dtype the error of the kernels may be."""
FP8_FACTOR = 2**0.5
"""The same in FP8: where one value rounds the other way the rest follows, which adds an independent error as large."""
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """One model at one size. Errors are relative L2 distances of the features.

    Attributes:
        name: of the model, `graph` or `eager` among it.
        dtype: that it computes in.
        size: of the images.
        error: distance from the reference.
        own: that of the eager model in PyTorch in the same dtype.
        moved: distance between the results of two runs.
        problem: what is wrong, empty if nothing is.
    """

    name: str
    dtype: str
    size: str
    error: float = 0.0
    own: float = 0.0
    moved: float = 0.0
    problem: str = ""


def photographs(size: Size) -> np.ndarray:
    """Pixel values (B, 3, H, W) float32 of photographs; there are enough different ones for eight images."""
    files = sorted(sample_images().items())
    prepare = Preprocessor(size.height, size.width, PreprocessConfig(resize="shortest"))
    return prepare([files[index % len(files)][1] for index in range(size.batch)])


def reference(model: FastViTHD, pixel_values: Tensor) -> Tensor:
    """The features of the eager model in float64, one image at a time: (B, N, C)."""
    wide = copy.deepcopy(model).to(pixel_values.device, torch.float64)
    with torch.inference_mode():
        return torch.cat([wide(one[None].double()) for one in pixel_values])


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def judge(
    name: str, size: Size, own: float, wanted: Tensor, run: Model, x: Tensor, *, factor: float = FACTOR
) -> Verdict:
    """Runs a model twice and compares it with the reference; what it raises is the verdict's problem."""
    head = (name, str(x.dtype).removeprefix("torch."), size.name)
    try:
        with torch.inference_mode():
            first, second = run(x).clone(), run(x).clone()
    except Exception as error:  # a compiler's or a driver's: all of them are findings
        return Verdict(*head, own=own, problem=f"fails: {first_line(error)}")
    if first.shape != wanted.shape:
        return Verdict(*head, own=own, problem=f"makes {tuple(first.shape)}, not {tuple(wanted.shape)}")
    distance, moved = relative(first, wanted), relative(second, first)
    problems = []
    if not bool(torch.isfinite(first).all()):
        problems.append("some features are not finite")
    elif not distance <= factor * own:
        problems.append(f"error {distance:.2e}, more than {factor:g} x PyTorch's {own:.2e}")
    if not moved <= own:
        problems.append(f"two runs differ by {moved:.2e}: a race")
    return Verdict(*head, distance, own, moved, "; ".join(problems))


def verdicts(model: FastViTHD, size: Size, dtypes: Sequence[torch.dtype], device: str) -> Iterator[Verdict]:
    """The model on its kernels in each dtype, eager and as a CUDA graph (on a GPU alone).

    Args:
        model: fused, float32.
        size: of the images.
        dtypes: that it computes in.
        device: `cuda` or `cpu`.
    """
    pixels = torch.from_numpy(photographs(size)).to(device)
    wanted = reference(model, pixels)
    for dtype in dtypes:
        x = pixels.to(dtype)
        eager = copy.deepcopy(model).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            own = relative(eager(x), wanted)
        ours = accelerate(eager)
        yield judge("kernels, eager", size, own, wanted, ours, x)
        if device == "cuda":
            yield judge("kernels, graph", size, own, wanted, _Captured(ours), x)


def fp8_verdicts(
    model: FastViTHD, quantized: FastViTHD, size: Size, dtype: torch.dtype, device: str
) -> Iterator[Verdict]:
    """The quantized model on its kernels, eager and as a CUDA graph: as near to float64 as in PyTorch.

    Args:
        model: fused, float32, not quantized.
        quantized: what `calibration.quantize` made of it for FP8, float32.
        size: of the images.
        dtype: of everything that is not FP8.
        device: `cuda` or `cpu`.
    """
    pixels = torch.from_numpy(photographs(size)).to(device)
    wanted = reference(model, pixels)
    emulated = copy.deepcopy(quantized).to(device)
    with torch.inference_mode():
        own = relative(torch.cat([emulated(one[None]) for one in pixels]), wanted)
    del emulated
    ours, x = accelerate(copy.deepcopy(quantized).to(device, dtype), precision="fp8"), pixels.to(dtype)
    yield judge("FP8 kernels, eager", size, own, wanted, ours, x, factor=FP8_FACTOR)
    if device == "cuda":
        yield judge("FP8 kernels, graph", size, own, wanted, _Captured(ours), x, factor=FP8_FACTOR)


class _Captured:
    """A model that is captured at its first call, so that what the capture raises is a verdict's problem."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.graph: CudaGraph | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.graph = self.graph or cuda_graph(self.model, tuple(x.shape))
        return self.graph(x)
