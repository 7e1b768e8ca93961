"""What a GPU can do at best, as the performance model takes it: rates in units per second, not tera or giga."""

from __future__ import annotations

from dataclasses import dataclass

from .....core.gpus import H100_REACHED, Gpu, get_chip, get_gpu


@dataclass(frozen=True)
class Device:
    """Ceilings of one GPU.

    Attributes:
        name: as in `core.gpus`.
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


def device_of(name: str) -> Device:
    """The ceilings of a GPU by its name in `core.gpus`: measured for `h100`, else scaled from its data sheet.

    Data sheets state rates at boost clocks, which no kernel reaches. Other GPUs are assumed to reach the share of
    theirs that the H100 reaches of its own, and the same bytes from L2 per clock and multiprocessor.

    Raises:
        ConfigError: no such GPU.
    """
    sheet, gpu = get_gpu("h100"), get_gpu(name)
    own, chip = get_chip(sheet.name), get_chip(name)
    clock = H100_REACHED.clock * _boost_clock(gpu) / _boost_clock(sheet)
    return Device(
        name,
        tensor=H100_REACHED.tensor * gpu.tflops / sheet.tflops,
        memory=H100_REACHED.memory * gpu.bandwidth / sheet.bandwidth,
        cache=H100_REACHED.cache * chip.processors * clock / (own.processors * H100_REACHED.clock),
        clock=clock,
        processors=chip.processors,
        cache_size=chip.cache,
    )


def _boost_clock(gpu: Gpu) -> float:
    """Clocks per second from the rate of the CUDA cores, each of which does two FLOPs per clock."""
    chip = get_chip(gpu.name)
    assert gpu.fp32_tflops is not None
    return gpu.fp32_tflops * 1e12 / (2 * chip.lanes * chip.processors)


H100 = device_of("h100")
