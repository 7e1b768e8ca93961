"""Peak rates of well-known NVIDIA GPUs, as NVIDIA publishes them: what a floor is computed from.

Sources: NVIDIA's data sheets of A100, H100, H200, L4 and L40S; the HGX B200 column of the Blackwell data sheet; the
comparison tables in the appendices of the GA102, Ada and RTX Blackwell architecture papers (GeForce); the technical
brief of Jetson AGX Orin and the data sheet of Jetson Orin NX. All rates are dense (sheets that print sparse ones say
twice as much) and at boost clocks. GeForce multiplies FP16 at half rate when it sums in FP32, as everything here
does: that half is what stands here. Jetson's sheets give sparse INT8: FP16 is a quarter of it.

This module imports nothing heavy: the command line reads its names.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.phrases import did_you_mean


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one GPU.

    Attributes:
        name: what `--gpu` takes, or `custom`.
        tflops: 1e12 operations per second (a multiply-add is two) of dense FP16 products on tensor cores.
        fp32_tflops: the same of FP32 on CUDA cores; None where unknown, which then bounds nothing.
        bandwidth: of the GPU's memory, in 1e9 bytes per second.
    """

    name: str
    tflops: float
    fp32_tflops: float | None
    bandwidth: float

    def __post_init__(self) -> None:
        for what, value in (("tflops", self.tflops), ("fp32_tflops", self.fp32_tflops), ("bandwidth", self.bandwidth)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{what} of a GPU must be positive; found {value:g}")


GPUS: tuple[Gpu, ...] = (
    Gpu("a100", 312, 19.5, 2039),  # SXM, 80 GB
    Gpu("a100-40gb", 312, 19.5, 1555),
    Gpu("h100", 989, 67, 3350),  # SXM
    Gpu("h100-pcie", 756, 51, 2000),
    Gpu("h200", 989, 67, 4800),
    Gpu("b200", 2250, 75, 7700),
    Gpu("l4", 121, 30.3, 300),
    Gpu("l40s", 362, 91.6, 864),
    Gpu("rtx-3090", 71, 35.6, 936),
    Gpu("rtx-4090", 165.2, 82.6, 1008),
    Gpu("rtx-5090", 209.5, 104.8, 1792),
    Gpu("agx-orin", 42.5, 5.3, 204.8),  # 64 GB
    Gpu("orin-nx", 15, 1.88, 102.4),  # 16 GB
)
DEFAULT_GPU = "h100"


def get_gpu(name: str) -> Gpu:
    """The row of that name; raises ConfigError with the nearest name otherwise."""
    for gpu in GPUS:
        if gpu.name == name:
            return gpu
    names = [gpu.name for gpu in GPUS]
    raise ConfigError(f"unknown GPU {name!r}; {did_you_mean(name, names)}; others by --tflops and --bandwidth")
