"""Every kernel that can compute a part of the model, with its predicted time: what rows of the policy quote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .....kernels.dispatch import modes_for
from .codes import ARCH
from .cost import Cost
from .device import Device
from .parts import Step
from .scenario import AFTER, Calls, Image, Scenario, call_sizes, launched, multiplied, pytorch, recorded, step_cost

PYTORCH = "PyTorch"
PRODUCT_PAIR = "fc1, fc2"
PRODUCTS = ("linear", "linear_tma", "split_k", "cublas")


@dataclass(frozen=True)
class Alternatives:
    """The ways to compute one part of the model at one size.

    Attributes:
        row: the part, as `kernels.policy` names it.
        sizes: of the call.
        count: how often the encoder computes it.
        costs: by kernel; `PyTorch` is its best functions.
        chosen: the kernel that the policy chooses.
    """

    row: str
    sizes: Mapping[str, int]
    count: int
    costs: Mapping[str, Cost]
    chosen: str

    @property
    def best(self) -> str:
        """The fastest by prediction."""
        return min(self.costs, key=lambda kernel: self.costs[kernel].seconds)

    @property
    def loss(self) -> float:
        """Seconds of one call of the encoder that the policy's choice loses against the fastest."""
        return self.count * (self.costs[self.chosen].seconds - self.costs[self.best].seconds)


def alternatives(image: Image, device: Device, scenario: Scenario = AFTER) -> Iterator[Alternatives]:
    """All parts of the encoder at one size, equal ones once: all kernels with the scenario's modes."""
    modes = int(modes_for(ARCH, scenario.kernels))
    calls = recorded(image, modes, released=False)
    baseline = recorded(image, 0, released=True)
    seen: dict[tuple[str, frozenset[tuple[str, int]]], Alternatives] = {}
    for step in image.steps():
        for found in _of_step(step, scenario, calls, baseline, device):
            key = (found.row, frozenset(found.sizes.items()))
            count = found.count + (seen[key].count if key in seen else 0)
            seen[key] = Alternatives(found.row, found.sizes, count, found.costs, found.chosen)
    yield from seen.values()


def _of_step(step: Step, scenario: Scenario, calls: Calls, baseline: Calls, device: Device) -> Iterator[Alternatives]:
    if not step.row:
        return
    choose = scenario.chooser(step, device)
    if step.kind != "ffn":
        costs = {PYTORCH: pytorch(step, baseline, device)}
        costs |= {op: _by(step, op, calls, device) for op in _kernels(step, calls)}
        yield _alternatives(step, step.row, step.sizes, costs, choose(step.row, step.channels), scenario)
        return
    m, c, hidden = (step.sizes[name] for name in ("m", "c", "hidden"))
    two = {}
    for row, n, k in (("fc1", hidden, c), ("fc2", c, hidden)):
        sizes, gelu, residual = {"m": m, "n": n, "k": k}, row == "fc1", row == "fc2"
        costs = {PYTORCH: multiplied(None, sizes, calls, device, gelu=gelu, residual=residual)}
        for op in PRODUCTS:
            if (op, frozenset(sizes.items()), gelu, residual) in calls:
                costs[op] = multiplied(op, sizes, calls, device, gelu=gelu, residual=residual)
        two[row] = _alternatives(step, row, sizes, costs, choose(row, k), scenario)
    mlp = choose("ConvFFN", c) == "mlp"
    first, second = two["fc1"], two["fc2"]
    both = {PRODUCT_PAIR: first.costs[first.chosen].then(second.costs[second.chosen])}
    if ("mlp", frozenset(step.sizes.items()), True, True) in calls:
        fused = launched("mlp", step.sizes, calls, device, gelu=True, residual=True)
        both["mlp"] = fused.with_pdl() if scenario.pdl else fused
    yield Alternatives("ConvFFN", step.sizes, step.count, both, "mlp" if mlp else PRODUCT_PAIR)
    if not mlp:
        yield from two.values()


def _alternatives(
    step: Step, row: str, sizes: Mapping[str, int], costs: Mapping[str, Cost], chosen: str | None, scenario: Scenario
) -> Alternatives:
    ready = {name: cost.with_pdl() if scenario.pdl else cost for name, cost in costs.items()}
    return Alternatives(row, sizes, step.count, ready, chosen or PYTORCH)


def _kernels(step: Step, calls: Calls) -> Iterator[str]:
    """The kernels that have a call for a step."""
    if step.kind == "qkv":
        yield from ("norm_linear", "cublas")
    sizes = frozenset(call_sizes(step).items())
    for op, known, gelu, residual in calls:
        if known == sizes and gelu == step.gelu and residual == step.residual and op != "norm_linear":
            yield op


def _by(step: Step, op: str, calls: Calls, device: Device) -> Cost:
    return step_cost(step, lambda part, channels: op, calls, device)
