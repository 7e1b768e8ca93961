"""FP16 plans: the least that suffices, factors that change nothing in float64, and what cannot be mended."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.calibration.fp16 import Fp16Plan, fit_fp16, plan_fp16
from fvexport.core.errors import ConfigError
from fvexport.core.records import RecordError, parse, plain
from fvexport.encoder.config import get_variant
from fvexport.encoder.fastvithd import Attention, FastViTHD
from fvexport.encoder.float32 import InFloat32
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export.parity_backends import EagerReference
from fvexport.export.runtime import EagerBackend

pytestmark = pytest.mark.usefixtures("one_thread")

FP16_MAX = 65504.0
EXACT = 1e-12
BLOCK = "stages.3.blocks.0"
PARTS = [
    "stem.1", "stem.2", "stages.0.blocks.0.token_mixer", "stages.0.blocks.0.mlp", "stages.1.downsample",
    "stages.1.blocks.0.token_mixer", "stages.2.blocks.1.mlp", "stages.3.downsample", "stages.3.pos_emb",
    f"{BLOCK}.token_mixer", f"{BLOCK}.mlp", "stages.4.downsample", "stages.4.blocks.0.mlp", "final_conv",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(fused_tiny: FastViTHD) -> FastViTHD:
    """Fused, in float32."""
    return fused_tiny


@pytest.fixture(scope="module")
def exact(tiny: FastViTHD) -> FastViTHD:
    return copy.deepcopy(tiny).double()


@pytest.fixture(scope="module")
def amax(tiny: FastViTHD) -> dict[str, float]:
    """Every value harmless."""
    names = {name: module for name, module in tiny.named_modules() if name}
    scores = [f"{name}:scores" for name, module in names.items() if isinstance(module, Attention)]
    return dict.fromkeys([*names, *(f"{name}:in" for name in names), *scores], 3.0)


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(-24, 0)] * 5), st.sets(st.sampled_from(PARTS)))
def test_fitting_is_exact(exact: FastViTHD, exponents: tuple[int, ...], parts: set[str]) -> None:
    """Any plan at all: not a bit of the output changes, and not one of the input model."""
    before = {k: v.clone() for k, v in exact.state_dict().items()}
    eps = exact.stages[3].blocks[0].norm.eps
    fitted = fit_fp16(exact, Fp16Plan(exponents, tuple(sorted(parts)), {}, 8.0))
    assert {n for n, m in fitted.named_modules() if isinstance(m, InFloat32)} == parts
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = (fitted(x) - exact(x)).abs().max() / exact(x).abs().max()
    assert error <= EXACT
    assert all(torch.equal(v, before[k]) for k, v in exact.state_dict().items())
    assert exact.stages[3].blocks[0].norm.eps == eps
    taken = {v.untyped_storage().data_ptr() for v in exact.state_dict().values()}
    assert not taken & {v.untyped_storage().data_ptr() for v in fitted.state_dict().values()}


@settings(max_examples=5, deadline=None)
@given(st.tuples(*[st.integers(-12, 0)] * 5))
def test_streams_are_scaled(
    exact: FastViTHD, stage_maps: Callable[..., list[torch.Tensor]], exponents: tuple[int, ...]
) -> None:
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fitted = fit_fp16(exact, Fp16Plan(exponents, (), {}, 8.0))
    pairs = zip(stage_maps(fitted, x), stage_maps(exact, x), exponents, strict=True)
    for found, wanted, exponent in pairs:
        torch.testing.assert_close(found, wanted * 2.0**exponent, rtol=EXACT, atol=0)


def test_small_weights_cost_nothing(tiny: FastViTHD) -> None:
    """Weights that become subnormal: as close to float32 as FP16 is without them."""
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    wanted = EagerBackend(tiny).run(pixels)
    fitted = fit_fp16(tiny, Fp16Plan((0, 0, 0, -10, -10), (), {}, 8.0))
    weight = fitted.stages[3].blocks[0].mlp.fc2.weight
    assert weight.abs().median() < torch.finfo(torch.float16).smallest_normal
    lost, own = (
        np.linalg.norm(EagerReference(model, emulate_half=torch.float16).run(pixels) - wanted)
        for model in (fitted, tiny)
    )
    assert lost < 1.5 * own


def test_nothing_to_do(tiny: FastViTHD, amax: dict[str, float]) -> None:
    plan = plan_fp16(tiny, amax)
    assert plan == Fp16Plan((0,) * 5, (), {}, 8.0)
    assert not plan.needed
    fitted = fit_fp16(tiny, plan)
    assert fitted is not tiny
    assert repr(fitted) == repr(tiny)
    assert all(torch.equal(v, tiny.state_dict()[k]) for k, v in fitted.state_dict().items())


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_dtype_and_input_are_kept(tiny: FastViTHD, precision: torch.dtype) -> None:
    model = reparameterize(tiny, uint8_input=True).to(precision)
    fitted = fit_fp16(model, Fp16Plan((0, 0, -1, -2, 0), (f"{BLOCK}.mlp",), {}, 8.0))
    assert fitted.uint8_input
    levels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert fitted(levels).dtype == precision
    wide = {k for k, v in fitted.state_dict().items() if v.dtype == torch.float32}
    assert wide == {k for k in fitted.state_dict() if precision == torch.float32 or k.startswith(f"{BLOCK}.mlp.module")}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 4), st.floats(1, 1e9), st.floats(1, 64), st.data())
def test_smallest_exponent(
    tiny: FastViTHD, amax: dict[str, float], stage: int, peak: float, headroom: float, data: Any
) -> None:
    attends = stage >= 3
    block = f"stages.{stage}.blocks.0"
    taps = [block, f"{block}.mlp.fc2"]
    taps += [f"stages.{stage}.pos_emb.reparam_conv", f"{block}.mlp.conv:in"] * attends
    taps += [f"{block}.token_mixer.{'proj' if attends else 'reparam_conv'}"]
    tap = data.draw(st.sampled_from(taps))
    limit = FP16_MAX / headroom
    plan = plan_fp16(tiny, {**dict.fromkeys(amax, 0.0), tap: peak}, headroom=headroom)
    exponent = plan.exponents[stage]
    assert plan.exponents == tuple(exponent if s == stage else 0 for s in range(5))
    assert math.ldexp(peak, exponent) <= limit * (1 + 1e-9)
    assert exponent == 0 or math.ldexp(peak, exponent + 1) > limit
    assert plan.peaks == ({tap: peak} if peak > limit else {})
    assert plan.needed == bool(plan.peaks)


@pytest.mark.parametrize(
    ("tap", "parts"),
    [
        ("stem.1.reparam_conv", ["stem.1"]),
        ("stem.1.act", ["stem.1", "stem.2"]),
        ("stem.2.act", ["stem.2", "stages.0.blocks.0.token_mixer"]),
        ("stages.0.blocks.0.mlp.conv", ["stages.0.blocks.0.mlp"]),
        ("stages.2.blocks.1.mlp.fc1", ["stages.2.blocks.1.mlp"]),
        ("stages.4.blocks.0.mlp.act", ["stages.4.blocks.0.mlp"]),
        ("stages.2.downsample.proj.0.reparam_conv", ["stages.2.downsample"]),
        ("stages.2.downsample.proj.0.act", ["stages.2.downsample"]),
        ("stages.4.downsample.proj.1.reparam_conv", ["stages.4.downsample"]),
        ("stages.4.downsample.proj.1.act", ["stages.4.downsample", "stages.4.pos_emb"]),
        ("stages.2.downsample.proj.1.act", ["stages.2.downsample", "stages.2.blocks.0.token_mixer"]),
        (f"{BLOCK}.token_mixer.qkv", [f"{BLOCK}.token_mixer"]),
        (f"{BLOCK}.token_mixer:scores", [f"{BLOCK}.token_mixer"]),
        ("final_conv.reparam_conv", ["final_conv"]),
        ("final_conv.se.fc1", ["final_conv"]),
        ("final_conv.se.fc2", ["final_conv"]),
        ("final_conv.se", ["final_conv"]),
    ],
)
def test_parts_in_float32(tiny: FastViTHD, amax: dict[str, float], tap: str, parts: list[str]) -> None:
    plan = plan_fp16(tiny, {**amax, tap: 2 * FP16_MAX})
    assert plan.float32 == tuple(parts)
    assert plan.peaks == {tap: 2 * FP16_MAX}
    assert not any(plan.exponents)
    assert plan_fp16(tiny, {**amax, tap: FP16_MAX / 8}) == Fp16Plan((0,) * 5, (), {}, 8.0)


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        (1, ["stages.1.blocks.0.mlp", "stages.2.downsample"]),
        (3, [f"{BLOCK}.mlp", "stages.4.downsample"]),
        (4, ["stages.4.blocks.0.mlp", "final_conv"]),
    ],
)
def test_weights_that_grow_too_large(tiny: FastViTHD, amax: dict[str, float], stage: int, parts: list[str]) -> None:
    """Readers of a stream scaled by 2^-20 get weights that FP16 does not hold: they go to float32."""
    peak = 2.0**20 * FP16_MAX / 8
    plan = plan_fp16(tiny, {**amax, f"stages.{stage}.blocks.0": peak})
    assert plan.float32 == tuple(parts)
    fitted = copy.deepcopy(fit_fp16(tiny, plan)).half()
    assert all(torch.isfinite(v).all() for v in fitted.state_dict().values())
    lost = fit_fp16(tiny, replace(plan, float32=())).half()
    assert not all(torch.isfinite(v).all() for v in lost.state_dict().values())


@pytest.mark.parametrize("tap", ["final_conv.act", "stem.0.reparam_conv", "stem.0.act"])
def test_what_nothing_can_mend(tiny: FastViTHD, amax: dict[str, float], tap: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot run in FP16: {tap} reaches 6\.6e\+04; use --bf16"):
        plan_fp16(tiny, {**amax, tap: 66000.0})
    plan = plan_fp16(tiny, {**amax, tap: 60000.0})  # the headroom is gone, and that is said
    assert plan.peaks == {tap: 60000.0}
    assert not plan.needed


def test_refusals(tiny: FastViTHD, amax: dict[str, float]) -> None:
    for broken in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"stages\.4\.blocks\.0\.norm reaches (nan|inf) in float32 already"):
            plan_fp16(tiny, {**amax, "stages.4.blocks.0.norm": broken})
    with pytest.raises(ConfigError, match=r"no activation range for stages\.3\.blocks\.0\.mlp\.conv:in; calibrate"):
        plan_fp16(tiny, {k: v for k, v in amax.items() if k != f"{BLOCK}.mlp.conv:in"})
    for headroom in (0.5, math.nan, math.inf):
        with pytest.raises(ConfigError, match="headroom is a factor from 1 on"):
            plan_fp16(tiny, amax, headroom=headroom)
    plan = Fp16Plan((0, 0, 0, -1, 0), (f"{BLOCK}.mlp",), {}, 8.0)
    for model in (FastViTHD(get_variant("tiny")), fit_fp16(tiny, plan)):
        with pytest.raises(ConfigError, match="to the fused form"):
            plan_fp16(model, amax)
        with pytest.raises(ConfigError, match="to the fused form"):
            fit_fp16(model, plan)
    for other in ("stages.3.blocks.9.mlp", "stages.3", f"{BLOCK}.mlp.fc1", "stem.0", ""):
        with pytest.raises(ConfigError, match="of another model"):
            fit_fp16(tiny, replace(plan, float32=(other,)))
    with pytest.raises(ConfigError, match="has 5 stages, not 4"):
        fit_fp16(tiny, replace(plan, exponents=(0,) * 4))


@given(
    st.lists(st.integers(-30, 0), min_size=5, max_size=5),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.floats(0, 1e30)),
)
def test_plan_as_json(exponents: list[int], names: list[str], peaks: dict[str, float]) -> None:
    plan = Fp16Plan(tuple(exponents), tuple(names), peaks, 8.0)
    assert parse(json.loads(json.dumps(plain(plan))), Fp16Plan) == plan


@pytest.mark.parametrize("data", [{}, {"exponents": 3}, [], None, {"exponents": ["x"], "float32": []}])
def test_not_a_plan(data: Any) -> None:
    with pytest.raises(RecordError, match=r"\$.*: (expected|object missing)"):
        parse(data, Fp16Plan)
