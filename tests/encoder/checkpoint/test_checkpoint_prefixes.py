"""Prefixes of trainers, averaged weights, and files that another tool converted: the same model, or one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fvexport.core.errors import CheckpointError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.forms import FORMS, timm_to_apple
from fvexport.encoder.checkpoint.prefixes import OUTER, unwrap
from fvexport.encoder.config import get_variant
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.fastvlm import load_fastvlm

Tensors = dict[str, Tensor]
Write = Callable[..., Path]
WRAPPED = ("base_model.model.", "_orig_mod.", "module._orig_mod.", "_forward_module.", "model.", "net.module.")
LLAVA = "model.vision_tower.vision_tower.model."


def refusal(source: Any, *parts: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(source)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert "download it again" not in message  # these files are sound
    return message


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# --- prefixes ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(OUTER)), max_size=4), st.sampled_from(FORMS), st.data())
def test_any_nesting_over_any_form(wrappers: list[str], form: Any, data: st.DataObject) -> None:
    """Names alone: what is left is what the form has, whatever was put around it."""
    own = form.prefixes[0]
    bare = FastViTHD_NAMES if not form.apple else [timm_to_apple(name) for name in FastViTHD_NAMES]
    names = {own + name for name in bare} | {f"{prefix}0.weight" for prefix in form.connector[:1]}
    if form.connector:
        names |= {"model.layers.0.self_attn.q_proj.weight", "lm_head.weight"}
    outer = "".join(f"{wrapper}." for wrapper in wrappers)
    found = unwrap([outer + name for name in sorted(names)])
    assert not found.unknown and not found.twins and not found.repeated
    assert set(found.names) == names
    assert {original == outer + name for name, original in found.names.items()} == {True}


with torch.device("meta"):
    FastViTHD_NAMES = sorted(FastViTHD(get_variant("tiny"), form="released").state_dict())


@pytest.mark.parametrize("prefix", WRAPPED)
def test_prefixed_weights_are_the_same(
    llava: Tensors, timm: Tensors, write: Write, golden_dir: Path, prefix: str
) -> None:
    own = {form: load_checkpoint(golden_dir / form).info for form in ("llava_tiny", "timm_tiny")}
    found = load_checkpoint(write(prefixed(llava, prefix), folder="llava")).info
    assert (found.form, found.sha256, found.connector_sha256) == (
        "llava", own["llava_tiny"].sha256, own["llava_tiny"].connector_sha256,
    )  # fmt: skip
    wrapped = {"epoch": 3, "state_dict": prefixed(timm, prefix)}
    found = load_checkpoint(write(wrapped, name="checkpoint.pth", folder="timm")).info
    assert (found.form, found.sha256, found.notice) == ("timm", own["timm_tiny"].sha256, None)


def test_prefixed_shards_and_language_model(
    llava: Tensors, write_shards: Callable[[list[Tensors]], Path], golden_dir: Path
) -> None:
    names = sorted(prefixed(llava, "module."))
    tensors = prefixed(llava, "module.")
    folder = write_shards([{n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}])
    (folder / "config.json").write_text((golden_dir / "llava_tiny" / "config.json").read_text())
    pytest.importorskip("transformers")
    vlm, own = (load_fastvlm(path, tokenizer=False) for path in (folder, golden_dir / "llava_tiny"))
    assert vlm.info.sha256 == own.info.sha256
    for one, other in zip(vlm.language_model.parameters(), own.language_model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_wrapped_parts(llava: Tensors, write: Write, golden_dir: Path) -> None:
    """`torch.compile` and FSDP of one module put their names in the middle."""
    tower = "model.vision_tower."
    inner = {n.replace(tower, f"{tower}_orig_mod.") if n.startswith(tower) else n: t for n, t in llava.items()}
    fsdp = {n.replace(".network.", ".network._fsdp_wrapped_module."): t for n, t in inner.items()}
    assert load_checkpoint(write(fsdp)).info.sha256 == load_checkpoint(golden_dir / "llava_tiny").info.sha256


def test_averaged_model_of_torch(timm: Tensors, write: Write, golden_dir: Path) -> None:
    """`torch.optim.swa_utils.AveragedModel` counts beside its `module.`."""
    saved = prefixed(timm, "module.") | {"n_averaged": torch.tensor(7)}
    assert load_checkpoint(write(saved)).info.sha256 == load_checkpoint(golden_dir / "timm_tiny").info.sha256


def test_unknown_prefix_is_named(timm: Tensors, llava: Tensors, write: Write) -> None:
    refusal(write(prefixed(timm, "backbone.")), "behind the prefix 'backbone.'", "save the tensors without that prefix")
    refusal(write(prefixed(llava, "policy.vlm.")), "behind the prefix 'policy.vlm.'")


def test_part_of_the_names_prefixed(llava: Tensors, write: Write) -> None:
    tower = [name for name in llava if "vision_tower" in name]
    for count in (20, len(tower) - 20):
        mixed = {(f"module.{n}" if n in tower[:count] else n): t for n, t in llava.items()}
        refusal(write(mixed), "unfit tensors", "missing (")


def test_one_surplus_tensor_beside_the_prefix(timm: Tensors, write: Write) -> None:
    refusal(write(prefixed(timm, "module.") | {"loss.scale": torch.ones(1)}), "1 surplus (loss.scale)")


def test_missing_tensors_have_the_files_names(timm: Tensors, write: Write) -> None:
    del timm["final_conv.se.fc1.bias"]
    refusal(write(prefixed(timm, "module.")), "1 missing (module.final_conv.se.fc1.bias)")


def test_two_encoders_in_one_file(timm: Tensors, write: Write) -> None:
    refusal(
        write(prefixed(timm, "student.") | prefixed(spoiled(timm), "teacher.")),
        "holds several FastViTHD encoders", "'student.'", "'teacher.'",
    )  # fmt: skip


# --- averaged weights --------------------------------------------------------------------------


def spoiled(tensors: Tensors) -> Tensors:
    return {name: tensor * 0.5 if tensor.is_floating_point() else tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_timm_reads_averaged_weights(timm: Tensors, write: Write, golden_dir: Path, key: str, prefix: str) -> None:
    """timm's `load_state_dict(use_ema=True)`."""
    plain = "state_dict" if key == "state_dict_ema" else "model"
    content = {"epoch": 3, plain: prefixed(spoiled(timm), prefix), key: prefixed(timm, prefix)}
    found = load_checkpoint(write(content, name="checkpoint.pth.tar.pth")).info
    assert found.sha256 == load_checkpoint(golden_dir / "timm_tiny").info.sha256
    assert f"averaged (EMA) weights under '{key}' beside '{plain}'" in str(found.notice)
    assert "the averaged ones were read" in found.notices[0]


@pytest.mark.parametrize("key", ["state_dict_ema", "ema", "model_ema_state_dict", "swa_state"])
def test_other_forms_read_the_plain_weights(llava: Tensors, write: Write, golden_dir: Path, key: str) -> None:
    found = load_checkpoint(write({"state_dict": llava, key: spoiled(llava)}, name="weights.pt")).info
    assert found.sha256 == load_checkpoint(golden_dir / "llava_tiny").info.sha256
    assert f"under '{key}' beside 'state_dict'; 'state_dict' was read" in str(found.notice)


def test_averaged_weights_alone(timm: Tensors, write: Write, golden_dir: Path) -> None:
    found = load_checkpoint(write({"state_dict_ema": timm}, name="weights.pt")).info
    assert found.sha256 == load_checkpoint(golden_dir / "timm_tiny").info.sha256
    assert "averaged (EMA) weights under 'state_dict_ema' alone" in str(found.notice)


def test_averaged_weights_beside_others_in_one_state_dict(timm: Tensors, write: Write, golden_dir: Path) -> None:
    both = prefixed(timm, "model.") | prefixed(spoiled(timm), "ema_model.")
    for name, content in (("a.safetensors", both), ("b.pt", both), ("c.pt", {"state_dict": both})):
        found = load_checkpoint(write(content, name=name) / name).info
        assert found.sha256 == load_checkpoint(golden_dir / "timm_tiny").info.sha256
        assert found.notice == "Averaged (EMA) weights under 'ema_model.' were not read."


def test_averaged_weights_in_a_file_of_their_own(timm: Tensors, write: Write) -> None:
    folder = write(timm)
    write(spoiled(timm), name="model_ema.safetensors")
    assert "(model_ema.safetensors) were not read" in str(load_checkpoint(folder).info.notice)
    assert load_checkpoint(folder / "model_ema.safetensors").info.notice is None


def test_several_state_dicts_in_one_file(timm: Tensors, write: Write) -> None:
    content = {"student": timm, "teacher": timm, "epoch": 3}
    refusal(write(content, name="weights.pt"), "holds its tensors under student, teacher", "save the wanted")


# --- adapters ----------------------------------------------------------------------------------

LORA = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.zeros(4, 4) for part in "AB"}
IA3 = {"base_model.model.model.layers.0.mlp.ia3_l": torch.zeros(4)}


@pytest.mark.parametrize("adapter", [LORA, IA3])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapters(write: Write, llava: Tensors, adapter: Tensors, name: str) -> None:
    folder = write(adapter, name=name)
    refusal(folder, "is a LoRA or other adapter", name, "merge it into its base model")
    trained = {f"base_model.model.{n}": t for n, t in llava.items() if "vision_tower" in n or "mm_projector" in n}
    write(trained, name="non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "apple/FastVLM-0.5B"}))
    refusal(folder, "non_lora_trainables.bin", "merge it into apple/FastVLM-0.5B first")
    refusal(folder / name, "merge it into apple/FastVLM-0.5B first")
    refusal(folder / "non_lora_trainables.bin", "merge it into apple/FastVLM-0.5B first")


def test_adapter_under_another_name(write: Write) -> None:
    refusal(write(LORA, name="mine.safetensors"), "lora_A.weight", "merge it into its base model")


def test_adapter_beside_a_whole_model(llava: Tensors, write: Write) -> None:
    folder = write(llava)
    write(LORA, name="adapter_model.safetensors")
    assert "(adapter_model.safetensors) was not applied" in str(load_checkpoint(folder).info.notice)


def test_adapter_layers_in_the_encoder(llava: Tensors, write: Write) -> None:
    name = f"{LLAVA}network.10.0.token_mixer.qkv."
    llava[f"{name}base_layer.weight"] = llava.pop(f"{name}weight")
    llava[f"{name}lora_A.default.weight"] = torch.ones(4, 128)
    refusal(write(llava), "its image encoder has LoRA or other adapter layers", name, "merge it")


def test_adapter_layers_elsewhere_leave_the_encoder_whole(llava: Tensors, write: Write, golden_dir: Path) -> None:
    name = "model.layers.0.self_attn.q_proj."
    llava[f"{name}base_layer.weight"] = llava.pop(f"{name}weight")
    found = load_checkpoint(write(prefixed(llava, "base_model.model."))).info
    assert found.sha256 == load_checkpoint(golden_dir / "llava_tiny").info.sha256


# --- converted files ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["llava_tiny", "transformers_tiny", "timm_tiny"])
@pytest.mark.parametrize(("order", "tool"), [((0, 2, 3, 1), "MLX, (O, H, W, I)"), ((2, 3, 1, 0), "TensorFlow or JAX")])
def test_other_layouts_of_convolutions(
    golden: Callable[[str], Tensors], write: Write, form: str, order: tuple[int, ...], tool: str
) -> None:
    tensors = {n: t.permute(order) if t.dim() == 4 else t for n, t in golden(form).items()}
    refusal(write(tensors), f"in the layout of {tool}", "give the checkpoint that it was converted from")


@pytest.mark.parametrize(
    ("part", "what"), [("token_mixer.qkv.", "its image encoder"), ("mm_projector.0.", "its connector")]
)
@pytest.mark.parametrize(
    ("suffixes", "tool"),
    [
        (["weight", "scales", "biases"], "MLX"),
        (["qweight", "qzeros", "scales", "g_idx"], "GPTQ or AWQ"),
        (["weight", "weight.absmax", "weight.quant_map"], "bitsandbytes"),
        (["weight", "SCB", "weight_format"], "bitsandbytes"),
        (["weight_packed", "weight_scale", "weight_shape"], "compressed-tensors"),
        (["weight._data", "weight._scale"], "quanto"),
    ],
)
def test_quantized_weights(llava: Tensors, write: Write, part: str, what: str, suffixes: list[str], tool: str) -> None:
    for name in [n for n in llava if n.endswith(f"{part}weight")]:
        del llava[name]
        for suffix in suffixes:
            llava[name.removesuffix("weight") + suffix] = torch.zeros(8, 8, dtype=torch.int32)
    refusal(write(llava), f"{what} is quantized by {tool}", "give the checkpoint that it was converted from")


def test_a_quantized_language_model_alone(write: Write) -> None:
    """What Apple's app has beside a Core ML encoder."""
    name = "language_model.model.layers.0.self_attn.q_proj."
    refusal(write({name + part: torch.zeros(4, 4) for part in ("weight", "scales", "biases")}), "quantized by MLX")


def test_weights_in_8_bits_without_scales(llava: Tensors, write: Write) -> None:
    name = f"{LLAVA}network.10.0.token_mixer.qkv.weight"
    llava[name] = llava[name].to(torch.float8_e4m3fn)
    refusal(write(llava), f"1 not floating point ({name} (", "in float32, float16 or bfloat16")
