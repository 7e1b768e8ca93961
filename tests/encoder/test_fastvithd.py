"""The model: shapes, forms, parameter counts, and what it refuses. (Its numbers: see the golden tests.)"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fvexport.core.errors import ConfigError
from fvexport.encoder import reparameterize
from fvexport.encoder.config import MIXERS, FastViTHDConfig, get_variant
from fvexport.encoder.fastvithd import FastViTHD, Form
from fvexport.encoder.reparameterize import merge_branches
from fvexport.encoder.seeded import seed_weights

TINY = get_variant("tiny")
FORMS: tuple[Form, ...] = ("train", "released", "fused")


@pytest.fixture(scope="module")
def tiny() -> dict[str, FastViTHD]:
    """The same weights in each form."""
    train = FastViTHD(TINY)
    seed_weights(train)
    return {"train": train, "released": merge_branches(train), "fused": reparameterize(train)}


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def parameters(form: Form) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in FastViTHD(form=form).parameters())


def test_parameter_counts() -> None:
    assert parameters("released") == pytest.approx(122.71e6, abs=0.05e6)  # 125.07 M with the CLIP head
    assert parameters("fused") < parameters("released") < parameters("train")
    head = 3072 * 768
    assert parameters("released") + head == pytest.approx(125.07e6, abs=0.05e6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 64, 64), (2, 128, 192), (1, 320, 64)])
@torch.inference_mode()
def test_shapes(
    tiny: dict[str, FastViTHD], stage_maps: Callable[..., list[torch.Tensor]], form: str, size: tuple[int, int, int]
) -> None:
    b, h, w = size
    x = pixels(b, 3, h, w)
    tokens, maps = tiny[form](x), stage_maps(tiny[form], x)
    assert tokens.shape == (b, TINY.tokens(h, w), TINY.out_channels)
    sizes = TINY.stage_resolutions(h, w)
    assert [m.shape for m in maps] == [(b, d, *s) for d, s in zip(TINY.dims, sizes, strict=True)]
    # Tokens are the last map's positions, row by row.
    last = tiny[form].final_conv(maps[-1])
    rows, columns = sizes[-1]
    for token in range(rows * columns):
        torch.testing.assert_close(tokens[:, token], last[:, :, token // columns, token % columns])


@torch.inference_mode()
def test_images_of_a_batch_do_not_mix(tiny: dict[str, FastViTHD]) -> None:
    x = pixels(3, 3, 128, 64)
    for form in FORMS:
        alone = torch.cat([tiny[form](x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(tiny[form](x), alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_three_forms_agree(tiny: dict[str, FastViTHD]) -> None:
    x = pixels(1, 3, 128, 192)
    wanted = tiny["train"](x).double()
    assert {f: m.form for f, m in tiny.items()} == {f: f for f in FORMS}
    for form in ("released", "fused"):
        assert ((tiny[form](x) - wanted).norm() / wanted.norm()) < 1e-5
    assert [n for n, _ in tiny["train"].named_blocks()] == [n for n, _ in tiny["fused"].named_blocks()]


def test_what_each_form_still_holds(tiny: dict[str, FastViTHD]) -> None:
    kinds = {form: {type(m).__name__ for m in model.modules()} for form, model in tiny.items()}
    assert "BatchNorm2d" in kinds["train"] & kinds["released"]
    assert "LayerScale" in kinds["train"] & kinds["released"]
    assert not {"BatchNorm2d", "LayerScale", "ConvBN"} & kinds["fused"]
    names = {form: set(model.state_dict()) for form, model in tiny.items()}
    assert not [
        n for n in names["released"] if re.search(r"conv_kxk|conv_scale|identity|large_conv|pos_enc|\.norm\.i", n)
    ]
    assert all(".mlp.conv.bn." in n or not n.endswith("running_var") for n in names["released"])
    # A model made in a form has the names of one brought into it.
    assert all(set(FastViTHD(TINY, form=form).state_dict()) == names[form] for form in FORMS)


def test_blocks_in_order() -> None:
    with torch.device("meta"):
        blocks = [name for name, _ in FastViTHD().named_blocks()]
    config = FastViTHDConfig()
    assert len(blocks) == len(set(blocks)) == 3 + 4 + 2 + sum(config.depths) + 1
    assert blocks[:4] == ["stem.0", "stem.1", "stem.2", "stages.0.blocks.0"]
    assert blocks[-4:] == ["stages.4.pos_emb", "stages.4.blocks.0", "stages.4.blocks.1", "final_conv"]
    assert [n for n in blocks if "pos_emb" in n] == [f"stages.{i}.pos_emb" for i, m in enumerate(MIXERS) if m[0] == "a"]


def test_convolutions_of_the_released_encoder() -> None:
    with torch.device("meta"):
        model = FastViTHD(form="fused")
    mixer = model.stages[2].blocks[23].token_mixer.reparam_conv
    assert (mixer.kernel_size, mixer.groups, mixer.stride) == ((3, 3), 384, (1, 1))
    embed = model.stages[1].downsample.proj[0].reparam_conv
    assert (embed.kernel_size, embed.groups, embed.stride) == ((7, 7), 96, (2, 2))
    assert (embed.in_channels, embed.out_channels) == (96, 192)
    assert model.final_conv.reparam_conv.groups == 1536
    assert isinstance(model.stages[0].downsample, nn.Identity)
    assert model.stages[4].blocks[0].norm.eps == 1e-5


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(3, 64, 64), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 4, 64, 64), r"\(1, 4, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 100), "--res 64x128"),
        (torch.zeros(1, 3, 32, 64), "out of range"),
        (torch.zeros(1, 3, 0, 0), "out of range"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point"),
    ],
)
def test_refused_inputs(tiny: dict[str, FastViTHD], x: torch.Tensor, words: str) -> None:
    for model in tiny.values():
        with pytest.raises(ConfigError, match=words):
            model(x)


def test_uint8_model_refuses_floats_and_other_forms(tiny: dict[str, FastViTHD]) -> None:
    with pytest.raises(ConfigError, match=r"uint8 0\.\.255"):
        reparameterize(tiny["train"], uint8_input=True)(torch.zeros(1, 3, 64, 64))
    for form in ("train", "released"):
        with pytest.raises(ConfigError, match="needs the fused form"):
            FastViTHD(TINY, form=form, uint8_input=True)
