"""NVIDIA GPUs as their maker publishes them, the rates that an H100 was measured to reach, and architectures' limits.

Sources: NVIDIA's data sheets of A100, H100, H200, L4 and L40S; the HGX B200 column of the Blackwell data sheet; the
comparison tables in the appendices of the GA102, Ada and RTX Blackwell architecture papers (GeForce); the technical
brief of Jetson AGX Orin and the data sheet of Jetson Orin NX. All rates are dense (sheets that print sparse ones say
twice as much) and at boost clocks. GeForce multiplies FP16 at half rate when it sums in FP32, as everything here
does: the table has that half. Jetson's sheets give sparse INT8: FP16 is a quarter of it. Chips are from the same
sheets and the architecture papers.

This module imports nothing heavy: the command line reads its names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import ConfigError
from .phrases import did_you_mean

MAX_SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
"""KiB of shared memory that one block may ask for (CUDA C++ Programming Guide, compute capabilities)."""
REGISTERS = 64 * 1024
"""32-bit registers of one multiprocessor, from sm_80 to sm_120 (ibid.)."""
SCHEDULERS = 4
"""Warp schedulers of one multiprocessor; each issues one warp instruction per clock (sm_80 to sm_120, ibid.)."""


@dataclass(frozen=True)
class Chip:
    """What a GPU is made of.

    Attributes:
        processors: multiprocessors.
        cache: bytes of L2.
        lanes: FP32 lanes of a multiprocessor, each of which does one multiply-add per clock.
    """

    processors: int
    cache: float
    lanes: int


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one GPU.

    Attributes:
        name: what `--gpu` takes, or `custom`.
        tflops: 1e12 operations per second (a multiply-add is two) of dense FP16 products on tensor cores.
        fp32_tflops: the same of FP32 on CUDA cores; None where unknown, which then bounds nothing.
        bandwidth: of the GPU's memory, in 1e9 bytes per second.
        chip: None for a GPU that has no row below.
    """

    name: str
    tflops: float
    fp32_tflops: float | None
    bandwidth: float
    chip: Chip | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for what, value in self.rates().items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{what} of a GPU must be positive; found {value:g}")

    def rates(self) -> dict[str, float | None]:
        """The three rates, by name."""
        return {"tflops": self.tflops, "fp32_tflops": self.fp32_tflops, "bandwidth": self.bandwidth}


GPUS: tuple[Gpu, ...] = (
    Gpu("a100", 312, 19.5, 2039, chip=Chip(108, 40e6, 64)),  # SXM, 80 GB
    Gpu("a100-40gb", 312, 19.5, 1555, chip=Chip(108, 40e6, 64)),
    Gpu("h100", 989, 67, 3350, chip=Chip(132, 50e6, 128)),  # SXM
    Gpu("h100-pcie", 756, 51, 2000, chip=Chip(114, 50e6, 128)),
    Gpu("h200", 989, 67, 4800, chip=Chip(132, 50e6, 128)),
    Gpu("b200", 2250, 75, 7700, chip=Chip(148, 126e6, 128)),
    Gpu("l4", 121, 30.3, 300, chip=Chip(58, 48e6, 128)),
    Gpu("l40s", 362, 91.6, 864, chip=Chip(142, 96e6, 128)),
    Gpu("rtx-3090", 71, 35.6, 936, chip=Chip(82, 6e6, 128)),
    Gpu("rtx-4090", 165.2, 82.6, 1008, chip=Chip(128, 72e6, 128)),
    Gpu("rtx-5090", 209.5, 104.8, 1792, chip=Chip(170, 96e6, 128)),
    Gpu("agx-orin", 42.5, 5.3, 204.8, chip=Chip(16, 4e6, 128)),  # 64 GB
    Gpu("orin-nx", 15, 1.88, 102.4, chip=Chip(8, 4e6, 128)),  # 16 GB
)
DEFAULT_GPU = "h100"


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Rates that programs reach, in units per second.

    Attributes:
        tensor: FLOPs of dense FP16 products.
        memory: bytes from global memory.
        cache: bytes from L2.
        clock: clocks.
    """

    tensor: float
    memory: float
    cache: float
    clock: float


H100_REACHED = Reached(tensor=798e12, memory=3.0e12, cache=6.5e12, clock=1.70e9)
"""An H100 SXM: FLOPs and bytes per second as measured with an 8192^3 product and an 8 GB copy, L2 and the clock under
load as published measurements of the architecture have them."""


def get_gpu(name: str) -> Gpu:
    """The row of that name; raises ConfigError with the nearest name otherwise."""
    for gpu in GPUS:
        if gpu.name == name:
            return gpu
    names = [gpu.name for gpu in GPUS]
    raise ConfigError(f"unknown GPU {name!r}; {did_you_mean(name, names)}; others by --tflops and --bandwidth")


def get_chip(name: str) -> Chip:
    """The chip in the row of that name; raises ConfigError as `get_gpu` does."""
    chip = get_gpu(name).chip
    assert chip is not None  # only GPUs without a row have none
    return chip
