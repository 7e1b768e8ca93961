"""Which layers become eight-bit ones for which target, and what they hold."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration.equalize import equalize
from fvexport.calibration.fp16 import Fp16Plan, fit_fp16
from fvexport.calibration.policy import QUANT_TARGETS, Policy
from fvexport.calibration.qdq import FP8, QuantizedConv, QuantizedLinear, Quantizer
from fvexport.calibration.quantize import quantizable, quantize
from fvexport.calibration.ranges_file import Stats
from fvexport.core.errors import ConfigError
from fvexport.core.verdict.figures import compare
from fvexport.encoder.fastvithd import FastViTHD

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = [f"stages.{s}.blocks.{i}" for s, depth in enumerate((1, 1, 2, 1, 1)) for i in range(depth)]
CONVOLUTIONS = [f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")]
PRODUCTS = [f"{block}.token_mixer.{layer}" for block in BLOCKS[-2:] for layer in ("qkv", "proj")]
POLICIES = [
    *(Policy(target) for target in QUANT_TARGETS),
    Policy("tensorrt", "fp8"),
    Policy("openvino", reduce_range=True),
]
NAMES = [f"{policy.target} {policy.fmt}{' reduced' if policy.reduce_range else ''}" for policy in POLICIES]


@pytest.fixture(scope="module")
def made(fused_tiny: FastViTHD, stats_tiny: Stats) -> dict[Policy, FastViTHD]:
    return {policy: quantize(fused_tiny, stats_tiny, policy) for policy in POLICIES}


def plain_sqnr(reference: Tensor, candidate: Tensor) -> float:
    """In dB, of the worst picture; both (B, N, C)."""
    return compare(reference.numpy(), candidate.numpy()).sqnr_db


def layers(model: nn.Module) -> dict[str, QuantizedConv | QuantizedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedConv | QuantizedLinear)}


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_which_layers(fused_tiny: FastViTHD, made: dict[Policy, FastViTHD], policy: Policy) -> None:
    found = layers(made[policy])
    assert {n for n, m in found.items() if isinstance(m, QuantizedConv)} == set(CONVOLUTIONS)
    assert {n for n, m in found.items() if isinstance(m, QuantizedLinear)} == set(PRODUCTS)
    assert quantizable(fused_tiny, policy) == [n for n, _ in fused_tiny.named_modules() if n in found]
    for name, module in made[policy].named_modules():
        if name not in found and not any(name.startswith(f"{layer}.") for layer in found):
            assert type(module) is type(fused_tiny.get_submodule(name)), name
    others = {k: v for k, v in made[policy].state_dict().items() if k in fused_tiny.state_dict()}
    kept = [k for k in others if not k.startswith(tuple(found))]
    assert len(kept) > 50
    assert all(torch.equal(others[k], fused_tiny.state_dict()[k]) for k in kept)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_what_they_hold(made: dict[Policy, FastViTHD], fused_tiny: FastViTHD, policy: Policy) -> None:
    stored = FP8 if policy.fmt == "fp8" else torch.int8
    activations = stored if policy.target == "tensorrt" else torch.uint8
    for name, layer in layers(made[policy]).items():
        plain = fused_tiny.get_submodule(name)
        assert isinstance(plain, nn.Conv2d | nn.Linear)
        rows = len(plain.weight)
        assert layer.weight.dtype == stored and layer.weight_scale.shape == (rows,)
        assert layer.weight_zero_point.dtype == stored and (layer.weight_zero_point.float() == 0).all()
        assert layer.bias.shape == (rows,)
        values = layer.weight.flatten(1) if isinstance(layer, QuantizedConv) else layer.weight.T
        assert values.shape == plain.weight.flatten(1).shape
        steps = plain.weight.flatten(1) / layer.weight_scale[:, None]
        if stored == torch.int8:
            peaks = values.float().abs().amax(1)
            limit = 64 if policy.reduce_range else 127
            assert ((peaks >= 0.78 * limit) & (peaks <= limit)).all()  # each row of its own size uses its levels
            assert ((values.float() - steps.clamp(-limit, limit)).abs().mean(1) < 2).all()
        assert layer.weight_scale.unique().numel() == rows
        entry, leaving = layer.input_quantizer, getattr(layer, "output_quantizer", None)
        assert entry.zero_point.dtype == activations and entry.scale.shape == ()
        if policy.scheme.symmetric:
            assert entry.zero_point.float() == 0
        with_output = policy.target == "onnxruntime-cpu" and isinstance(layer, QuantizedConv)
        assert isinstance(leaving, Quantizer) == with_output
        if with_output:
            assert leaving.zero_point.dtype == torch.uint8
        integer = policy.target == "onnxruntime-cpu" and isinstance(layer, QuantizedLinear)
        assert layer.bias.dtype == (torch.int32 if integer else torch.float32)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_features_are_kept(
    made: dict[Policy, FastViTHD], fused_tiny: FastViTHD, held_out: Tensor, policy: Policy
) -> None:
    with torch.inference_mode():
        found, wanted = made[policy](held_out), fused_tiny(held_out)
    assert plain_sqnr(wanted, found) > (18 if policy.fmt == "fp8" else 26)
    assert not torch.equal(found, wanted)


def test_ranges_hold_what_was_seen(fused_tiny: FastViTHD, stats_tiny: Stats) -> None:
    """With `minmax`, and with FP8, which always takes the largest value."""
    for policy, method in ((POLICIES[0], "minmax"), (POLICIES[1], "minmax"), (POLICIES[3], "mse")):
        for name, layer in layers(quantize(fused_tiny, stats_tiny, policy, method=method)).items():
            histogram = stats_tiny.histograms[f"{name}:in"]
            low, high = min(0.0, float(histogram.low.min())), max(0.0, float(histogram.high.max()))
            entry, scale = layer.input_quantizer, float(layer.input_quantizer.scale)
            if policy.scheme.symmetric:
                assert scale * (448 if policy.fmt == "fp8" else 127) == pytest.approx(max(-low, high), rel=1e-5)
            else:
                assert scale * 255 == pytest.approx(high - low, rel=1e-5)
                assert abs(-scale * int(entry.zero_point) - low) <= 0.51 * scale


def test_methods_give_other_ranges(fused_tiny: FastViTHD, stats_tiny: Stats) -> None:
    def scales(method: str) -> list[float]:
        model = quantize(fused_tiny, stats_tiny, POLICIES[1], method=method)  # type: ignore[arg-type]
        return [float(layer.input_quantizer.scale) for layer in layers(model).values()]

    full = scales("minmax")
    assert all(a != b for a, b in zip(scales("mse"), full, strict=True))
    for method in ("percentile", "entropy"):
        found = scales(method)
        assert all(a <= b * (1 + 1e-6) for a, b in zip(found, full, strict=True))
        assert found != full


def test_layers_to_keep(fused_tiny: FastViTHD, stats_tiny: Stats) -> None:
    keep = frozenset({CONVOLUTIONS[3], PRODUCTS[0]})
    policy = Policy("openvino", keep=keep)
    model = quantize(fused_tiny, stats_tiny, policy)
    assert set(layers(model)) == {*CONVOLUTIONS, *PRODUCTS} - keep
    assert type(model.get_submodule(CONVOLUTIONS[3])) is nn.Conv2d
    assert set(quantizable(fused_tiny, policy)) == set(layers(model))


def test_model_and_statistics_are_left_alone(fused_tiny: FastViTHD, stats_tiny: Stats) -> None:
    before, printed = copy.deepcopy(fused_tiny.state_dict()), repr(fused_tiny)
    outer = {name: moments.outer.clone() for name, moments in stats_tiny.moments.items()}
    seen: list[tuple[str, int, int | None]] = []
    found = quantize(fused_tiny, stats_tiny, POLICIES[0], progress=lambda *step: seen.append(step))
    assert repr(fused_tiny) == printed
    assert all(torch.equal(v, before[k]) for k, v in fused_tiny.state_dict().items())
    assert all(torch.equal(v, stats_tiny.moments[name].outer) for name, v in outer.items())
    taken = {v.untyped_storage().data_ptr() for v in fused_tiny.state_dict().values()}
    assert not taken & {v.untyped_storage().data_ptr() for v in found.state_dict().values()}
    assert not found.training
    total = len(CONVOLUTIONS) + len(PRODUCTS)
    assert seen == [("quantize", done, total) for done in range(total + 1)]


def test_equal_for_equal(fused_tiny: FastViTHD, stats_tiny: Stats, made: dict[Policy, FastViTHD]) -> None:
    again = quantize(fused_tiny, stats_tiny, POLICIES[0]).state_dict()
    assert all(torch.equal(v.float(), again[k].float()) for k, v in made[POLICIES[0]].state_dict().items())


@pytest.mark.parametrize("part", ["moments", "histograms"])
def test_statistics_that_lack_a_layer(fused_tiny: FastViTHD, stats_tiny: Stats, part: str) -> None:
    less = {k: v for k, v in getattr(stats_tiny, part).items() if k != f"{PRODUCTS[1]}:in"}
    with pytest.raises(ConfigError, match=r"nothing on stages\.3\.blocks\.0\.token_mixer\.proj.*fvexport calibrate"):
        quantize(fused_tiny, replace(stats_tiny, **{part: less}), POLICIES[0])


def test_behind_equalization_and_fp16_scales(fused_tiny: FastViTHD, stats_tiny: Stats, held_out: Tensor) -> None:
    """The three steps compose: scales that keep FP16 from overflowing cost the eight-bit layers nothing."""
    equalized = equalize(fused_tiny, stats_tiny, POLICIES[0])
    plan = Fp16Plan((0, 0, -7, -6, 0), ("stages.4.blocks.0.mlp",), {}, 8.0)
    fitted = fit_fp16(equalized.model, plan)
    quantized = quantize(fitted, equalized.stats, POLICIES[0])
    assert set(layers(quantized)) == {
        n for n in {*CONVOLUTIONS, *PRODUCTS} if not n.startswith("stages.4.blocks.0.mlp")
    }
    alone = quantize(equalized.model, equalized.stats, replace(POLICIES[0], keep=frozenset(CONVOLUTIONS[-2:])))
    with torch.inference_mode():
        wanted = fused_tiny(held_out)
        assert plain_sqnr(wanted, quantized(held_out)) == pytest.approx(plain_sqnr(wanted, alone(held_out)), abs=0.5)
