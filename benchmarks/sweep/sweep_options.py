"""What a sweep is asked for. Imports nothing heavy: the command line reads its choices from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.errors import ConfigError
from ...encoder.weight_options import WeightOptions
from ...export.backend_table import get_backend
from ...export.precision import PRECISIONS, Precision

DEFAULT_RESOLUTIONS = (256, 512, 768, 1024, 1536, 2048)
LLMS = ("qwen2-0.5b", "qwen2-1.5b", "qwen2-7b")
DEFAULT_SAMPLES = 8
DEFAULT_PROMPT_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How a cell is timed. Part of the environment: results with other settings are other results.

    Attributes:
        window_s: calls of one window go on for so long.
        max_calls: and never number more.
        min_rounds: windows that every cell gets, one in each round.
        max_rounds: and at most, after which it is marked unstable.
        last: so many last windows have to agree.
        tolerance: (largest - smallest) / median up to which they do.
        beside: the reference is measured again after so many cells.
    """

    window_s: float = 0.3
    max_calls: int = 50
    min_rounds: int = 7
    max_rounds: int = 20
    last: int = 3
    tolerance: float = 0.05
    beside: int = 3

    def __post_init__(self) -> None:
        if self.min_rounds < self.last:
            raise ConfigError(f"--rounds must be at least {self.last}; found {self.min_rounds}")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """One sweep.

    Attributes:
        resolutions: (height, width) in pixels.
        backends: names of the table of backends; None for all.
        precisions: None for all that each backend runs natively.
        batches: images per call.
        weights: whose encoder is measured.
        llms: of `LLMS`, each measured behind the encoder for the time to first token.
        prompt_tokens: of the text beside the visual tokens.
        threads: of one call on the CPU; None for the physical cores, within the container's CPU quota.
        samples: pictures that quantized files are calibrated on.
        peers: measure the plain ways beside ours.
        budget_s: seconds that the sweep may take; None for as many as it needs.
        timeout_s: for one step of one cell, such as loading.
        memory_gb: of one cell's process; None for nine tenths of what is available.
        retry: measure cells again that failed, timed out, ran out of memory or crashed.
    """

    resolutions: tuple[tuple[int, int], ...] = tuple((side, side) for side in DEFAULT_RESOLUTIONS)
    backends: tuple[str, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    batches: tuple[int, ...] = (1,)
    weights: WeightOptions = field(default_factory=WeightOptions)
    llms: tuple[str, ...] = ()
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    threads: int | None = None
    samples: int = DEFAULT_SAMPLES
    peers: bool = True
    budget_s: float | None = None
    timeout_s: float = 600.0
    memory_gb: float | None = None
    retry: bool = False

    def __post_init__(self) -> None:
        for height, width in self.resolutions:
            self.weights.architecture.check_resolution(height, width)
        for name in self.backends or ():
            get_backend(name)
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise ConfigError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
        for llm in self.llms:
            if llm not in LLMS:
                raise ConfigError(f"unknown language model {llm!r}; known are {', '.join(LLMS)}")
        for name, number in (("batch", min(self.batches, default=0)), ("samples", self.samples),
                             ("prompt-tokens", self.prompt_tokens), ("threads", self.threads)):  # fmt: skip
            if number is not None and number < 1:
                raise ConfigError(f"--{name} must be at least 1; found {number}")
        for name, amount in (("budget", self.budget_s), ("timeout", self.timeout_s), ("memory", self.memory_gb)):
            if amount is not None and amount <= 0:
                raise ConfigError(f"--{name} must be above 0; found {amount:g}")
        if not self.resolutions:
            raise ConfigError("no resolution to sweep over; give --res 256,512,1024")
