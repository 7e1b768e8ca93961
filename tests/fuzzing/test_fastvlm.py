"""A whole FastVLM: the language model's settings, the tokenizer's files, and generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import byte_files, json_files

from fvexport.encoder.checkpoint.source import locate
from fvexport.encoder.checkpoint.tensors import TensorStore
from fvexport.encoder.fastvlm import FastVLM, load_fastvlm
from fvexport.encoder.fastvlm.generate import TextStream
from fvexport.encoder.fastvlm.language import read_config
from fvexport.encoder.fastvlm.prompt import tokenize
from fvexport.encoder.fastvlm.tiles import Tiling
from fvexport.encoder.fastvlm.tokenizer import read_generation, stop_ids, tokenizer_from

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[1] / "data/golden"
LLAVA, TRANSFORMERS = (
    json.loads((GOLDEN / form / "config.json").read_text()) for form in ("llava_tiny", "transformers_tiny")
)
PINPOINTS = [[512, 256], [256, 512], [512, 512]]
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llava_tiny", LLAVA),
    ("llava_tiny", {**LLAVA, "image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS}),
    ("llava_tiny", {**LLAVA, "image_aspect_ratio": "anyres", "image_grid_pinpoints": str(PINPOINTS)}),
    ("llava_tiny", {**LLAVA, "tokenizer_model_max_length": 200, "mm_use_im_start_end": True}),
    *(
        (
            "transformers_tiny",
            {**TRANSFORMERS, "text_config": {**TRANSFORMERS["text_config"], "rope_parameters": rope}},
        )
        for rope in (
            {"rope_type": "default", "rope_theta": 1e4},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128},
            {
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            },
            {
                "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128,
                "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
            },
        )
    ),
]  # fmt: skip
GENERATION = {"eos_token_id": [2, 3], "bos_token_id": 1, "pad_token_id": 0, "do_sample": False, "temperature": 0.7}
IDS = [1, 17, 45, 99, 7, 201]


def put(folder: Path, files: dict[str, bytes], form: str | None = None) -> None:
    """Makes `folder` hold these files, and the golden weights of a form, alone."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if form:
        (folder / "model.safetensors").symlink_to(GOLDEN / form / "model.safetensors")


def asked(vlm: FastVLM) -> None:
    """Runs the prompt's pass, which uses all that the settings decided."""
    with torch.inference_mode():
        vlm.language_model(input_ids=torch.tensor([IDS]))


@pytest.mark.parametrize(("form", "config"), CONFIGS)
def test_sound_settings_are_read(form: str, config: dict[str, Any], tmp_path: Path) -> None:
    files = {"config.json": json.dumps(config).encode(), "generation_config.json": json.dumps(GENERATION).encode()}
    put(tmp_path, files, form)
    vlm = load_fastvlm(tmp_path, tokenizer=False)
    asked(vlm)
    assert vlm.stop_ids >= {2, 3} and (vlm.tiling is not None) == (config.get("image_aspect_ratio") == "anyres")


@st.composite
def settings_files(draw: st.DrawFn) -> tuple[str, bytes]:
    form, config = draw(st.sampled_from(CONFIGS))
    return form, draw(json_files(config))


@fuzz(examples=100, drawn=settings_files())
def test_settings(drawn: tuple[str, bytes], folder: Path) -> None:
    put(folder, {"config.json": drawn[1]}, drawn[0])
    with only_our_errors():
        located = locate(folder)
        main = located.configs["config.json"]
        read_config("here", main, TensorStore(located))
        Tiling.from_config(main, (256, 256))


@fuzz(examples=12, drawn=settings_files(), share=0.1)
def test_models(drawn: tuple[str, bytes], folder: Path) -> None:
    put(folder, {"config.json": drawn[1]}, drawn[0])
    with only_our_errors():
        asked(load_fastvlm(folder, tokenizer=False))


@fuzz(examples=50, content=json_files(GENERATION))
def test_generation(content: bytes, folder: Path) -> None:
    put(folder, {"generation_config.json": content}, "llava_tiny")
    with only_our_errors():
        config = SimpleNamespace(eos_token_id=2, vocab_size=320)
        assert all(0 <= token < 320 for token in stop_ids("here", config, read_generation(locate(folder)), None))


@pytest.fixture(scope="session")
def tokenizers(
    tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[..., None]
) -> list[dict[str, bytes]]:
    """The files of sound tokenizers: a tokenizer.json, and vocab.json with merges.txt, each with its settings.

    The third has a class that takes each step from tokenizer.json; Qwen2's takes the vocabulary alone.
    """
    made = []
    for kind in ("tokenizer.json", "vocab.json"):
        folder = tmp_path_factory.mktemp("tokenizer")
        write_tokenizer(folder, files=kind)
        made.append({file.name: file.read_bytes() for file in folder.iterdir()})
    special = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    made[1] |= {"special_tokens_map.json": json.dumps(special).encode()}
    general = json.loads(made[0]["tokenizer_config.json"]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    made.append(made[0] | {"tokenizer_config.json": json.dumps(general).encode()})
    return made


def use(folder: Path) -> None:
    """Opens a tokenizer, and has it take and give text."""
    tokenizer = tokenizer_from(folder)
    ids = tokenize(tokenizer, ["What is it? <|im_end|>\n", None, " Zoë’s 日本 😀"])
    stream = TextStream(tokenizer)
    for token in ids:
        if token >= 0:
            stream.add(token)
    stream.end()


def test_sound_tokenizers_are_read(tokenizers: list[dict[str, bytes]], tmp_path: Path) -> None:
    for files in tokenizers:
        put(tmp_path, files)
        use(tmp_path)


@fuzz(examples=60, data=st.data())
def test_tokenizer(data: st.DataObject, tokenizers: list[dict[str, bytes]], folder: Path) -> None:
    files = dict(data.draw(st.sampled_from(tokenizers)))
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(byte_files(files[name]) if name.endswith(".txt") else json_files(json.loads(files[name])))
    put(folder, files)
    with only_our_errors():
        use(folder)
