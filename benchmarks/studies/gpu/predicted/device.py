"""What a GPU can do at best, as the performance model takes it: rates in units per second, not tera or giga."""

from __future__ import annotations

from dataclasses import dataclass

from .....core.errors import ConfigError
from .....export.gpus import Gpu, get_gpu

SCHEDULERS = 4
"""Warp schedulers of one multiprocessor; each issues one warp instruction per clock (sm_80 to sm_120)."""


@dataclass(frozen=True)
class Device:
    """Ceilings of one GPU.

    Attributes:
        name: as in `export.gpus`.
        tensor: FLOPs per second of dense FP16 products.
        memory: bytes per second from global memory.
        cache: bytes per second from L2.
        clock: clocks per second.
        processors: multiprocessors.
        cache_size: bytes of L2.
    """

    name: str
    tensor: float
    memory: float
    cache: float
    clock: float
    processors: int
    cache_size: float

    @property
    def tensor_each(self) -> float:
        """FLOPs per second of one multiprocessor's tensor cores."""
        return self.tensor / self.processors

    @property
    def hot(self) -> float:
        """Bytes of a tensor up to which the next kernel still finds it in L2."""
        return self.cache_size / 2


H100 = Device("h100", 798e12, 3.0e12, 6.5e12, 1.70e9, 132, 50e6)
"""An H100 SXM: FLOPs and bytes per second as measured with an 8192^3 product and an 8 GB copy, L2 and the clock under
load as published measurements of the architecture have them."""

CHIPS: dict[str, tuple[int, float, int]] = {
    "a100": (108, 40e6, 64),
    "a100-40gb": (108, 40e6, 64),
    "h100": (132, 50e6, 128),
    "h100-pcie": (114, 50e6, 128),
    "h200": (132, 50e6, 128),
    "b200": (148, 126e6, 128),
    "l4": (58, 48e6, 128),
    "l40s": (142, 96e6, 128),
    "rtx-3090": (82, 6e6, 128),
    "rtx-4090": (128, 72e6, 128),
    "rtx-5090": (170, 96e6, 128),
    "agx-orin": (16, 4e6, 128),
    "orin-nx": (8, 4e6, 128),
}
"""Multiprocessors, bytes of L2, and FP32 lanes of a multiprocessor: NVIDIA's data sheets and architecture papers."""


def device_of(name: str) -> Device:
    """The ceilings of a GPU by its name in `export.gpus`: measured for `h100`, else scaled from its data sheet.

    Data sheets state rates at boost clocks, which no kernel reaches. Other GPUs are assumed to reach the share of
    theirs that the H100 reaches of its own, and the same bytes from L2 per clock and multiprocessor.

    Raises:
        ConfigError: no such GPU, or one whose number of multiprocessors is not known.
    """
    return H100 if name == H100.name else scaled(get_gpu(name))


def scaled(gpu: Gpu) -> Device:
    """A data sheet's rates, reduced by what an H100 reaches of its data sheet's."""
    if gpu.name not in CHIPS or gpu.fp32_tflops is None:
        raise ConfigError(f"the model knows no multiprocessor count for {gpu.name!r}; known are {', '.join(CHIPS)}")
    sheet = get_gpu(H100.name)
    processors, cache_size, lanes = CHIPS[gpu.name]
    clock = _boost_clock(gpu, processors, lanes) * H100.clock / _boost_clock(sheet, *CHIPS[sheet.name][::2])
    return Device(
        gpu.name,
        tensor=gpu.tflops * 1e12 * H100.tensor / (sheet.tflops * 1e12),
        memory=gpu.bandwidth * 1e9 * H100.memory / (sheet.bandwidth * 1e9),
        cache=H100.cache * processors * clock / (H100.processors * H100.clock),
        clock=clock,
        processors=processors,
        cache_size=cache_size,
    )


def _boost_clock(gpu: Gpu, processors: int, lanes: int) -> float:
    """Clocks per second from the rate of the CUDA cores, each of which does two FLOPs per clock."""
    assert gpu.fp32_tflops is not None
    return gpu.fp32_tflops * 1e12 / (2 * lanes * processors)
