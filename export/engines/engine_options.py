"""What an engine build is asked for. Imports nothing heavy: the command line reads its choices from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ...core.errors import ConfigError
from ...encoder.config import FastViTHDConfig
from ..limits import MAX_BATCH

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
OPT_LEVELS = range(6)

Span = tuple[int, int, int]
"""Smallest, best and largest value of one size."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Input sizes that one engine takes; where all three values of each are equal, it is static.

    Attributes:
        batch: images per call.
        height, width: pixels.
    """

    batch: Span
    height: Span
    width: Span

    def __post_init__(self) -> None:
        for name, (low, best, high) in (("batch", self.batch), ("height", self.height), ("width", self.width)):
            if not 1 <= low <= best <= high:
                raise ConfigError(f"a profile goes MIN:OPT:MAX, each at least the one before; found {name} "
                                  f"{low}:{best}:{high}")  # fmt: skip

    @property
    def static(self) -> bool:
        """Whether it takes one shape alone."""
        return all(low == high for low, _, high in (self.batch, self.height, self.width))

    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Smallest, best and largest shape of `pixel_values` (B, 3, H, W)."""
        return tuple((b, 3, h, w) for b, h, w in zip(self.batch, self.height, self.width, strict=True))

    def check(self, batch: int, height: int, width: int) -> None:
        """Raises ConfigError for an input (B, 3, height, width) outside the profile."""
        for name, value, (low, _, high) in (
            ("batch", batch, self.batch), ("height", height, self.height), ("width", width, self.width),
        ):  # fmt: skip
            if not low <= value <= high:
                span = f"{low} alone" if low == high else f"{low} to {high}"
                option = "--batch" if name == "batch" else "--dynamic-res"
                raise ConfigError(f"the engine takes {name} {span}; found {value}: build it with another {option}")


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """The input sizes that an engine is asked for; what is None is taken from the ONNX file.

    Attributes:
        batch: fewest, usual and most images per call.
        resolutions: the same of height and of width, in pixels.
    """

    batch: Span | None = None
    resolutions: tuple[Span, Span] | None = None

    def fill(self, sizes: Sequence[int | str | None], own: tuple[int, int], architecture: FastViTHDConfig) -> Profile:
        """The profile of an ONNX file.

        Args:
            sizes: batch, height and width of the file: a number where it is fixed.
            own: height and width that it was made at.
            architecture: of the model.

        Raises:
            ConfigError: the file, or the model, has no such sizes.
        """
        fixed = sizes[0] if isinstance(sizes[0], int) else 1
        height, width = self.resolutions or ((own[0],) * 3, (own[1],) * 3)
        profile = Profile(batch=self.batch or (fixed, fixed, fixed), height=height, width=width)
        asked = (("batch", profile.batch), ("height", profile.height), ("width", profile.width))
        for (name, span), size in zip(asked, sizes, strict=True):
            if isinstance(size, int) and span != (size, size, size):
                option = "--batch dynamic" if name == "batch" else "--dynamic-res"
                found = ":".join(map(str, span))
                raise ConfigError(f"the ONNX file takes {name} {size} alone, not {found}; export it with {option}")
        if profile.batch[2] > MAX_BATCH:
            raise ConfigError(f"--batch must be at most {MAX_BATCH}; found {profile.batch[2]}")
        for heights, widths in zip(profile.height, profile.width, strict=True):
            architecture.check_resolution(heights, widths)
        return profile


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """One build.

    Attributes:
        flavour: which TensorRT; None for the one that is installed (the full one, where both are and a GPU is there).
        workspace: bytes that one layer may use while it computes; None for all that the GPU has.
        opt_level: 0 (fast build) to 5 (fastest engine); None for TensorRT's own, 3.
        timing_cache: a file of measured tactics; None for one in the user's cache, kept per GPU and version.
        hardware_compatible: runs on every GPU from Ampere on (full TensorRT; RTX engines always do).
        version_compatible: runs on later releases of the same major version.
        strip: leave the weights out; they are taken from the ONNX file when the engine is loaded.
    """

    flavour: Flavour | None = None
    workspace: int | None = None
    opt_level: int | None = None
    timing_cache: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        if self.flavour is not None and self.flavour not in FLAVOURS:
            raise ConfigError(f"unknown flavour {self.flavour!r}; known are {', '.join(FLAVOURS)}")
        if self.workspace is not None and self.workspace < 1:
            raise ConfigError(f"--workspace must be positive; found {self.workspace}")
        if self.strip and self.version_compatible:
            raise ConfigError("--strip and --version-compatible exclude each other: the code that a version-compatible "
                              "engine carries takes no weights")  # fmt: skip
        if self.opt_level is not None and self.opt_level not in OPT_LEVELS:
            raise ConfigError(f"--opt-level goes from {OPT_LEVELS.start} to {OPT_LEVELS.stop - 1}; "
                              f"found {self.opt_level}")  # fmt: skip
