"""Fusion is exact: block by block over odd shapes in float64, and on the whole model in every dtype."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fvexport.core.errors import ConfigError
from fvexport.encoder import fastvithd as blocks
from fvexport.encoder.config import FastViTHDConfig, get_variant
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.reparameterize import merge_branches, reparameterize
from fvexport.encoder.seeded import seed_weights

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = 1e-12
seeds = st.integers(0, 2**31)
kernels = st.sampled_from([1, 3, 5, 7])
channels = st.integers(1, 9)
fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def tiny() -> FastViTHD:
    model = FastViTHD(get_variant("tiny")).requires_grad_(False)
    seed_weights(model)
    return model


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """In float64 and eval mode, with every parameter random and no statistic near its default."""
    rng = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.normal_(0, part.weight[0].numel() ** -0.5, generator=rng)
            if part.bias is not None:
                part.bias.normal_(generator=rng)
        elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.weight.normal_(0, 2, generator=rng)
            part.bias.normal_(generator=rng)
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(generator=rng)
                part.running_var.uniform_(0.01, 9, generator=rng)
        elif isinstance(part, blocks.LayerScale):
            part.gamma.normal_(generator=rng)
    return module


def distance(found: Tensor, wanted: Tensor, least: float = 0.0) -> float:
    """Relative to the output, or to `least` where branches cancel and leave less."""
    assert found.shape == wanted.shape
    error, size = (found.double() - wanted.double()).square().mean().sqrt(), wanted.double().square().mean().sqrt()
    return float(error / size.clamp_min(least))


def check_exact(module: nn.Module, cin: int, seed: int, size: tuple[int, int] = (9, 8)) -> nn.Module:
    """Fusion keeps the output, leaves the module as it was, shares nothing with it, and is done after one time."""
    module = shaken(module, seed)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(2, cin, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = module(x)
    fused = reparameterize(module)
    assert distance(fused(x), wanted, least=1.0) <= EXACT
    assert torch.equal(module(x), wanted)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    taken = {v.untyped_storage().data_ptr() for v in module.state_dict().values()}
    again = reparameterize(fused)
    assert not taken & {v.untyped_storage().data_ptr() for v in fused.state_dict().values()}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in fused.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d | blocks.LayerScale) for m in fused.modules())
    assert not any(m.training for m in fused.modules())
    return fused


@st.composite
def grouped(draw: Any) -> dict[str, int]:
    """Channels in and out with a number of groups that divides both: 1, all of them, or in between."""
    groups = draw(st.integers(1, 5))
    return {"cin": groups * draw(st.integers(1, 3)), "cout": groups * draw(st.integers(1, 3)), "groups": groups}


@fast
@given(grouped(), kernels, st.integers(1, 3), st.booleans(), seeds)
def test_conv_bn(shape: dict[str, int], kernel: int, stride: int, bias: bool, seed: int) -> None:
    block = blocks.ConvBN(**shape, kernel=kernel, stride=stride)
    if bias:
        block.conv.bias = nn.Parameter(torch.zeros(shape["cout"]))
    assert isinstance(check_exact(block, shape["cin"], seed), nn.Conv2d)


@fast
@given(grouped(), kernels, st.integers(1, 2), st.booleans(), st.integers(0, 3), st.booleans(), seeds)
def test_mobileone(shape: dict[str, int], kernel: int, stride: int, scale: bool, se: int, act: bool, seed: int) -> None:
    conv = blocks.ConvShape(**shape, kernel=kernel, stride=stride)
    block = blocks.MobileOneBlock(conv, form="train", scale_branch=scale, se_channels=se, act=act)
    fused = check_exact(block, shape["cin"], seed)
    assert len([m for m in fused.modules() if isinstance(m, nn.Conv2d)]) == 1 + 2 * bool(se)


@fast
@given(channels, st.integers(1, 3), st.sampled_from([3, 5, 7]), st.sampled_from([1, 3]), st.integers(1, 3), seeds)
def test_large_kernel(cin: int, widening: int, kernel: int, small: int, stride: int, seed: int) -> None:
    check_exact(blocks.LargeKernelConv(cin, widening * cin, kernel, small, stride, form="train"), cin, seed)


@fast
@given(channels, kernels, seeds)
def test_position_encoding(dim: int, kernel: int, seed: int) -> None:
    check_exact(blocks.RepCPE(dim, kernel, form="train"), dim, seed)


@fast
@given(channels, kernels, seeds)
def test_repmixer(dim: int, kernel: int, seed: int) -> None:
    fused = check_exact(blocks.RepMixer(dim, kernel, form="train"), dim, seed)
    assert len(list(fused.children())) == 1


@fast
@given(channels, st.integers(1, 4), kernels, seeds)
def test_conv_ffn(dim: int, ratio: int, kernel: int, seed: int) -> None:
    check_exact(blocks.ConvFFN(dim, ratio, kernel, form="train"), dim, seed)


@fast
@given(channels, st.integers(1, 3), st.sampled_from(["train", "released"]), seeds)
def test_repmixer_block(dim: int, ratio: int, form: Any, seed: int) -> None:
    config = FastViTHDConfig((1,) * 5, (dim,) * 5, mlp_ratio=ratio, head_dim=1)
    check_exact(blocks.RepMixerBlock(config, 1, form=form), dim, seed)


@fast
@given(st.integers(1, 4), st.integers(1, 7), st.booleans(), st.sampled_from(["train", "released"]), seeds)
def test_attention_block(heads: int, head_dim: int, bias: bool, form: Any, seed: int) -> None:
    dim = heads * head_dim
    block = blocks.AttentionBlock(FastViTHDConfig((1,) * 5, (dim,) * 5, head_dim=head_dim), 3, form=form)
    if bias:
        block.token_mixer.qkv = nn.Linear(dim, 3 * dim)
    fused = check_exact(block, dim, seed, (3, 4))
    assert fused.token_mixer.scale == 1
    assert not fused.norm.elementwise_affine


@settings(max_examples=6, deadline=None)
@given(
    st.tuples(*[st.integers(1, 2)] * 5),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from(["train", "released"]),
    seeds,
)
def test_whole_model(depths: tuple[int, ...], dim: int, head_dim: int, form: Any, seed: int) -> None:
    last = 2 * dim * head_dim
    config = FastViTHDConfig(depths, (dim, dim, 2 * dim, last, 2 * last), mlp_ratio=2, head_dim=head_dim)
    model = FastViTHD(config, form=form).requires_grad_(False)
    seed_weights(model, seed)
    x = torch.rand(2, 3, 64, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = model.double()(x)
    fused = reparameterize(model)
    assert distance(fused(x), wanted) <= EXACT
    assert fused.form == "fused"
    assert all(torch.equal(v, fused.state_dict()[k]) for k, v in reparameterize(fused).state_dict().items())


@torch.inference_mode()
def test_float32_and_uint8(tiny: FastViTHD) -> None:
    levels = torch.randint(0, 256, (1, 3, 128, 192), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = tiny(levels.float() / 255)
    for model in (tiny, merge_branches(tiny), reparameterize(tiny)):
        assert distance(reparameterize(model)(levels.float() / 255), wanted) <= 1e-5
        assert distance(reparameterize(model, uint8_input=True)(levels), wanted) <= 1e-5
    exact = copy.deepcopy(tiny).double()
    twice = reparameterize(reparameterize(exact, uint8_input=True), uint8_input=True)
    assert distance(twice(levels), exact(levels.double() / 255)) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("uint8", [False, True])
def test_weights_are_rounded_once(tiny: FastViTHD, dtype: torch.dtype, uint8: bool) -> None:
    """From float64 straight to the dtype: equal to the last bit, which two roundings would not be."""
    rough = copy.deepcopy(tiny).to(dtype)
    fused = reparameterize(rough, uint8_input=uint8).state_dict()
    exact = reparameterize(copy.deepcopy(rough).double(), uint8_input=uint8).state_dict()
    assert {v.dtype for v in fused.values()} == {dtype}
    assert [k for k in exact if not torch.equal(exact[k].to(dtype), fused[k])] == []


def test_input_is_left_alone(tiny: FastViTHD) -> None:
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    fused = reparameterize(tiny)
    calls: list[str] = []
    fused.register_forward_hook(lambda *_: calls.append("fused"))
    fused.stages[0].blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    for value in fused.state_dict().values():
        value.fill_(7)
    tiny(torch.zeros(1, 3, 64, 64))
    assert not calls  # hooks of the copy are its own
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert tiny.form == "train"


def test_refusals(tiny: FastViTHD) -> None:
    model = copy.deepcopy(tiny)
    model.stages[2].blocks[0].mlp.train()  # one BatchNorm in training mode is enough
    for module in (model, model.stages[2].blocks[0], copy.deepcopy(tiny).train()):
        with pytest.raises(ConfigError, match="eval mode"):
            reparameterize(module)
    with pytest.raises(ConfigError, match="found ConvFFN"):
        reparameterize(tiny.stages[0].blocks[0].mlp, uint8_input=True)
    with pytest.raises(ConfigError, match="RepMixer that holds it"):
        reparameterize(tiny.stages[0].blocks[0].token_mixer.norm)
    with pytest.raises(ConfigError, match="found the fused form"):
        merge_branches(reparameterize(tiny))


def defaults(name: str, value: Tensor) -> Tensor:
    """What a tensor would be if the part it belongs to had been forgotten."""
    if name.endswith(("running_var", "gamma")) or (name.endswith("weight") and value.ndim == 1):
        return torch.ones_like(value)
    return torch.zeros_like(value)


def kinds(model: FastViTHD) -> dict[str, list[str]]:
    """Names of tensors, by name without the numbers of stages and blocks."""
    found: dict[str, list[str]] = {}
    for name in model.state_dict():
        if not name.endswith("num_batches_tracked"):
            found.setdefault(re.sub(r"(stages|blocks)\.\d+", r"\1.*", name), []).append(name)
    return found


with torch.device("meta"):
    KINDS = kinds(FastViTHD(get_variant("tiny")))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_lost_tensor_is_seen(tiny: FastViTHD, kind: str) -> None:
    """Seeded weights make each tensor count: lose any one of a kind, and parity is gone by far.

    With two tokens in the last stage; of one alone attention would not depend on its scores.
    """
    x = torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    wanted, damaged = tiny(x), copy.deepcopy(tiny)
    for name in KINDS[kind]:
        value = damaged.state_dict()[name]
        value.copy_(defaults(name, value))
        assert distance(reparameterize(damaged)(x), wanted) > 1e-4, name
        value.copy_(tiny.state_dict()[name])


@pytest.mark.parametrize("stage", [3, 4])
@torch.inference_mode()
def test_a_lost_attention_scale_is_seen(tiny: FastViTHD, stage: int) -> None:
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    damaged = copy.deepcopy(tiny)
    damaged.stages[stage].blocks[0].token_mixer.scale = 1.0
    assert distance(damaged(x), tiny(x)) > 1e-4
