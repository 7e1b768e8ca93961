"""Checkpoints of a whole FastVLM: both forms, every layout of their files, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvexport.core.errors import CheckpointError, ConfigError, UnavailableError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvlm import FastVLM, Sampling, load_fastvlm

Change = Callable[[dict[str, Tensor], dict[str, Any]], None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = [1, 17, 45, 99, 7, 201]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture
def changed(golden_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed(change, form="llava_tiny")`: a golden checkpoint after `change(tensors, config)`, without tokenizer."""

    def write(change: Change, form: str = "llava_tiny") -> Path:
        tensors = load_file(golden_dir / form / "model.safetensors")
        config = json.loads((golden_dir / form / "config.json").read_text())
        change(tensors, config)
        folder = tmp_path / "changed"
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def logits(vlm: FastVLM) -> Tensor:
    with torch.inference_mode():
        return vlm.language_model(input_ids=torch.tensor([IDS])).logits


def head_is_embeddings(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors[HEAD] = tensors[EMBEDDINGS].clone()


def test_what_a_folder_tells(fastvlm_dir: Path) -> None:
    told: list[str] = []
    vlm = load_fastvlm(fastvlm_dir, progress=lambda task, done, total: told.append(task))
    own = load_checkpoint(fastvlm_dir).info
    assert vlm.info == own and vlm.architecture == load_checkpoint(fastvlm_dir).encoder.config
    assert (vlm.resolution, vlm.context_length, vlm.tiling, vlm.image_newline) == ((256, 256), 512, None, None)
    assert vlm.stop_ids == {2, 318}  # config.json's, and <|im_end|>
    assert vlm.language_model.dtype == torch.float32 and not vlm.language_model.training
    assert not any(p.requires_grad for p in vlm.language_model.parameters())
    assert not any(t.is_meta for t in (*vlm.language_model.parameters(), *vlm.language_model.buffers()))
    assert {"reading weights", "reading the language model"} <= set(told)


def test_settings_of_the_language_model(fastvlm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(fastvlm_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"tokenizer_model_max_length": 100, "mm_use_im_start_end": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "repetition_penalty": 1.1}))
    vlm = load_fastvlm(tmp_path)
    assert vlm.context_length == 100 and vlm.stop_ids == {2, 5, 6, 318}
    assert vlm.image_mark == "<im_start><image><im_end>"
    assert "<im_start>" in vlm.tokenizer.decode([t for t in vlm.prompt_ids("What?", 1) if t >= 0])


def test_rope_of_older_configs(golden_dir: Path, changed: Callable[..., Path]) -> None:
    """transformers 4, which Apple's files are from, writes `rope_theta`; the released value is not the default."""

    def older(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config |= {"rope_theta": 1_000_000.0, "torch_dtype": "float32"}

    vlm = load_fastvlm(changed(older), tokenizer=False)
    rotary = vlm.language_model.model.rotary_emb.inv_freq
    head = 64 // 4
    assert torch.allclose(rotary, 1_000_000.0 ** -(torch.arange(0, head, 2) / head))
    assert not torch.allclose(logits(vlm), logits(load_fastvlm(golden_dir / "llava_tiny", tokenizer=False)), atol=1e-3)


@pytest.mark.parametrize("form", ["llava_tiny", "transformers_tiny"])
@pytest.mark.parametrize(("config_says", "stored"), [(True, False), (None, False), (True, True)])
def test_a_tied_head(changed: Callable[..., Path], form: str, config_says: bool | None, stored: bool) -> None:
    """Tied, as FastVLM-0.5B and -1.5B are: without a head, or with one that is the embeddings."""
    name = EMBEDDINGS if form == "llava_tiny" else "model.language_model.embed_tokens.weight"

    def tie(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors.pop(HEAD)
        say_tied(config, config_says)
        if stored:
            tensors[HEAD] = tensors[name].clone()

    folder = changed(tie, form)
    vlm = load_fastvlm(folder, tokenizer=False)
    model = vlm.language_model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")[name])
    assert vlm.info.notice is None


def say_tied(config: dict[str, Any], tied: bool | None) -> None:
    for holder in (config, config.get("text_config", {})):
        holder.pop("tie_word_embeddings", None)
        if tied is not None:
            holder["tie_word_embeddings"] = tied


@pytest.mark.parametrize("form", ["llava_tiny", "transformers_tiny"])
def test_a_stored_head_wins_over_the_config(
    changed: Callable[..., Path], golden_dir: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    vlm = load_fastvlm(changed(lambda t, c: say_tied(c, True), form), tokenizer=False)
    assert torch.equal(logits(vlm), logits(load_fastvlm(golden_dir / form, tokenizer=False)))
    assert "tie_word_embeddings, but lm_head.weight differs" in str(vlm.info.notice)
    assert "tie_word_embeddings" in caplog.text


def test_a_head_under_a_name_of_no_form_is_not_left_out(changed: Callable[..., Path]) -> None:
    def rename(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["model.lm_head.weight"] = tensors.pop(HEAD)
        config["tie_word_embeddings"] = True

    with pytest.raises(CheckpointError, match=r"1 surplus \(model\.lm_head\.weight\)"):
        load_fastvlm(changed(rename), tokenizer=False)


def test_a_head_that_differs_in_its_last_row_alone(changed: Callable[..., Path]) -> None:
    """In a file as wide as several pieces, and in another dtype than the embeddings."""

    def widen(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        say_tied(config, True)
        config["vocab_size"] = 70_000
        tensors[EMBEDDINGS] = (torch.arange(70_000 * 64).reshape(70_000, 64) % 251).float()
        tensors[HEAD] = tensors[EMBEDDINGS].bfloat16()  # equal to the bit
        tensors[HEAD][-1, -1] += 1

    vlm = load_fastvlm(changed(widen), tokenizer=False)
    model = vlm.language_model
    assert float((model.lm_head.weight - model.model.embed_tokens.weight).abs().sum()) == 1


@pytest.mark.parametrize(
    ("form", "naming", "head"),
    [
        ("llava_tiny", {}, "lm_head.weight"),
        ("transformers_tiny", {}, "lm_head.weight"),
        (
            "transformers_tiny",
            {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
            "language_model.lm_head.weight",
        ),
        ("llava_tiny", {"": "module."}, "module.lm_head.weight"),
    ],
)
def test_a_missing_tensor_has_the_files_own_name(
    changed: Callable[..., Path], form: str, naming: dict[str, str], head: str
) -> None:
    def rename(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in list(tensors):
            start = next((start for start in naming if name.startswith(start)), None)
            if start is not None:
                tensors[naming[start] + name[len(start) :]] = tensors.pop(name)
        del tensors[head]

    with pytest.raises(CheckpointError, match=rf"1 missing \({head}\)"):
        load_fastvlm(changed(rename, form), tokenizer=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, r"num_hidden_layers 3 \(2 in the tensors\)"),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, r"num_hidden_layers 1 \(2 in the tensors\)"),
        ({"vocab_size": 400}, r"vocab_size 400 \(320 in the tensors\)"),
        ({"intermediate_size": 64, "vocab_size": 300}, "vocab_size 300 .*intermediate_size 64"),
    ],
)
def test_a_config_that_contradicts_the_tensors(changed: Callable[..., Path], change: dict, told: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json contradicts the tensors: {told}.*use the config.json"):
        load_fastvlm(changed(lambda t, c: c.update(change)), tokenizer=False)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_stored_rotary_frequencies(changed: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """As transformers before 4.32 saved them: they must be those of config.json."""
    frequencies = 10_000.0 ** -(torch.arange(0, 16, 2) / 16)
    folder = changed(lambda t, c: t.update({name: frequencies}))
    load_fastvlm(folder, tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 1_000_000.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"other rotary frequencies .rope_theta. than {name}"):
        load_fastvlm(folder, tokenizer=False)


@pytest.mark.parametrize(
    ("suffixes", "told"),
    [
        (["lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"], "adapter layers .*merge it"),
        (["qweight", "qzeros", "scales", "g_idx"], "quantized by GPTQ or AWQ"),
        (["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"], "by bitsandbytes"),
        (["weight", "scales", "biases"], "quantized by MLX"),
        (["weight", "weight_scale"], "in FP8"),
    ],
)
def test_adapted_and_quantized_language_models(changed: Callable[..., Path], suffixes: list[str], told: str) -> None:
    def convert(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.endswith("q_proj.weight")]:
            del tensors[name]
            for suffix in suffixes:
                tensors[name.removesuffix("weight") + suffix] = torch.zeros(64, 8, dtype=torch.int32)

    folder = changed(convert)
    with pytest.raises(CheckpointError, match=f"its language model .*{told}") as raised:
        load_fastvlm(folder, tokenizer=False)
    assert "download it again" not in str(raised.value)
    assert load_checkpoint(folder).connector is not None  # the encoder is whole


@pytest.mark.parametrize("size", [1, 3])
def test_shards(golden_dir: Path, tmp_path: Path, size: int) -> None:
    tensors = load_file(golden_dir / "llava_tiny" / "model.safetensors")
    shutil.copy(golden_dir / "llava_tiny" / "config.json", tmp_path)
    weight_map = {name: f"model-{number % size}.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole = load_fastvlm(golden_dir / "llava_tiny", tokenizer=False)
    assert torch.equal(logits(load_fastvlm(tmp_path, tokenizer=False)), logits(whole))


def test_from_the_hub(fastvlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the hub's cache, whose files are links; tokenizer and stop tokens come along."""
    repo = tmp_path / "models--apple--FastVLM-0.5B"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for file in fastvlm_dir.iterdir():
        blob = repo / "blobs" / file.name.upper()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    vlm = load_fastvlm("apple/FastVLM-0.5B")
    assert vlm.info.revision == COMMIT and vlm.stop_ids == {2, 318}
    assert torch.equal(logits(vlm), logits(load_fastvlm(fastvlm_dir)))
    borrowed = load_fastvlm(fastvlm_dir, tokenizer="apple/FastVLM-0.5B")
    assert borrowed.prompt_ids("What?", 1) == vlm.prompt_ids("What?", 1)
    with pytest.raises(CheckpointError, match=r"apple/Other: no such folder, none of its files"):
        load_fastvlm(fastvlm_dir, tokenizer="apple/Other")


@pytest.mark.parametrize(("dtype", "wanted"), [("bfloat16", torch.bfloat16), (torch.float16, torch.float16)])
def test_dtypes(golden_dir: Path, dtype: Any, wanted: torch.dtype) -> None:
    vlm = load_fastvlm(golden_dir / "llava_tiny", dtype=dtype, tokenizer=False)
    assert {p.dtype for p in vlm.language_model.parameters()} == {wanted}
    vision = torch.bfloat16 if wanted == torch.bfloat16 else torch.float32  # FP16 overflows in the encoder
    assert vlm.tower is not None and vlm.tower.dtype == vision and vlm.connector[0].weight.dtype == vision
    images = vlm.encode_images([np.full((70, 90, 3), 120, np.uint8)])
    assert images.tokens[0].dtype == wanted
    answer = vlm.answer(images, [1, 17, -200, 99], sampling=Sampling(max_new_tokens=3))
    assert len(answer.token_ids) == 3 and answer.text == ""
    with pytest.raises(ConfigError, match="unknown dtype 'int8'; known are float32, bfloat16, float16"):
        load_fastvlm(golden_dir / "llava_tiny", dtype="int8", tokenizer=False)


def test_weights_kept_in_bfloat16(golden_dir: Path, changed: Callable[..., Path]) -> None:
    def halve(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16() if tensor.is_floating_point() else tensor
        config["torch_dtype"] = "bfloat16"

    found = logits(load_fastvlm(changed(halve), tokenizer=False))
    whole = logits(load_fastvlm(golden_dir / "llava_tiny", tokenizer=False))
    assert found.dtype == torch.float32 and 0 < float((found - whole).abs().max()) < 0.1


def drop_connector(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [n for n in tensors if "mm_projector" in n]:
        del tensors[name]


def drop_language_model(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [n for n in tensors if "vision_tower" not in n and "mm_projector" not in n]:
        del tensors[name]


def spoil(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(128, 64)
    tensors["model.norm.weight"] = torch.zeros(65)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_connector, "has no connector; give a FastVLM checkpoint such as apple/FastVLM-0.5B"),
        (drop_language_model, "has no language model; give a FastVLM"),
        (spoil, r"1 missing \(model\.layers\.1\.mlp\.up.*1 surplus \(model\.layers\.7.*1 of wrong shape \(model\.norm"),
        (lambda t, c: t["model.norm.weight"].fill_(torch.nan), r"1 with NaN or infinity \(model\.norm\.weight\)"),
        (lambda t, c: t.pop(HEAD) is None, r"1 missing \(lm_head\.weight\)"),
        (lambda t, c: c.update(model_type="llava_llama"), "language model is 'llava_llama'; give a FastVLM"),
        (lambda t, c: c.pop("hidden_size"), "config.json lacks hidden_size"),
        (lambda t, c: c.update(hidden_act=3), "config.json describes no Qwen2"),
        (lambda t, c: c.clear(), "has no config.json that describes a language model"),
    ],
)  # fmt: skip
def test_unfit_checkpoints(changed: Callable[..., Path], change: Change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load_fastvlm(changed(change), tokenizer=False)
    assert "\n" not in str(raised.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10_000_000), ("num_hidden_layers", 2.0), ("num_attention_heads", 0),
        ("num_attention_heads", -1), ("num_attention_heads", 64), ("num_attention_heads", 3),
        ("num_key_value_heads", 0), ("num_key_value_heads", 3), ("vocab_size", 2**62), ("vocab_size", -1),
        ("hidden_size", 10**400), ("intermediate_size", True), ("rms_norm_eps", float("nan")), ("rms_norm_eps", -1),
        ("max_position_embeddings", "512"), ("rope_theta", None), ("rope_theta", 0), ("rope_scaling", "yarn"),
        ("rope_parameters", {"rope_type": ""}), ("rope_parameters", {"rope_theta": None}),
        ("rope_parameters", {"rope_type": "linear"}), ("rope_parameters", {"rope_type": "yarn", "factor": 1e300}),
        ("layer_types", ["full_attention"]), ("layer_types", ["", ""]), ("hidden_act", ""), ("use_sliding_window", 1),
        ("sliding_window", -1), ("eos_token_id", -1), ("eos_token_id", 320), ("eos_token_id", [2, "3"]),
    ],
)  # fmt: skip
def test_settings_that_no_qwen2_has(changed: Callable[..., Path], name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json describes no Qwen2") as raised:
        load_fastvlm(changed(lambda t, c: c.update({name: value})), tokenizer=False)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(("name", "value"), [("pad_token_id", -(2**63)), ("bos_token_id", "x"), ("id2label", 7)])
def test_settings_that_are_not_used(changed: Callable[..., Path], name: str, value: object) -> None:
    load_fastvlm(changed(lambda t, c: c.update({name: value})), tokenizer=False)


@pytest.mark.parametrize(
    ("name", "value"), [("tokenizer_model_max_length", 0), ("mm_use_im_start_end", "no"), ("tie_word_embeddings", "no")]
)
def test_settings_that_no_llava_has(changed: Callable[..., Path], name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"config.json is not LLaVA's .*{name}"):
        load_fastvlm(changed(lambda t, c: c.update({name: value})), tokenizer=False)


@pytest.mark.parametrize("newline", [torch.zeros(65), torch.zeros(64, dtype=torch.int32), torch.zeros(2, 64)])
def test_a_newline_that_is_none(changed: Callable[..., Path], newline: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"its model\.image_newline is .*, not 64 floating-point values"):
        load_fastvlm(changed(lambda t, c: t.update({"model.image_newline": newline})), tokenizer=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "eos_token_id: expected int >= 0"), (320, "eos_token_id 320, and the model only 320 tokens"),
        ([5, 2**62], r"eos_token_id\[1\]: expected int"), ("5", "found str"), ([[5]], "found array"),
        (True, "found bool"),
    ],
)  # fmt: skip
def test_stop_tokens_that_the_model_does_not_have(
    fastvlm_dir: Path, tmp_path: Path, value: object, message: str
) -> None:
    shutil.copytree(fastvlm_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=f"generation_config.json has .*{message}"):
        load_fastvlm(tmp_path, tokenizer=False)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_fifo_among_the_small_files(fastvlm_dir: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(fastvlm_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a FIFO, not a regular file"):
        load_fastvlm(tmp_path)


def test_a_connector_of_another_width(changed: Callable[..., Path]) -> None:
    def narrow(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["model.mm_projector.0.weight"] = torch.zeros(32, 256)
        tensors["model.mm_projector.2.weight"] = torch.zeros(32, 32)
        for layer in (0, 2):
            tensors[f"model.mm_projector.{layer}.bias"] = torch.zeros(32)

    with pytest.raises(CheckpointError, match="ends with 32 channels and its language model is 64 wide"):
        load_fastvlm(changed(narrow), tokenizer=False)


def test_encoders_alone_are_refused(golden_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="timm_tiny: has no language model"):
        load_fastvlm(golden_dir / "timm_tiny", tokenizer=False)


def test_tokenizers(golden_dir: Path, fastvlm_dir: Path, tmp_path: Path, write_tokenizer: Callable[..., None]) -> None:
    bare = golden_dir / "llava_tiny"
    with pytest.raises(CheckpointError, match=r"llava_tiny: has no tokenizer \(tokenizer\.json, or vocab\.json"):
        load_fastvlm(bare)
    vlm = load_fastvlm(bare, tokenizer=False)
    with pytest.raises(CheckpointError, match="was loaded without a tokenizer"):
        vlm.generate([], "What?")
    assert load_fastvlm(bare, tokenizer=fastvlm_dir).prompt_ids("What?", 0)[0] == 317
    for wrong in (tmp_path / "nothing", bare / "config.json", bare):
        with pytest.raises(CheckpointError, match="no tokenizer"):
            load_fastvlm(bare, tokenizer=wrong)

    write_tokenizer(tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a JSON object"):
        load_fastvlm(bare, tokenizer=tmp_path / "damaged")

    write_tokenizer(tmp_path / "long")
    (tmp_path / "long" / "tokenizer_config.json").write_text('{"model_max_length": "\\u001b[31m"}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json has a wrong value .*model_max_length"):
        load_fastvlm(bare, tokenizer=tmp_path / "long")

    write_tokenizer(tmp_path / "plain", files="vocab.json")
    settings = tmp_path / "plain" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"added_tokens_decoder": {}, "eos_token": "A"}))
    with pytest.raises(CheckpointError, match=r"has no <\|im_start\|> and no <\|im_end\|>, so it is not ChatML's"):
        load_fastvlm(bare, tokenizer=tmp_path / "plain")


def test_a_tokenizer_of_a_larger_model(changed: Callable[..., Path], fastvlm_dir: Path) -> None:
    def shrink(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["vocab_size"] = 310
        for name in (EMBEDDINGS, HEAD):
            tensors[name] = tensors[name][:310]

    with pytest.raises(CheckpointError, match="has tokens up to 318 and the model 310 embeddings"):
        load_fastvlm(changed(shrink), tokenizer=fastvlm_dir)


def test_transformers_form_with_its_tokenizer(
    golden_dir: Path, tmp_path: Path, write_tokenizer: Callable[..., None]
) -> None:
    shutil.copytree(golden_dir / "transformers_tiny", tmp_path, dirs_exist_ok=True)
    write_tokenizer(tmp_path, image_token=True)
    vlm = load_fastvlm(tmp_path)
    ids = vlm.prompt_ids("What is it?", 1)
    assert ids.count(-200) == 1 and 319 not in ids
    assert vlm.info.form == "transformers" and vlm.resolution == (1024, 1024)


@pytest.mark.parametrize(("version", "message"), [(None, "which is not installed"), ("4.57.1", "found 4.57.1")])
def test_without_transformers(
    monkeypatch: pytest.MonkeyPatch, golden_dir: Path, version: str | None, message: str
) -> None:
    module = None
    if version is not None:
        module = ModuleType("transformers")
        module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    with pytest.raises(UnavailableError, match=message) as raised:
        load_fastvlm(golden_dir / "llava_tiny")
    assert 'pip install "fvexport[vlm]"' in str(raised.value)


def test_modules_import_without_transformers() -> None:
    code = (
        "import sys, importlib, pkgutil; sys.modules['transformers'] = None\n"
        "import fvexport.encoder.fastvlm as p, fvexport.encoder.qwen2, fvexport.export.drop_in\n"
        "import fvexport.benchmarks.tasks.ttft, fvexport.export.runtime.vision_tower\n"
        "for module in pkgutil.iter_modules(p.__path__): importlib.import_module(f'{p.__name__}.{module.name}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Peak resident memory since the imports, pages of mapped files included; VmHWM is of this process alone.
MEASURE = """
import json, sys
from fvexport.encoder.fastvlm import load_fastvlm
from fvexport.encoder.qwen2 import import_qwen2

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

import_qwen2()
load_fastvlm(sys.argv[1], tokenizer=False)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
base = status("VmRSS")
vlm = load_fastvlm(sys.argv[2], tokenizer=False)
print(json.dumps({"peak": status("VmHWM") - base}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_no_second_copy_of_the_language_model(golden_dir: Path, changed: Callable[..., Path]) -> None:
    """Also where every tensor has to be converted."""

    def widen(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["intermediate_size"] = 100_000
        for layer in range(2):
            for part in ("up_proj", "gate_proj", "down_proj"):
                shape = (64, 100_000) if part == "down_proj" else (100_000, 64)
                tensors[f"model.layers.{layer}.mlp.{part}.weight"] = torch.full(shape, 0.01, dtype=torch.bfloat16)

    folder = changed(widen)
    command = [sys.executable, "-c", MEASURE, str(golden_dir / "llava_tiny"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    size = 6 * 6_400_000 * 4
    assert size < json.loads(run.stdout)["peak"] < 1.5 * size + 10e6
