"""Scales that move through the network: not a bit of the outputs changes, and the statistics follow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration.equalize import KINDS, LARGEST, QUANTILE, Equalized, equalize
from fvexport.calibration.policy import QUANT_TARGETS, Policy
from fvexport.calibration.ranges_file import Stats
from fvexport.core.errors import ConfigError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.config import MIXERS
from fvexport.encoder.fastvithd import FastViTHD

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = 1e-12
SUBSETS = [kinds for count in range(len(KINDS) + 1) for kinds in combinations(KINDS, count)]
POLICIES = [Policy(target) for target in QUANT_TARGETS] + [Policy("tensorrt", "fp8")]
NAMES = [f"{policy.target} {policy.fmt}" for policy in POLICIES]
Observe = Callable[[FastViTHD], Stats]


@pytest.fixture(scope="module")
def uneven(fused_tiny: FastViTHD) -> FastViTHD:
    """Channels of very different sizes, and some that are always zero, in every tensor that is equalized."""
    model = copy.deepcopy(fused_tiny)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith((".mlp.conv", ".mlp.fc2", ".token_mixer.qkv")):
                assert isinstance(module, nn.Conv2d | nn.Linear)
                spread = torch.exp(0.7 * torch.randn(len(module.weight), generator=generator))
                module.weight *= spread.view(-1, *[1] * (module.weight.ndim - 1))
                module.bias *= spread
                dead = [2, len(module.weight) - 1]  # of qkv the last is one of v's
                module.weight[dead] = 0
                module.bias[dead] = 0
    return model


@pytest.fixture(scope="module")
def stats(uneven: FastViTHD, observe_tiny: Observe) -> Stats:
    return observe_tiny(uneven)


@pytest.fixture(scope="module")
def exact(uneven: FastViTHD) -> FastViTHD:
    return copy.deepcopy(uneven).double()


@pytest.fixture(scope="module")
def pixels(held_out: Tensor) -> Tensor:
    return held_out.double()


@pytest.fixture(scope="module")
def wanted(exact: FastViTHD, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return exact(pixels)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_outputs_are_exact(exact: FastViTHD, stats: Stats, pixels: Tensor, wanted: Tensor, policy: Policy) -> None:
    for kinds in SUBSETS:
        with torch.inference_mode():
            found = equalize(exact, stats, policy, kinds).model(pixels)
        assert (found - wanted).abs().max() <= EXACT * wanted.abs().max(), kinds


def test_nothing_given_is_touched(exact: FastViTHD, stats: Stats) -> None:
    weights, tensors = copy.deepcopy(exact.state_dict()), copy.deepcopy(stats)
    printed = repr(exact)
    found = equalize(exact, stats, Policy("onnxruntime-cpu"))
    assert repr(exact) == printed
    assert all(torch.equal(v, weights[k]) for k, v in exact.state_dict().items())
    assert stats.amax == tensors.amax
    for name, histogram in stats.histograms.items():
        assert all(torch.equal(v, getattr(histogram, k)) for k, v in vars(tensors.histograms[name]).items())
    for name, moments in stats.moments.items():
        assert torch.equal(moments.covariance, tensors.moments[name].covariance)
    taken = {v.untyped_storage().data_ptr() for v in exact.state_dict().values()}
    assert not taken & {v.untyped_storage().data_ptr() for v in found.model.state_dict().values()}
    assert found.model.form == "fused" and not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[1]], ids=NAMES[:2])
def test_statistics_are_those_of_the_new_model(
    uneven: FastViTHD, stats: Stats, observe_tiny: Observe, policy: Policy
) -> None:
    found = equalize(uneven, stats, policy)
    seen = observe_tiny(found.model)
    assert found.stats.histograms.keys() == seen.histograms.keys() == stats.histograms.keys()
    for name, histogram in seen.histograms.items():
        ours = found.stats.histograms[name]
        size = histogram.amax.clamp_min(1e-6)
        for part in ("low", "high"):
            assert ((getattr(ours, part) - getattr(histogram, part)).abs() <= 1e-4 * size).all(), name
        # Bins have other edges, so that quantiles may differ by one of them.
        assert ((ours.quantile(QUANTILE) - histogram.quantile(QUANTILE)).abs() <= 0.03 * size).all(), name
    for name, moments in seen.moments.items():
        ours, theirs = found.stats.moments[name].covariance, moments.covariance
        deviation = theirs.diagonal().clamp_min(1e-12).sqrt()
        assert ((ours - theirs).abs() <= 2e-3 * torch.outer(deviation, deviation)).all(), name
        assert ((found.stats.moments[name].mean - moments.mean).abs() <= 1e-3 * deviation + 1e-5).all(), name
    peaks = [name for name in seen.amax if name.endswith(".mlp.conv")]
    assert peaks
    assert all(found.stats.amax[name] == pytest.approx(seen.amax[name], rel=1e-4) for name in peaks)
    assert any(found.stats.amax[name] < 0.8 * stats.amax[name] for name in peaks)


def spread(stats: Stats, tap: str) -> float:
    """Largest over typical size of the channels that are not always zero."""
    size = stats.histograms[tap].quantile(QUANTILE)
    alive = size[size > 0]
    return float(alive.max() / alive.log().mean().exp())


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_channels_are_alike(uneven: FastViTHD, stats: Stats, policy: Policy) -> None:
    found = equalize(uneven, stats, policy)
    for tap, histogram in stats.histograms.items():
        before, after = spread(stats, tap), spread(found.stats, tap)
        streams = policy.target == "onnxruntime-cpu" and MIXERS[int(tap.split(".")[1])] == "repmixer"
        if tap.endswith("fc1:in") or (tap.endswith("fc2") and streams):
            seen = float(histogram.counts.sum(1).max())
            assert before > 1.5
            assert after < (1.2 if seen > 1000 else before), tap  # few samples are not trusted
        elif tap.endswith(("qkv:in", "proj:in")):
            assert after <= before
            assert (found.stats.histograms[tap].amax <= histogram.amax * (1 + 1e-6)).all()  # only large ones shrink
        else:
            assert after == before, tap


def test_kinds_are_done_alone(uneven: FastViTHD, stats: Stats) -> None:
    """Each kind changes its own layers and no others."""
    touched = {
        "ffn": (".mlp.conv.", ".mlp.fc1."),
        "norm": (".norm.", ".qkv."),
        "values": (".qkv.", ".proj."),
        "stream": (".token_mixer.reparam_conv.", ".mlp.conv.", ".mlp.fc2.", ".downsample.proj.0."),
    }
    before = uneven.state_dict()
    for kind, parts in touched.items():
        after = equalize(uneven, stats, Policy("onnxruntime-cpu"), [kind]).model.state_dict()
        changed = {k for k, v in after.items() if k not in before or not torch.equal(v, before[k])}
        assert all(any(part in name for name in changed) for part in parts), kind
        assert all(any(part in name for part in parts) for name in changed), kind
    assert equalize(uneven, stats, Policy("onnxruntime-cpu"), []).model.state_dict().keys() == before.keys()


# --- streams: each block's output over the original's ------------------------------------------


def block_outputs(model: FastViTHD, pixels: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, block in model.named_blocks():
        block.register_forward_hook(lambda _m, _x, y, name=name: found.__setitem__(name, y) and None)
    with torch.inference_mode():
        model(pixels)
    return found


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_block_scales(exact: FastViTHD, stats: Stats, pixels: Tensor, policy: Policy) -> None:
    found = equalize(exact, stats, policy)
    wanted, outputs = block_outputs(copy.deepcopy(exact), pixels), block_outputs(found.model, pixels)
    for name, y in outputs.items():
        scale = found.block_scales.get(name, torch.ones(1)).double()[:, None, None]
        assert (y / scale - wanted[name]).abs().max() <= EXACT * wanted[name].abs().max(), name
    convolutional = [n for n in wanted if n.startswith(("stages.0.blocks", "stages.1.blocks", "stages.2.blocks"))]
    assert list(found.block_scales) == (convolutional if policy.target == "onnxruntime-cpu" else [])


def test_layers_kept_in_float_are_left_alone(exact: FastViTHD, stats: Stats, pixels: Tensor, wanted: Tensor) -> None:
    """A block whose fc2 stays in float carries its stream as it was, between others that do not."""
    keep = frozenset({"stages.2.blocks.0.mlp.fc2", "stages.1.blocks.0.mlp.fc1"})
    found = equalize(exact, stats, Policy("onnxruntime-cpu", keep=keep))
    assert list(found.block_scales) == ["stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.1"]
    assert torch.equal(found.model.stages[1].blocks[0].mlp.fc1.weight, exact.stages[1].blocks[0].mlp.fc1.weight)
    with torch.inference_mode():
        assert (found.model(pixels) - wanted).abs().max() <= EXACT * wanted.abs().max()


# --- what cannot be seen ------------------------------------------------------------------------


def changed(stats: Stats, tap: str, change: Callable[[Any], Any]) -> Stats:
    histogram = copy.deepcopy(stats.histograms[tap])
    change(histogram)
    return replace(stats, histograms={**stats.histograms, tap: histogram})


def test_channels_never_seen(exact: FastViTHD, stats: Stats, pixels: Tensor, wanted: Tensor) -> None:
    """A tensor of zeros, and one channel that is a million times smaller: scales stay within their bounds."""
    tap = "stages.0.blocks.0.mlp.fc1:in"

    def nothing(histogram: Any) -> None:
        for part in ("low", "high", "limit"):
            getattr(histogram, part).zero_()

    def tiny(histogram: Any) -> None:
        for part in ("low", "high", "limit"):
            getattr(histogram, part)[3] *= 1e-6

    conv = exact.stages[0].blocks[0].mlp.conv.weight
    for change in (nothing, tiny):
        model = equalize(exact, changed(stats, tap, change), POLICIES[0], ["ffn"]).model
        factor = (model.stages[0].blocks[0].mlp.conv.weight / conv).nan_to_num(1.0).abs()
        assert factor.min() >= 0.99 / LARGEST and factor.max() <= 1.01 * LARGEST
        assert (factor == 1).all() == (change is nothing)
        with torch.inference_mode():
            assert (model(pixels) - wanted).abs().max() <= EXACT * wanted.abs().max()


def test_refusals(seeded_tiny: Checkpoint, fused_tiny: FastViTHD, stats_tiny: Stats) -> None:
    with pytest.raises(ConfigError, match="fused form"):
        equalize(seeded_tiny.encoder, stats_tiny, POLICIES[0])
    less = {k: v for k, v in stats_tiny.histograms.items() if "stages.3.blocks.0.token_mixer.qkv" not in k}
    with pytest.raises(ConfigError, match=r"nothing on stages\.3\.blocks\.0\.token_mixer\.qkv:in.*fvexport calibrate"):
        equalize(fused_tiny, replace(stats_tiny, histograms=less), POLICIES[0])


def test_what_is_returned(uneven: FastViTHD, stats: Stats) -> None:
    found = equalize(uneven, stats, POLICIES[1])
    assert isinstance(found, Equalized)
    assert found.stats.key == stats.key
    norms = [m for m in found.model.modules() if isinstance(m, nn.LayerNorm)]
    assert all(norm.elementwise_affine and (norm.bias == 0).all() and (norm.weight <= 1).all() for norm in norms)
