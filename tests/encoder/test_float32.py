"""Float32 inside a half-precision model: which dtype what has, before and after moves, copies and casts."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from fvexport.encoder.float32 import InFloat32, in_float32_now

pytestmark = pytest.mark.usefixtures("one_thread")

HALVES = [torch.float16, torch.bfloat16]


class Spy(nn.Module):
    """Hands its input on and remembers its dtype, and what `in_float32_now` said."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.dtype, in_float32_now()))
        return x


def island(*, hands_on: bool = False) -> InFloat32:
    torch.manual_seed(0)
    return InFloat32(nn.Sequential(nn.Linear(3, 2), Spy()).requires_grad_(False).eval(), hands_on=hands_on)


def spied(part: InFloat32) -> list[tuple[torch.dtype, bool]]:
    return part.module[1].seen


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_around_it(half: torch.dtype) -> None:
    part, plain = island(), island().module
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), part).to(half)
    assert model[0].weight.dtype == half
    assert torch.equal(part.module[0].weight, plain[0].weight)  # float32, and never rounded
    x = torch.randn(4, 3).to(half)
    y = part(x)
    assert y.dtype == half
    assert torch.equal(y, plain(x.float()).to(half))
    assert model(x).dtype == half
    assert spied(part) == [(torch.float32, True)] * 2
    assert not in_float32_now()


def test_half_input_alone() -> None:
    """Never told of a half-precision model: the input says it."""
    assert island()(torch.zeros(1, 3, dtype=torch.float16)).dtype == torch.float16
    assert island()(torch.zeros(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("half", HALVES)
def test_a_half_module_is_widened(half: torch.dtype) -> None:
    module = nn.Linear(3, 2).to(half)
    rounded = module.weight.float()
    part = InFloat32(module)
    assert torch.equal(part.module.weight, rounded)
    assert part(torch.zeros(1, 3, dtype=half)).dtype == half


def test_float64_stays_exact() -> None:
    part, plain = island().double(), island().module.double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(part(x), plain(x))
    assert spied(part) == [(torch.float64, True)]
    assert part.half().module[0].weight.dtype == torch.float32
    assert part.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("half", HALVES)
def test_handing_on(half: torch.dtype) -> None:
    """What no half type holds crosses from one to the next, and the last returns to the model's dtype."""
    first, second = island(hands_on=True), InFloat32(nn.Linear(2, 2).requires_grad_(False).eval())
    first.module[0].weight.fill_(1e30)
    second.module.weight.fill_(1e-30)
    model = nn.Sequential(first, second).to(half)
    model = copy.deepcopy(model)
    x = torch.ones(1, 3, dtype=half)
    assert first(x).dtype == torch.float32
    assert first(x).amax() > 1e30
    y = model(x)
    assert y.dtype == half
    torch.testing.assert_close(y.float(), 6 + second.module.bias.expand(1, 2), rtol=2e-2, atol=0)
    assert model.float()(x.float()).dtype == torch.float32
    exact = model.double()
    assert exact(x.double()).dtype == torch.float64


def test_copies_names_and_state() -> None:
    part = island()
    assert list(part.state_dict()) == ["module.0.weight", "module.0.bias"]
    assert not part.training
    assert not any(child.training for child in part.modules())
    other = copy.deepcopy(part).half()
    other.module[0].weight.fill_(7)
    assert not torch.equal(part.module[0].weight, other.module[0].weight)
    other.load_state_dict(part.state_dict())
    assert torch.equal(part.module[0].weight, other.module[0].weight)
    assert other.to("meta").module[0].weight.device.type == "meta"
    assert other.module[0].weight.dtype == torch.float32


def test_flag_is_of_this_thread_and_ends_with_an_error() -> None:
    seen: list[bool] = []

    class Elsewhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: seen.append(in_float32_now()))
            thread.start()
            thread.join()
            seen.append(in_float32_now())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        InFloat32(Elsewhere())(torch.zeros(1))
    assert seen == [False, True]
    assert not in_float32_now()


def test_nested() -> None:
    outer = InFloat32(nn.Sequential(island(), Spy()))
    outer(torch.zeros(1, 3, dtype=torch.float16))
    assert outer.module[1].seen == [(torch.float32, True)]  # the inner one's end is not the outer one's
