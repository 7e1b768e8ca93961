"""Who computes each step of the encoder, and what that costs: the release before, this version, changes, and rivals."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .....core.errors import ConfigError
from .....encoder.config import VARIANTS, FastViTHDConfig
from .....kernels.dispatch import BASELINE, DEFAULTS, modes_for
from .....kernels.launches import Launch, encoder_calls, recording
from .....kernels.policy import ROWS, in_fp8, kernel_for
from .....kernels.table import Config, default_config
from . import library, release
from .codes import ARCH
from .cost import Cost
from .device import Device
from .operators import cost_of
from .parts import Step, steps_of

Precision = Literal["fp8"] | None
Key = tuple[str, frozenset[tuple[str, int]], bool, bool]
"""Operator, sizes, whether GELU and whether a residual ride on it."""
Calls = Mapping[Key, tuple[Launch, ...]]
"""The launches of each call."""
Choose = Callable[[str, int], str | None]
"""Which kernel computes a part of the model on an input of so many channels; None for PyTorch."""


@dataclass(frozen=True)
class Image:
    """What the encoder is called with.

    Attributes:
        height, width: in pixels.
        batch: images per call.
        config: the architecture.
    """

    height: int
    width: int
    batch: int
    config: FastViTHDConfig = VARIANTS["fastvithd"]

    def steps(self) -> tuple[Step, ...]:
        """The encoder's steps at this size."""
        return tuple(steps_of(self.config, self.height, self.width, self.batch))


@dataclass(frozen=True)
class Scenario:
    """Our kernels under one policy.

    Attributes:
        name: for tables.
        kernels: kernels and modes that may be used, by name.
        released: with the block sizes and choices of the release before.
        precision: `fp8` for products in FP8.
    """

    name: str
    kernels: frozenset[str]
    released: bool = False
    precision: Precision = None

    @property
    def pdl(self) -> bool:
        return "pdl" in self.kernels

    def chooser(self, step: Step, device: Device) -> Choose:
        """Which kernel computes a part of a step, by its name in the policy and its input's channels."""

        def choose(part: str, channels: int) -> str | None:
            if self.released:
                return release.kernel(part, channels, step.rows, device.processors)
            known = part if any(row.part == part for row in ROWS) else part.removesuffix(" x2")
            return kernel_for(known, torch.float16, channels, step.rows, device.processors, self.kernels, arch=ARCH)

        return choose

    def cost(self, step: Step, image: Image, device: Device) -> Cost:
        """Predicted time of one step."""
        modes = int(modes_for(ARCH, self.kernels))
        calls = recorded(image, modes, self.released, self.precision)
        choose = self.chooser(step, device)
        cost = fp8_cost(step, calls, device) if self.precision else None
        cost = cost or step_cost(step, choose, calls, device)
        return cost.with_pdl() if self.pdl else cost


BEFORE = Scenario("before", frozenset(BASELINE), released=True)
AFTER = Scenario("after", DEFAULTS)


# --- our kernels ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def recorded(image: Image, modes: int, released: bool, precision: Precision = None) -> Calls:
    """The launches of every call that the encoder can be put together from, recorded without a GPU."""
    return {
        (op, frozenset(sizes.items()), *_ends(launches)): launches
        for op, sizes, launches in recorded_calls(image, modes, released, precision)
    }


def recorded_calls(
    image: Image, modes: int, released: bool, precision: Precision = None
) -> Iterator[tuple[str, dict[str, int], tuple[Launch, ...]]]:
    """Operator, sizes and launches of each of those calls."""
    size = (image.height, image.width, image.batch)
    for call in encoder_calls(image.config, *size, torch.float16, modes=modes, precision=precision):
        if released and call.op not in BASELINE:
            continue
        with recording() as made:
            call.launch(_config(call.op, call.sizes, released))
        yield call.op, call.sizes, tuple(made)


def _config(op: str, sizes: Mapping[str, int], released: bool) -> Config:
    return release.config(op, sizes) if released else default_config(op, ARCH, "half", sizes)


def _ends(launches: Sequence[Launch]) -> tuple[bool, bool]:
    gelu = any(dict(launch.constants).get("GELU") for launch in launches)
    return gelu, any(name.startswith("residual") for launch in launches for name, _ in launch.signature)


def step_cost(step: Step, choose: Choose, calls: Calls, device: Device) -> Cost:
    """A step by the kernels of the policy, and by PyTorch where it chooses none."""
    sizes, m = step.sizes, step.rows
    if step.kind == "ffn":
        c, hidden = sizes["c"], sizes["hidden"]
        if choose("ConvFFN", c) == "mlp":
            return launched("mlp", sizes, calls, device, gelu=True, residual=True)
        first = multiplied(choose("fc1", c), {"m": m, "n": hidden, "k": c}, calls, device, gelu=True)
        return first.then(
            multiplied(choose("fc2", hidden), {"m": m, "n": c, "k": hidden}, calls, device, residual=True)
        )
    kernel = choose(step.row, step.channels)
    if kernel is None:
        return pytorch(step, calls, device)
    if step.kind == "qkv" and kernel != "norm_linear":
        norm = library.elementwise(device, m * sizes["k"])
        return norm.then(multiplied(kernel, sizes, calls, device))
    if step.kind == "product":
        return multiplied(kernel, sizes, calls, device, gelu=step.gelu, residual=step.residual)
    return launched(kernel, call_sizes(step), calls, device, gelu=step.gelu, residual=step.residual)


def call_sizes(step: Step) -> dict[str, int]:
    """The sizes of a step's call, without what only the model needs."""
    names = {"attention": ("tokens", "batch", "heads"), "stem": ("m", "c", "levels")}.get(step.kind, tuple(step.sizes))
    return {name: step.sizes[name] for name in names}


def fp8_cost(step: Step, calls: Calls, device: Device) -> Cost | None:
    """A step whose products are FP8; None for one that FP8 leaves as it is.

    What comes before a product writes FP8 itself: the depthwise convolution, attention, and LayerNorm in `norm_fp8`.
    """
    sizes, m = step.sizes, step.rows
    if step.kind == "ffn" and in_fp8("fc1", sizes["c"]):
        c, hidden = sizes["c"], sizes["hidden"]
        first = launched("linear_fp8", {"m": m, "n": hidden, "k": c}, calls, device, gelu=True)
        return first.then(launched("linear_fp8", {"m": m, "n": c, "k": hidden}, calls, device, residual=True))
    if step.row not in ("qkv", "proj") or not in_fp8(step.row, sizes["k"]):
        return None
    product = launched("linear_fp8", sizes, calls, device, residual=step.residual)
    return (
        product if step.row == "proj" else launched("norm_fp8", {"m": m, "k": sizes["k"]}, calls, device).then(product)
    )


def multiplied(
    kernel: str | None, sizes: Mapping[str, int], calls: Calls, device: Device, *, gelu: bool = False,
    residual: bool = False,
) -> Cost:  # fmt: skip
    """A product (m, n, k) with its ends: by one of our kernels, or PyTorch's if `kernel` is None."""
    product = library.product(device, sizes["m"], sizes["n"], sizes["k"])
    if kernel is None:
        return product.then(*_ends_by_pytorch(device, sizes["m"] * sizes["n"], gelu, residual))
    if kernel != "cublas":
        return launched(kernel, sizes, calls, device, gelu=gelu, residual=residual)
    return (
        product.then(launched(kernel, sizes, calls, device, gelu=gelu, residual=residual))
        if gelu or residual
        else product
    )


def _ends_by_pytorch(device: Device, values: int, gelu: bool, residual: bool) -> list[Cost]:
    ends = [library.elementwise(device, values, erf=True)] if gelu else []
    return [*ends, library.elementwise(device, values, reads=2)] if residual else ends


def launched(
    op: str, sizes: Mapping[str, int], calls: Calls, device: Device, *, gelu: bool = False,
    residual: bool = False,
) -> Cost:  # fmt: skip
    """All launches of one call of an operator.

    Raises ConfigError where `encoder_calls` has no such call.
    """
    launches = calls.get((op, frozenset(sizes.items()), gelu, residual))
    if launches is None:
        ends = " with GELU" * gelu + " with a residual" * residual
        raise ConfigError(f"kernels.launches.encoder_calls has no {op} of {dict(sizes)}{ends}")
    first, *others = (cost_of(launch, sizes, device) for launch in launches)
    return first.then(*others)


# --- rivals -----------------------------------------------------------------------------------------------


def baseline(step: Step, calls: Calls, device: Device) -> Cost:
    """A step by the kernel of the release before: what rivals without countable code are compared with."""
    return step_cost(step, lambda part, channels: release.KERNELS[part], calls, device)


def pytorch(step: Step, calls: Calls, device: Device) -> Cost:
    """A step by PyTorch's best functions: F.linear with bias, cuDNN, SDPA, LayerNorm, and a pass for the rest."""
    sizes, values = step.sizes, step.results
    bias = library.elementwise(device, values)
    ends = _ends_by_pytorch(device, values, step.gelu, step.residual)
    if step.kind == "stem":
        return library.convolution(device, sizes).then(bias, *ends)
    if step.kind == "gate":
        return library.passes(7)
    if step.kind == "depthwise":
        return library.depthwise(baseline(step, calls, device)).then(bias, *ends)
    if step.kind == "attention":
        return library.attention(baseline(step, calls, device))
    if step.kind == "ffn":
        m, c, hidden = (sizes[name] for name in ("m", "c", "hidden"))
        first = multiplied(None, {"m": m, "n": hidden, "k": c}, calls, device, gelu=True)
        return first.then(multiplied(None, {"m": m, "n": c, "k": hidden}, calls, device, residual=True))
    product = multiplied(None, sizes, calls, device, gelu=step.gelu, residual=step.residual)
    return library.elementwise(device, sizes["m"] * sizes["k"]).then(product) if step.kind == "qkv" else product


def eager(step: Step, calls: Calls, device: Device) -> Cost:
    """The fused model in channels-last, in a CUDA graph: 1x1 convolutions add their bias in a pass of their own."""
    found = pytorch(step, calls, device)
    if step.kind == "ffn":
        m, c, hidden = (step.sizes[name] for name in ("m", "c", "hidden"))
        return found.then(library.elementwise(device, m * hidden), library.elementwise(device, m * c))
    if step.row == "pointwise":
        return found.then(library.elementwise(device, step.results))
    return found


def inductor(step: Step, calls: Calls, device: Device) -> Cost:
    """torch.compile with max-autotune in a CUDA graph: cuBLAS or a Triton product with fused ends, fused passes."""
    values = step.results
    if step.kind == "stem":
        return library.convolution(device, step.sizes).then(library.elementwise(device, values, erf=True))
    if step.kind == "gate":
        return library.passes(4)
    if step.kind == "depthwise":
        return library.depthwise(baseline(step, calls, device)).then(library.elementwise(device, values, erf=step.gelu))
    if step.kind == "ffn":
        m, c, hidden = (step.sizes[name] for name in ("m", "c", "hidden"))
        first = _autotuned(device, {"m": m, "n": hidden, "k": c}, calls, gelu=True)
        return first.then(_autotuned(device, {"m": m, "n": c, "k": hidden}, calls, residual=True))
    if step.kind == "product":
        return _autotuned(device, step.sizes, calls, gelu=step.gelu, residual=step.residual)
    return pytorch(step, calls, device)


TEMPLATE = 0.9
"""Time of Inductor's tuned product template over our baseline kernel's, which is the same kernel with other tiles."""


def _autotuned(
    device: Device, sizes: Mapping[str, int], calls: Calls, *, gelu: bool = False, residual: bool = False
) -> Cost:
    m, n, k = (sizes[name] for name in "mnk")
    ours = launched("linear", sizes, calls, device, gelu=gelu, residual=residual)
    template = Cost("template", TEMPLATE * ours.seconds, {})
    end = library.elementwise(device, m * n, reads=2 if residual else 1, erf=gelu)
    return min(template, library.product(device, m, n, k).then(end), key=lambda cost: cost.seconds)


Rival = Callable[[Step, Calls, Device], Cost]
RIVALS: dict[str, Rival] = {"Inductor max-autotune": inductor, "eager channels-last": eager, "cuBLAS/cuDNN": pytorch}
"""Who else computes the encoder, all in CUDA graphs."""


def rival_cost(rival: str, step: Step, image: Image, device: Device) -> Cost:
    """Predicted time of one step by a rival of RIVALS."""
    return RIVALS[rival](step, recorded(image, 0, True), device)
