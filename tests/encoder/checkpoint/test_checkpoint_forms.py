"""The five forms and all file layouts of the same weights give the same model."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint, load_encoder
from fvexport.encoder.checkpoint.forms import apple_to_timm, timm_to_apple
from fvexport.encoder.checkpoint.preprocessing import PUBLISHED
from fvexport.encoder.config import FastViTHDConfig, get_variant
from fvexport.encoder.fastvithd import FastViTHD

Tensors = dict[str, Tensor]
Write = Callable[..., Path]

LANGUAGE_MODEL = {"model.embed_tokens.weight": torch.ones(8, 4), "model.layers.0.mlp.up_proj.weight": torch.ones(8, 4)}
OTHER_TOWERS = {
    "logit_scale": torch.tensor(4.6),
    "text.transformer.resblocks.0.attn.in_proj_weight": torch.ones(4, 4),
    "text_encoder.embedding_layer.weight": torch.ones(4, 4),
}


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("form", ["train", "released"])
def test_names_translate_both_ways(form: str) -> None:
    names = set(FastViTHD(get_variant("tiny"), form=form).state_dict())  # type: ignore[arg-type]
    apple = {timm_to_apple(name) for name in names}
    assert len(apple) == len(names)
    assert {apple_to_timm(name) for name in apple} == names


@pytest.mark.parametrize(
    ("apple", "timm"),
    [
        ("patch_embed.0.rbr_conv.0.conv.weight", "stem.0.conv_kxk.0.conv.weight"),
        ("patch_embed.2.rbr_skip.running_var", "stem.2.identity.running_var"),
        ("network.0.1.token_mixer.mixer.rbr_scale.bn.bias", "stages.0.blocks.1.token_mixer.mixer.conv_scale.bn.bias"),
        ("network.0.1.token_mixer.layer_scale", "stages.0.blocks.1.token_mixer.layer_scale.gamma"),
        ("network.2.0.convffn.conv.bn.weight", "stages.1.blocks.0.mlp.conv.bn.weight"),
        ("network.4.0.layer_scale", "stages.2.blocks.0.layer_scale.gamma"),
        ("network.5.proj.0.lkb_origin.conv.weight", "stages.3.downsample.proj.0.large_conv.conv.weight"),
        ("network.5.proj.0.lkb_reparam.bias", "stages.3.downsample.proj.0.reparam_conv.bias"),
        ("network.5.proj.1.reparam_conv.bias", "stages.3.downsample.proj.1.reparam_conv.bias"),
        ("network.6.pe.weight", "stages.3.pos_emb.pos_enc.weight"),
        ("network.9.reparam_conv.weight", "stages.4.pos_emb.reparam_conv.weight"),
        ("network.10.1.layer_scale_2", "stages.4.blocks.1.layer_scale_2.gamma"),
        ("network.10.1.token_mixer.qkv.weight", "stages.4.blocks.1.token_mixer.qkv.weight"),
        ("conv_exp.se.reduce.weight", "final_conv.se.fc1.weight"),
        ("conv_exp.se.expand.bias", "final_conv.se.fc2.bias"),
    ],
)
def test_known_pairs_of_names(apple: str, timm: str) -> None:
    assert apple_to_timm(apple) == timm
    assert timm_to_apple(timm) == apple


@pytest.mark.parametrize(
    ("layout", "form"),
    [
        ("timm", "timm"),
        ("open_clip", "open_clip"),
        ("mobileclip", "mobileclip"),
        ("apple", "mobileclip"),
        ("transformers", "transformers"),
        ("transformers_old", "transformers"),
        ("llava", "llava"),
        ("llava_old", "llava"),
    ],
)
@pytest.mark.parametrize("weights", ["train", "released"])
def test_same_weights_in_every_form(
    renamed: Callable[[str, str], Tensors],
    write: Write,
    golden_dir: Path,
    weights: str,
    layout: str,
    form: str,
) -> None:
    original = load_checkpoint(golden_dir / {"train": "timm_tiny", "released": "transformers_tiny"}[weights])
    tensors = renamed(weights, layout)
    last = next(name for name in tensors if name.endswith(("final_conv.se.fc1.bias", "conv_exp.se.reduce.bias")))
    prefix = last.removesuffix("final_conv.se.fc1.bias").removesuffix("conv_exp.se.reduce.bias")
    head = {f"{prefix}head.proj": torch.ones(256, 16), f"{prefix}head.fc.bias": torch.ones(16)}
    others = LANGUAGE_MODEL | OTHER_TOWERS if prefix else {}
    loaded = load_checkpoint(write(tensors | head | others))
    assert same_weights(loaded.encoder, original.encoder)
    assert loaded.encoder.form == weights
    assert loaded.info.sha256 == original.info.sha256
    assert (loaded.info.form, loaded.info.variant) == (form, "tiny")
    assert (loaded.info.preprocessing, loaded.info.preprocessing_source) == (PUBLISHED[form], None)
    assert loaded.info.trained
    assert loaded.info.notice is None


def test_model_is_ready_to_run(llava: Tensors, write: Write) -> None:
    checkpoint = load_checkpoint(write(llava))
    for module in (checkpoint.encoder, checkpoint.connector):
        assert module is not None
        assert not any(m.training for m in module.modules())
        for name, tensor in module.state_dict().items():
            assert tensor.device.type == "cpu"
            assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
    assert not any(p.requires_grad for p in checkpoint.encoder.parameters())


def test_sha256_follows_the_weights_alone(timm: Tensors, write: Write) -> None:
    before = load_checkpoint(write(timm)).info.sha256
    timm["stem.2.identity.num_batches_tracked"] += 1
    assert load_checkpoint(write(timm)).info.sha256 == before
    timm["stem.2.identity.bias"][0] += 1e-3
    assert load_checkpoint(write(timm)).info.sha256 != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(timm: Tensors, write: Write, dtype: torch.dtype) -> None:
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in timm.items()}
    state = load_encoder(write(cast)).state_dict()
    for name, tensor in cast.items():
        if tensor.is_floating_point():
            assert torch.equal(state[name], tensor.float())
            assert state[name].dtype == torch.float32


# --- layouts -----------------------------------------------------------------------------------


@pytest.fixture
def from_file(golden_dir: Path) -> Checkpoint:
    return load_checkpoint(golden_dir / "llava_tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_model.safetensors", "anything.safetensors"])
def test_one_safetensors(llava: Tensors, write: Write, from_file: Checkpoint, name: str) -> None:
    folder = write(llava, name=name)
    for source in (folder, str(folder), folder / name):
        loaded = load_checkpoint(source)
        assert loaded.info.sha256 == from_file.info.sha256
        assert loaded.info.connector_sha256 == from_file.info.connector_sha256
        assert loaded.info.source == str(source)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "pytorch_model.bin"])
def test_pickles(llava: Tensors, write: Write, from_file: Checkpoint, name: str, wrapper: str | None) -> None:
    content = {wrapper: llava, "epoch": 3} if wrapper else llava
    folder = write(content, name=name)
    torch.save({"lr": 1e-3}, folder / "optimizer.pt")
    for source in (folder, folder / name):
        assert load_checkpoint(source).info.sha256 == from_file.info.sha256


def test_pickle_of_before_the_zip_format(llava: Tensors, tmp_path: Path, from_file: Checkpoint) -> None:
    torch.save(llava, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old.pt").info.sha256 == from_file.info.sha256


def test_compressed_zip_is_not_mapped(llava: Tensors, write: Write, tmp_path: Path, from_file: Checkpoint) -> None:
    plain = write(llava, name="plain.pt") / "plain.pt"
    with zipfile.ZipFile(plain) as src, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as out:
        for member in src.infolist():
            out.writestr(member.filename, src.read(member))
    assert load_checkpoint(tmp_path / "small.pt").info.sha256 == from_file.info.sha256


def test_shards_of_the_language_model_are_not_needed(
    llava: Tensors, write_shards: Callable[[list[Tensors]], Path], from_file: Checkpoint
) -> None:
    needed = {n: t for n, t in llava.items() if "vision_tower" in n or "mm_projector" in n}
    names = sorted(needed)
    halves = [{n: needed[n] for n in names[:100]}, {n: needed[n] for n in names[100:]}]
    language = {n: t for n, t in llava.items() if n not in needed}
    folder = write_shards([halves[0], language, halves[1]])
    assert load_checkpoint(folder).info.sha256 == from_file.info.sha256
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert load_checkpoint(folder).info.sha256 == from_file.info.sha256
    assert load_checkpoint(folder / "model.safetensors.index.json").info.sha256 == from_file.info.sha256


def test_progress_counts_up_to_its_total(golden_dir: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    load_checkpoint(golden_dir / "timm_tiny", progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == list(range(1, len(done) + 1))
    assert calls[-1][2] == len(done)


# --- what config.json tells --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "resolution"),
    [
        ("config.json", {"mm_vision_tower": "mobileclip_l_1024"}, 1024),
        ("config.json", {"mm_vision_tower": "mobileclip_l"}, None),
        ("config.json", {"mm_vision_tower": 7}, None),
        ("config.json", {"vision_config": {"image_size": 512}}, 512),
        ("config.json", {"pretrained_cfg": {"input_size": [3, 256, 256]}}, 256),
        ("preprocessor_config.json", {"size": 800, "crop_size": {"height": 768, "width": 768}}, 768),
        ("preprocessor_config.json", {"size": {"shortest_edge": 1024}}, 1024),
        ("preprocessor_config.json", {"size": 100, "crop_size": 100}, None),
        ("processor_config.json", {"image_processor": {"size": 512, "crop_size": {"height": 512, "width": 512}}}, 512),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"image_size": 256}}}, 256),
        ("config.json", {"vision_config": [1], "pretrained_cfg": None}, None),
    ],
)
def test_resolution(timm: Tensors, write: Write, file: str, content: dict, resolution: int | None) -> None:
    folder = write(timm)
    (folder / file).write_text(json.dumps(content))
    assert load_checkpoint(folder).info.resolution == resolution


@pytest.mark.parametrize(
    ("value", "resize"),
    [("pad", "pad"), ("anyres_max_9", "pad"), ("square", "shortest"), (None, "pad"), (3, "pad")],
)
def test_aspect_ratio_of_llava(llava: Tensors, write: Write, value: object, resize: str) -> None:
    assert load_checkpoint(write(llava, config={"image_aspect_ratio": value})).info.preprocessing.resize == resize


# --- architecture ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["train", "released"])
@pytest.mark.parametrize(
    "config",
    [
        FastViTHDConfig(depths=(2, 1, 1, 2, 3), dims=(16, 32, 64, 128, 256)),
        FastViTHDConfig(depths=(1, 1, 1, 1, 1), dims=(8, 16, 32, 64, 128), mlp_ratio=3, se_ratio=1 / 8),
        FastViTHDConfig(depths=(1, 1, 1, 1, 1), dims=(8, 8, 16, 32, 96), se_ratio=7 / 192),
    ],
)
def test_architecture_comes_from_the_tensors(write: Write, config: FastViTHDConfig, form: str) -> None:
    model = FastViTHD(config, form=form)  # type: ignore[arg-type]
    loaded = load_checkpoint(write(model.state_dict()))
    found, wanted = (dataclasses.asdict(known) | {"se_ratio": 0} for known in (loaded.encoder.config, config))
    assert found == wanted
    assert loaded.encoder.config.se_channels == config.se_channels
    assert same_weights(loaded.encoder, model)
    assert loaded.info.variant == "custom"


def test_variant_that_agrees(golden_dir: Path) -> None:
    assert load_encoder(golden_dir / "llava_tiny", variant="tiny").config == get_variant("tiny")


# --- connector ---------------------------------------------------------------------------------


def without_connector(llava: Tensors) -> Tensors:
    return {name: tensor for name, tensor in llava.items() if "mm_projector" not in name}


def test_linear_connector_is_inferred(llava: Tensors, write: Write) -> None:
    weight, bias = torch.randn(48, 256), torch.randn(48)
    folder = write(without_connector(llava) | {"model.mm_projector.weight": weight, "model.mm_projector.bias": bias})
    connector = load_checkpoint(folder).connector
    assert connector is not None
    assert (connector.config.kind, connector.config.out_channels) == ("linear", 48)
    assert torch.equal(connector.state_dict()["0.weight"], weight)


@pytest.mark.parametrize("config", [None, {"mm_projector_type": "mlp3x_gelu"}])
def test_deep_connector(llava: Tensors, write: Write, config: dict | None) -> None:
    third = {"model.mm_projector.4.weight": torch.randn(64, 64), "model.mm_projector.4.bias": torch.randn(64)}
    connector = load_checkpoint(write(llava | third, config=config)).connector
    assert connector is not None
    assert connector.config.kind == "mlp3x_gelu"
    assert torch.equal(connector.state_dict()["4.weight"], third["model.mm_projector.4.weight"])


def test_identity_connector_needs_the_config_to_say_so(llava: Tensors, write: Write) -> None:
    bare = without_connector(llava)
    assert load_checkpoint(write(bare)).connector is None
    checkpoint = load_checkpoint(write(bare, config={"mm_projector_type": "identity"}), require_connector=True)
    assert checkpoint.connector is not None
    tokens = torch.randn(1, 4, 256)
    assert torch.equal(checkpoint.connector(tokens), tokens)


# --- seeded ------------------------------------------------------------------------------------


def test_seeded_weights_are_named_as_such() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    checkpoint = load_checkpoint(variant="tiny", seed=3, require_connector=True)
    assert torch.equal(torch.get_rng_state(), before)
    info, connector = checkpoint.info, checkpoint.connector
    assert (info.source, info.form, info.variant, info.trained) == ("seeded:3", "seeded", "tiny", False)
    assert "mean nothing" in (info.notice or "")
    assert connector is not None
    assert (connector.config.in_channels, connector.config.out_channels) == (256, 64)
    assert checkpoint.encoder.form == "train"
    for tensor in [*checkpoint.encoder.state_dict().values(), *connector.state_dict().values()]:
        assert torch.isfinite(tensor).all()


def test_seeded_weights_follow_the_seed() -> None:
    one, again, other = (load_checkpoint(variant="tiny", seed=seed).info for seed in (0, 0, 1))
    assert one == again
    assert one.sha256 != other.sha256
    assert one.connector_sha256 != other.connector_sha256


def test_saved_seeded_weights_load_back(write: Write) -> None:
    seeded = load_checkpoint(variant="tiny")
    loaded = load_checkpoint(write(seeded.encoder.state_dict()))
    assert loaded.info == dataclasses.replace(
        seeded.info, source=loaded.info.source, form="timm", preprocessing=PUBLISHED["timm"], trained=True,
        connector_sha256=None, notice=None,
    )  # fmt: skip
