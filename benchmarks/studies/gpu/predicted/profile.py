"""Sums a profile by part of the model, so that measurements can stand beside predictions.

A replayed CUDA graph is a sequence of kernels whose names say little of what they compute. Our own kernels, with their
grids, come in a known order; everything between two of them belongs to the steps between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .....encoder.config import MIXERS
from .device import Device
from .parts import Step
from .scenario import Image, Scenario

OTHER = "other"
"""The part of kernels that no step launches, such as the copy of the input."""


@dataclass(frozen=True)
class ProfiledKernel:
    """One kernel of a profile.

    Attributes:
        name: as the profiler prints it.
        milliseconds: on the GPU.
        grid: programs along each axis, None where the profiler does not say.
    """

    name: str
    milliseconds: float
    grid: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Expected:
    """One kernel of a replay: the part that launches it; `name` and `grid` where it is one of ours."""

    part: str
    name: str = ""
    grid: tuple[int, ...] = ()


def expected_launches(image: Image, scenario: Scenario, device: Device) -> list[Expected]:
    """Every kernel of one call of the accelerated encoder in order; PyTorch's and cuBLAS's stand as nameless ones."""
    return [launch for step in _in_order(image) for launch in _of_step(step, image, scenario, device)]


def _of_step(step: Step, image: Image, scenario: Scenario, device: Device) -> Iterator[Expected]:
    for cost in scenario.cost(step, image, device).flat():
        yield Expected(step.part, cost.kernel, cost.grid) if cost.grid else Expected(step.part)


def _in_order(image: Image) -> Iterator[Step]:
    """The steps as the encoder runs them: a stage's blocks one after the other."""
    block: list[Step] = []
    for step in image.steps():
        if block and step.count != block[0].count:
            yield from block * block[0].count
            block = []
        if step.count == 1:
            yield from block
            block = []
            yield step
        else:
            block.append(step)
    yield from block * (block[0].count if block else 0)


def by_part(kernels: Sequence[ProfiledKernel], expected: Sequence[Expected]) -> dict[str, float]:
    """Milliseconds by part of one replay's kernels, given in order of their start.

    Our kernels are found in `expected` by name, and by grid where the profile has it. A kernel of PyTorch or cuBLAS
    counts for the nameless step that is due, or else for the part of the kernel before it.
    """
    ours = {launch.name for launch in expected if launch.name}
    found: dict[str, float] = {}
    due, part = 0, OTHER
    for kernel in kernels:
        if kernel.name in ours:
            at = _next(kernel, expected, due)
            part, due = (expected[at].part, at + 1) if at is not None else (OTHER, due)
        elif due < len(expected) and not expected[due].name:
            part, due = expected[due].part, due + 1
        found[part] = found.get(part, 0.0) + kernel.milliseconds
    return found


def _next(kernel: ProfiledKernel, expected: Sequence[Expected], due: int) -> int | None:
    """Index of the first expected launch of this kernel from `due` on."""
    for at in range(due, len(expected)):
        launch = expected[at]
        if launch.name == kernel.name and (kernel.grid is None or math.prod(kernel.grid) == math.prod(launch.grid)):
            return at
    return None


def part_of_module(name: str) -> str:
    """The part of the model that a module of the accelerated encoder belongs to, by the name that a profile gives it.

    Names are `stage 3 mixer`, `stage 3 ConvFFN products`, `stage 3 ConvFFN 7x7`, `stage 3 embedding`, `stage 4
    position`, `stem.0` to `stem.2` and `final_conv`; others stay as they are.
    """
    stage, _, what = name.removeprefix("stage ").partition(" ")
    if not name.startswith("stage ") or not stage.isdigit():
        return {"final_conv": "final_conv + SE"}.get(name, name)
    attends = MIXERS[int(stage) - 1] == "attention"
    parts = {
        "mixer": f"stage {stage} {'attention' if attends else 'dw3'}",
        "ConvFFN 7x7": f"stage {stage} dw7",
        "embedding": "embeddings",
        "position": "RepCPE dw7",
    }
    return parts.get(what, name)
