"""What a run covers: image sizes and dtypes by phase, for the released encoder on a GPU and for a dry run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OURS, TUNED, IN_FP8, EAGER, COMPILED = "ours", "ours, tuned", "ours, FP8", "eager channels-last", "torch.compile "
"""Names of contenders in results; the last is followed by a mode."""


class Size(NamedTuple):
    """Images of one call."""

    height: int
    width: int
    batch: int

    @property
    def name(self) -> str:
        """`1024 b1`, or `192x64 b1` where the sides differ."""
        side = f"{self.height}" if self.height == self.width else f"{self.height}x{self.width}"
        return f"{side} b{self.batch}"


def square(side: int, batch: int) -> Size:
    """Square images."""
    return Size(side, side, batch)


@dataclass(frozen=True)
class Scope:
    """What is checked and timed; what matters most comes first.

    Attributes:
        variant: of the encoder (`encoder.config.VARIANTS`).
        operators: sizes at which every operator is checked in the half types.
        exact: sizes at which they are checked in float32 too.
        models: sizes at which the whole model is checked.
        latency: sizes at which it is timed.
        toggles: sizes at which it is timed with each kernel and mode switched.
        compiled: sizes at which `torch.compile` is timed.
        leftover: sizes that are timed if time is left.
        profiled: size of the profiles.
        kernels: sizes at which each kernel is timed against its rivals, and block sizes are tuned.
        half: names of the half types, in which operators are checked.
        main: name of the type that is timed.
        calibrated: side of the photographs that FP8's scales are found on.
        rounds: of each timing, at most.
        calls: that a profile sums up.
    """

    variant: str
    operators: tuple[Size, ...]
    exact: tuple[Size, ...]
    models: tuple[Size, ...]
    latency: tuple[Size, ...]
    toggles: tuple[Size, ...]
    compiled: tuple[Size, ...]
    leftover: tuple[Size, ...]
    profiled: Size
    kernels: tuple[Size, ...]
    half: tuple[str, ...]
    main: str = "float16"
    calibrated: int = 512
    rounds: int = 15
    calls: int = 3


FOUR = (square(1024, 1), square(256, 8), square(1024, 8), square(256, 1))
"""The sizes of the performance model, the two with targets first."""

REAL = Scope(
    "fastvithd",
    operators=(square(1024, 1), square(256, 8), square(256, 1), Size(192, 64, 1), Size(320, 448, 1), square(1024, 8)),
    exact=(square(256, 1),),
    models=(square(1024, 1), square(256, 8), square(256, 1), square(1024, 8)),
    latency=FOUR,
    toggles=(square(1024, 1), square(256, 8)),
    compiled=FOUR,
    leftover=(square(2048, 1), square(512, 1), square(512, 8)),
    profiled=square(1024, 1),
    kernels=(square(1024, 1), square(256, 1)),
    half=("float16", "bfloat16"),
)

DRY = Scope(
    "tiny",
    operators=(square(64, 1),),
    exact=(),
    models=(square(64, 2),),
    latency=(square(64, 1), square(64, 2)),
    toggles=(square(64, 1),),
    compiled=(square(64, 1),),
    leftover=(square(128, 1),),
    profiled=square(64, 1),
    kernels=(square(64, 1),),
    half=("float16",),
    main="float32",  # PyTorch's float16 convolutions on a CPU are slow
    calibrated=64,
    rounds=3,
    calls=1,
)
