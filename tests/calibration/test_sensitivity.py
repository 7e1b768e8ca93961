"""What each layer costs, against whole forward passes; and the fewest layers in float for a bound."""

from __future__ import annotations

import copy
import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fvexport.calibration.policy import Policy, row_of
from fvexport.calibration.qdq import QuantizedConv, QuantizedLinear
from fvexport.calibration.quantize import quantizable, quantize
from fvexport.calibration.ranges_file import Stats
from fvexport.calibration.sensitivity import (
    MARGIN_DB,
    LayerNoise,
    choose_float_layers,
    meet_bound,
    sensitivity,
    swap,
)
from fvexport.core.errors import ConfigError
from fvexport.core.verdict.figures import VARIATION, compare
from fvexport.encoder.fastvithd import FastViTHD

pytestmark = pytest.mark.usefixtures("one_thread")

POLICY = Policy("onnxruntime-cpu")


def stricter_sqnr(reference: Tensor, candidate: Tensor) -> float:
    """Signal over error in dB of the worst picture, the lower of plain and centred, by the formula in PyTorch.

    Args:
        reference, candidate: (B, C, H, W) or (B, C, N), a picture each.
    """
    a, b = (x.double().flatten(2) for x in (reference, candidate))
    errors = (b - a).square().sum((1, 2))
    noise = float((errors / a.square().sum((1, 2))).max())
    varying = (a - a.mean((0, 2), keepdim=True)).square().sum((1, 2)).mean()
    if varying > VARIATION**2 * a.square().sum((1, 2)).mean():
        noise = max(noise, float(errors.max() / varying))
    return -10 * math.log10(noise)


@pytest.fixture(scope="module")
def quantized(fused_tiny: FastViTHD, stats_tiny: Stats) -> FastViTHD:
    return quantize(fused_tiny, stats_tiny, POLICY)


@pytest.fixture(scope="module")
def expected(fused_tiny: FastViTHD, held_out: Tensor) -> Tensor:
    with torch.inference_mode():
        return fused_tiny(held_out)


@pytest.fixture(scope="module")
def found(fused_tiny: FastViTHD, quantized: FastViTHD, held_out: Tensor) -> list[LayerNoise]:
    return sensitivity(fused_tiny, quantized, held_out)


def test_as_whole_forward_passes(
    fused_tiny: FastViTHD, quantized: FastViTHD, held_out: Tensor, expected: Tensor, found: list[LayerNoise]
) -> None:
    assert {layer.name for layer in found} == set(quantizable(fused_tiny, POLICY))
    for layer in found:
        model = copy.deepcopy(fused_tiny)
        swap(model, {layer.name: quantized.get_submodule(layer.name)})
        with torch.inference_mode():
            wanted = stricter_sqnr(expected.mT, model(held_out).mT)
        assert layer.sqnr_db == pytest.approx(wanted, abs=1e-6)
        assert layer.kind == row_of(layer.name).kind
        assert layer.noise == pytest.approx(10 ** (-wanted / 10))
    assert [layer.sqnr_db for layer in found] == sorted(layer.sqnr_db for layer in found)
    assert found[0].sqnr_db < found[-1].sqnr_db - 6


def test_shares_of_the_work(fused_tiny: FastViTHD, found: list[LayerNoise]) -> None:
    """Multiply-adds of a layer: its weights times the positions they are used at, at 128 x 128."""
    positions = [1024, 256, 64, 16, 4]
    work = {
        layer.name: fused_tiny.get_submodule(layer.name).weight.numel() * positions[int(layer.name.split(".")[1])]
        for layer in found
    }
    for layer in found:
        assert layer.share == pytest.approx(work[layer.name] / sum(work.values()))


def test_models_are_left_alone(fused_tiny: FastViTHD, quantized: FastViTHD, held_out: Tensor) -> None:
    printed = repr(fused_tiny), repr(quantized)
    before = [copy.deepcopy(model.state_dict()) for model in (fused_tiny, quantized)]
    steps: list[tuple[str, int, int | None]] = []
    sensitivity(fused_tiny, quantized, held_out, progress=lambda *step: steps.append(step))
    assert (repr(fused_tiny), repr(quantized)) == printed
    for model, weights in zip((fused_tiny, quantized), before, strict=True):
        assert all(torch.equal(v.float(), weights[k].float()) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks for m in model.modules())
    total = len(quantizable(fused_tiny, POLICY))
    assert steps == [("sensitivity", done, total) for done in range(total + 1)]


# --- which layers ------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(5, 80), min_size=1, max_size=7), st.floats(-3, 3), st.floats(1, 90))
def test_fewest_layers(decibels: list[float], offset: float, bound: float) -> None:
    """No smaller set of layers would do, by exhaustion; and what is chosen does."""
    layers = [LayerNoise(f"layer {i}", "", db, 0.0) for i, db in enumerate(decibels)]
    total = sum(layer.noise for layer in layers)
    measured = -10 * math.log10(total) + offset
    together = 10 ** (-measured / 10) / total
    chosen = choose_float_layers(layers, measured, bound)

    def meets(left_out: set[str], slack: float) -> bool:
        noise = together * sum(layer.noise for layer in layers if layer.name not in left_out)
        return noise <= 10 ** (-(bound + MARGIN_DB) / 10) * slack

    assert meets(set(chosen), 1 + 1e-6) or len(chosen) == len(layers)
    names = [layer.name for layer in layers]
    for smaller in combinations(names, max(0, len(chosen) - 1)):
        if chosen:
            assert not meets(set(smaller), 1 - 1e-6)
    worst_first = sorted(range(len(layers)), key=lambda i: decibels[i])
    assert chosen == [names[i] for i in worst_first[: len(chosen)]]


def measure_on(pixels: Tensor, expected: Tensor, calls: list[FastViTHD]) -> object:
    def measure(model: FastViTHD) -> float:
        calls.append(model)
        with torch.inference_mode():
            return stricter_sqnr(expected.mT, model(pixels).mT)

    return measure


def test_a_bound_that_is_met(fused_tiny: FastViTHD, quantized: FastViTHD, held_out: Tensor, expected: Tensor) -> None:
    calls: list[FastViTHD] = []
    result = meet_bound(fused_tiny, quantized, 20.0, measure_on(held_out, expected, calls), held_out)
    assert result.model is quantized
    assert (result.kept, result.layers) == ([], [])
    assert result.sqnr_db > 20 and len(calls) == 1


@pytest.mark.parametrize("above", [-0.1, 3.0, 8.0])
def test_a_bound_in_the_middle(
    fused_tiny: FastViTHD,
    quantized: FastViTHD,
    held_out: Tensor,
    expected: Tensor,
    found: list[LayerNoise],
    above: float,
) -> None:
    calls: list[FastViTHD] = []
    measure = measure_on(held_out, expected, calls)
    whole = measure(quantized)
    before, printed = copy.deepcopy(fused_tiny.state_dict()), repr(quantized)
    result = meet_bound(fused_tiny, quantized, whole + above, measure, held_out)
    assert result.sqnr_db >= whole + above + MARGIN_DB
    assert measure(result.model) == result.sqnr_db
    assert result.layers == found
    assert result.kept == [layer.name for layer in found[: len(result.kept)]]
    assert 0 < len(result.kept) < len(found)
    for layer in found:
        part = result.model.get_submodule(layer.name)
        kinds = (nn.Conv2d, nn.Linear) if layer.name in result.kept else (QuantizedConv, QuantizedLinear)
        assert isinstance(part, kinds)
    assert repr(quantized) == printed
    assert all(torch.equal(v, before[k]) for k, v in fused_tiny.state_dict().items())


def test_more_layers_for_a_higher_bound(
    fused_tiny: FastViTHD, quantized: FastViTHD, held_out: Tensor, expected: Tensor
) -> None:
    measure = measure_on(held_out, expected, [])
    whole = measure(quantized)
    counts = [len(meet_bound(fused_tiny, quantized, whole + d, measure, held_out).kept) for d in (1, 5, 10)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_a_bound_out_of_reach(
    fused_tiny: FastViTHD, quantized: FastViTHD, held_out: Tensor, expected: Tensor, found: list[LayerNoise]
) -> None:
    """The error names what all layers but one would reach, which was measured."""
    calls: list[FastViTHD] = []
    measure = measure_on(held_out, expected, calls)
    with pytest.raises(ConfigError) as caught:
        meet_bound(fused_tiny, quantized, 150.0, measure, held_out)
    last = [n for n, m in calls[-1].named_modules() if isinstance(m, QuantizedConv | QuantizedLinear)]
    assert last == [found[-1].name]
    best = measure(calls[-1])
    assert f"no quantized model reaches 150.0 dB: with {len(found) - 1} of {len(found)} layers" in str(caught.value)
    assert f"it is {best:.1f} dB" in str(caught.value)
    assert best == pytest.approx(found[-1].sqnr_db, abs=1e-6)


def test_one_layer_alone_cannot_be_left_out(fused_tiny: FastViTHD, stats_tiny: Stats, held_out: Tensor) -> None:
    names = quantizable(fused_tiny, POLICY)
    lone = quantize(fused_tiny, stats_tiny, Policy("onnxruntime-cpu", keep=frozenset(names[1:])))
    with torch.inference_mode():
        expected = fused_tiny(held_out)
    with pytest.raises(ConfigError, match="with 0 of 1 layers in float"):
        meet_bound(fused_tiny, lone, 150.0, measure_on(held_out, expected, []), held_out)


# --- figures -----------------------------------------------------------------------------------


def test_features_that_do_not_vary_have_a_plain_sqnr() -> None:
    a = torch.ones(2, 3, 4)
    b = a.clone()
    b[1] += 0.1
    assert compare(a.numpy(), b.numpy()).strict_sqnr_db == pytest.approx(20, abs=1e-4)
    assert compare(a.numpy(), a.numpy()).strict_sqnr_db == math.inf
    b[0, 0, 0] = math.nan
    assert compare(a.numpy(), b.numpy()).strict_sqnr_db == -math.inf


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.0, 10.0]), st.floats(1e-4, 1),
    st.integers(0, 2**31),
)  # fmt: skip
def test_sqnr_is_the_stricter_figure_of_a_verdict(
    pictures: int, channels: int, side: int, constant: float, noise: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    a = constant + torch.randn(pictures, channels, side, side, generator=random)
    b = a + noise * torch.randn(a.shape, generator=random)
    found = compare(*(x.flatten(2).mT.numpy() for x in (a, b))).strict_sqnr_db
    assert stricter_sqnr(a, b) == pytest.approx(found, abs=1e-4)


def test_swap_gives_back_what_stood_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    first, inner = model[0], model[1][0]
    new = nn.Identity()
    before = swap(model, {"0": new, "1.0": new})
    assert model[0] is model[1][0] is new
    swap(model, before)
    assert model[0] is first and model[1][0] is inner


def test_layers_are_measured_without_tf32(fused_tiny: FastViTHD, quantized: FastViTHD) -> None:
    seen: list[bool] = []
    with torch.inference_mode():
        model = copy.deepcopy(fused_tiny)
        model.final_conv.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    sensitivity(model, quantized, torch.zeros(1, 3, 64, 64))
    assert set(seen) == {False} and torch.backends.cudnn.allow_tf32
