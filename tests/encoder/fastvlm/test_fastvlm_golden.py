"""Logits and tokens of the reference implementations, for the golden checkpoints in both forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvexport.encoder.fastvlm import EncodedImages, FastVLM, Sampling, load_fastvlm
from fvexport.encoder.fastvlm.prompt import IMAGE_TOKEN_INDEX
from fvexport.encoder.fastvlm.splice import splice
from fvexport.export.runtime import ArtifactTower

FORMS = ("llava_tiny", "transformers_tiny")
Load = Callable[[str], tuple[FastVLM, dict[str, Any]]]
Prompt = Callable[[dict[str, Any]], list[int]]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture(scope="module")
def load(golden_dir: Path, load_golden: Callable[[str], dict[str, Any]]) -> Load:
    made: dict[str, tuple[FastVLM, dict[str, Any]]] = {}

    def loaded(form: str) -> tuple[FastVLM, dict[str, Any]]:
        if form not in made:
            golden = load_golden(form)
            made[form] = load_fastvlm(golden_dir / form, tokenizer=False), golden
        return made[form]

    return loaded


@pytest.fixture
def artifact(exported: Callable[..., Any]) -> Callable[[str, bool], Path]:
    return lambda form, projector: exported(form, height=256, width=256, projector=projector).path


@pytest.fixture(scope="session")
def prompt(with_marks: Callable[..., list[int]]) -> Prompt:
    """The golden prompt with one mark for the image, from either form's way of writing it down."""

    def call(golden: dict[str, Any]) -> list[int]:
        if "input_ids" in golden:
            return with_marks(golden["input_ids"][0].tolist(), 319, [16])
        ids = golden["prompt_ids"][0].tolist()
        ids.insert(int(golden["prompt_image_position"]), IMAGE_TOKEN_INDEX)
        return ids

    return call


def wanted_ids(golden: dict[str, Any]) -> list[int]:
    """The sixteen new ones: transformers' own `generate` gives the prompt back too."""
    return golden["greedy_ids"][0, -16:].tolist()


@pytest.mark.parametrize(
    ("form", "tower"),
    [
        *(("llava_tiny", "eager"), ("llava_tiny", "onnx")),
        *(("transformers_tiny", "eager"), ("transformers_tiny", "onnx, projector")),
    ],
)
def test_prefill_and_greedy_tokens(
    load: Load, artifact: Callable[[str, bool], Path], prompt: Prompt, form: str, tower: str
) -> None:
    vlm, golden = load(form)
    used = None if tower == "eager" else ArtifactTower(artifact(form, "projector" in tower), vlm.info)
    tokens = (used or vlm.tower).encode(torch.from_numpy(golden["pixels_256x256"]))
    if used is None or not used.projected:
        tokens = vlm.connector(tokens)
    assert np.abs(tokens.numpy() - golden["projected_256x256"]).max() < 1e-4

    with torch.inference_mode():
        embeddings = splice(vlm.language_model, prompt(golden), list(tokens))
        logits = vlm.language_model(inputs_embeds=embeddings).logits
    assert np.abs(logits.numpy() - golden["prefill_logits"]).max() < 1e-4

    images = EncodedImages(tuple(tokens), tower, 0.0, 0.0, 0.0)
    answer = vlm.answer(images, prompt(golden), sampling=Sampling(max_new_tokens=16))
    assert list(answer.token_ids) == wanted_ids(golden)
    assert answer.stop == "length"
    assert (answer.prompt_tokens, answer.visual_tokens) == (6, 16)


@pytest.mark.parametrize("form", FORMS)
def test_marks_and_placeholders_give_the_same_embeddings(
    load: Load, with_marks: Callable[..., list[int]], form: str
) -> None:
    """LLaVA's splice against transformers' masked scatter, as `FastVlmModel.forward` does it."""
    vlm, _ = load(form)
    images = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (3, 5)]
    placeholders = torch.tensor([[7, *[319] * 3, 11, 12, *[319] * 5, 13]])
    table = vlm.language_model.get_input_embeddings()
    mask = (placeholders == 319)[..., None]
    scattered = table(placeholders).masked_scatter(mask, torch.cat(images))
    marks = with_marks(placeholders[0].tolist(), 319, [3, 5])
    assert marks == [7, IMAGE_TOKEN_INDEX, 11, 12, IMAGE_TOKEN_INDEX, 13]
    assert torch.equal(splice(vlm.language_model, marks, images), scattered)


@pytest.mark.parametrize("form", FORMS)
def test_greedy_is_transformers_own_generate(load: Load, prompt: Prompt, form: str) -> None:
    vlm, golden = load(form)
    image = torch.from_numpy(golden["projected_256x256"][0])
    embeddings = splice(vlm.language_model, prompt(golden), [image])
    wanted = vlm.language_model.generate(
        inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2]), max_new_tokens=30, do_sample=False
    )[0]
    answer = vlm.answer(
        EncodedImages((image,), "golden", 0, 0, 0), prompt(golden), sampling=Sampling(max_new_tokens=30)
    )
    assert list(answer.token_ids) == [int(t) for t in wanted if int(t) not in vlm.stop_ids]
