"""Searches block sizes on the GPU at hand, for the calls that the encoder makes at given sizes.

Each search starts from the committed table's choice and changes one size at a time, to half or double, as long as that
is faster. What is found goes to the user's cache (`table.cache_file`), where `table.config_for` looks first. Only
`fvexport tune` calls this: no model searches while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..encoder.config import FastViTHDConfig
from ..errors import UnavailableError, first_line
from ..place import os_errors, prepare, scratch_beside
from ..progress import Progress, silent
from . import language
from .launches import Call, encoder_calls
from .table import Config, arch_of, cache_file, default_config, dtype_class, environment_of, key_of, tuned

BOUNDS = {
    "BLOCK_M": (16, 256), "BLOCK_N": (16, 256), "BLOCK_K": (16, 128), "BLOCK_H": (16, 128), "GROUP_M": (4, 16),
    "BLOCK": (256, 4096), "SPLITS": (1, 16), "SPLIT_N": (1, 4), "PERSISTENT": (0, 1),
    "ROWS": (1, 4), "BLOCK_W": (4, 64), "BLOCK_C": (16, 256), "num_warps": (1, 16), "num_stages": (1, 6),
}  # fmt: skip
"""Smallest and largest value of each size that is tried."""

WORTH = 0.98
"""A change has to bring a time under this share of the best one so far: less is the clock's noise."""


AGREE = 1e-2
"""Relative L2 distance between results of two configurations: half precision's rounding, nothing more."""


@dataclass(frozen=True)
class Search:
    """What a search would begin with, or what it found.

    Attributes:
        key: what it is kept under (`table.key_of`).
        start: the committed table's choice.
        neighbours: configurations that the first step tries.
        config: the fastest one found, None before it ran.
        start_ms, ms: medians of the start and of the fastest one, None before it ran.
        tried: configurations that ran.
        failed: configurations that did not compile or fit, or computed something else.
    """

    key: str
    start: Config
    neighbours: int
    config: Config | None = None
    start_ms: float | None = None
    ms: float | None = None
    tried: int = 0
    failed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TuneReport:
    """Searches, and where their results are kept (None for a plan)."""

    arch: str
    searches: tuple[Search, ...]
    file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        file = None if self.file is None else str(self.file)
        return {"arch": self.arch, "file": file, "searches": [s.to_dict() for s in self.searches]}


def plan(
    config: FastViTHDConfig, resolutions: Sequence[tuple[int, int]], batches: Sequence[int],
    dtype: torch.dtype = torch.float16, *, arch: str | None = None,
) -> TuneReport:  # fmt: skip
    """What `tune` would search, on any machine: one search for each key.

    Args:
        config: the architecture.
        resolutions: (height, width) of images.
        batches: images per call.
        dtype: searches in float16 hold for bfloat16.
        arch: whose table to start from (`sm_90`); by default that of the GPU at hand, sm_90 where there is none.
    """
    if arch is None:
        arch = arch_of(torch.device("cuda")) if torch.cuda.is_available() else "sm_90"
    searches = []
    for key, call in _calls(config, resolutions, batches, dtype, "meta"):
        start = default_config(call.op, arch, dtype_class(dtype), call.sizes)
        searches.append(Search(key, start, len(list(neighbours(start)))))
    return TuneReport(arch, tuple(searches))


def tune(
    config: FastViTHDConfig, resolutions: Sequence[tuple[int, int]], batches: Sequence[int],
    dtype: torch.dtype = torch.float16, *, progress: Progress = silent,
) -> TuneReport:  # fmt: skip
    """Searches on the GPU, and writes the cache after each search: a run that is killed keeps what it found.

    Args: as `plan` has them.

    Raises:
        UnavailableError: no GPU that the kernels run on, or no Triton.
        ArtifactError: the cache cannot be written.
    """
    check_gpu()
    from triton import testing

    device = torch.device("cuda", torch.cuda.current_device())
    out, arch = cache_file(device), arch_of(device)
    total = len(plan(config, resolutions, batches, dtype).searches)
    done: list[Search] = []
    for key, call in _calls(config, resolutions, batches, dtype, "cuda"):
        progress(f"tune {key}", len(done), total)
        start = default_config(call.op, arch, dtype_class(dtype), call.sizes)
        wanted = cast("Tensor", call.launch(start)).float()

        def measure(candidate: Config, call: Call = call, wanted: Tensor = wanted) -> float:
            found = cast("Tensor", call.launch(candidate)).float()
            if not (found - wanted).norm() <= AGREE * wanted.norm():
                raise ValueError("another result")
            return float(testing.do_bench(lambda: call.launch(candidate), warmup=10, rep=50, return_mode="median"))

        done.append(search(key, start, measure))
        write(out, environment_of(device), {key: done[-1]})
    tuned.cache_clear()
    return TuneReport(arch, tuple(done), out)


def search(key: str, start: Config, measure: Callable[[Config], float]) -> Search:
    """Goes from `start` to the fastest neighbour until none is faster.

    Args:
        key: of the result.
        start: has to run.
        measure: milliseconds of a configuration; raises for one that does not compile, fit or agree.
    """
    times: dict[str, float | None] = {}

    def timed(config: Config) -> float | None:
        name = repr(config.arguments)
        if name not in times:
            try:
                times[name] = measure(config)
            except Exception:  # whatever the compiler or the driver says: this one is not used
                times[name] = None
        return times[name]

    start_ms = measure(start)
    times[repr(start.arguments)] = start_ms
    best, best_ms = start, start_ms
    while True:
        ran = [(ms, c) for c in neighbours(best) if (ms := timed(c)) is not None]
        ms, nearest = min(ran, key=lambda pair: pair[0], default=(best_ms, best))
        if ms >= WORTH * best_ms:
            break
        best, best_ms = nearest, ms
    failed = sum(ms is None for ms in times.values())
    return Search(key, start, len(list(neighbours(start))), best, start_ms, best_ms, len(times) - failed, failed)


def neighbours(config: Config) -> Iterator[Config]:
    """The configurations that differ in one size: half or double of it, one stage less or more."""
    arguments = config.arguments
    for name, value in arguments.items():
        low, high = BOUNDS[name]
        for other in (value - 1, value + 1) if name in ("num_stages", "PERSISTENT") else (value // 2, value * 2):
            if low <= other <= high:
                changed = arguments | {name: other}
                warps, stages = changed.pop("num_warps"), changed.pop("num_stages")
                yield Config(changed, warps, stages)


def write(out: Path, environment: dict[str, Any], found: dict[str, Search]) -> None:
    """Adds searches to a cache file, which is the old one or the new one at any moment.

    Raises ArtifactError where it cannot be written.
    """
    try:
        configs = dict(json.loads(out.read_text(encoding="utf-8"))["configs"])
    except (OSError, ValueError, KeyError, TypeError):
        configs = {}
    for key, result in found.items():
        assert result.config is not None
        configs[key] = result.config.to_dict() | {"ms": result.ms, "default_ms": result.start_ms}
    with os_errors(out), scratch_beside(out) as scratch:
        prepare(out)
        scratch.write_text(json.dumps({"environment": environment, "configs": configs}, indent=1), encoding="utf-8")
        scratch.replace(out)


def check_gpu() -> None:
    """Raises UnavailableError where kernels cannot be timed."""
    if not language.INSTALLED or language.INTERPRETED:
        found = "TRITON_INTERPRET is set" if language.INTERPRETED else "Triton is not installed"
        raise UnavailableError(f'cannot time kernels: {found}; `pip install "fvexport[triton]"` on Linux')
    if not torch.cuda.is_available():
        raise UnavailableError("cannot time kernels: PyTorch finds no NVIDIA GPU; --dry-run lists what would be tried")
    try:
        arch_of(torch.device("cuda"))
    except RuntimeError as error:
        raise UnavailableError(f"cannot time kernels: {first_line(error)}") from None


def _calls(
    config: FastViTHDConfig, resolutions: Sequence[tuple[int, int]], batches: Sequence[int], dtype: torch.dtype,
    device: str,
) -> Iterator[tuple[str, Call]]:  # fmt: skip
    """The encoder's calls with their keys, each key once: the largest sizes first, which stand for its class."""
    seen: set[str] = set()
    sizes = sorted(((h * w * b, h, w, b) for h, w in resolutions for b in batches), reverse=True)
    for _, height, width, batch in sizes:
        for call in encoder_calls(config, height, width, batch, dtype, device=device):
            key = key_of(call.op, dtype, call.sizes)
            if key not in seen:
                seen.add(key)
                yield key, call
