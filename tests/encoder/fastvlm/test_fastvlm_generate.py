"""Answers: how tokens are chosen, why they end, what is streamed, and where the time went."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fvexport.core.errors import ConfigError, ImageError, PromptError
from fvexport.encoder.fastvlm import Answer, EncodedImages, FastVLM, Piece, Sampling, load_fastvlm
from fvexport.encoder.fastvlm.splice import splice

QUESTION = "What is in this picture?"
PICTURE = np.full((70, 90, 3), 120, np.uint8)
OTHER = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture(scope="module")
def loaded(fastvlm_dir: Path) -> FastVLM:
    return load_fastvlm(fastvlm_dir)


@pytest.fixture
def vlm(loaded: FastVLM) -> FastVLM:
    """A copy of its own to set fields of."""
    return replace(loaded)


def ask(vlm: FastVLM, images: Any = (PICTURE,), question: Any = QUESTION, **sampling: Any) -> Answer:
    return vlm.generate(images, question, sampling=Sampling(**{"max_new_tokens": 12, **sampling}))


def test_sampling_is_repeatable_by_its_seed(vlm: FastVLM) -> None:
    greedy = ask(vlm)
    assert ask(vlm, temperature=5.0, seed=1) != greedy
    tokens = {seed: ask(vlm, temperature=5.0, seed=seed).token_ids for seed in (1, 2)}
    assert tokens[1] == ask(vlm, temperature=5.0, seed=1).token_ids != tokens[2]
    assert len({ask(vlm, temperature=5.0).token_ids for _ in range(3)}) > 1  # without a seed, new ones each time
    assert ask(vlm, temperature=5.0, top_p=1e-6, seed=1).token_ids == greedy.token_ids  # one token is enough
    assert ask(vlm, temperature=1e-4, seed=1).token_ids == greedy.token_ids
    state = torch.random.get_rng_state()
    ask(vlm, temperature=5.0, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's own random numbers are not touched


def test_sampling_follows_the_models_probabilities(vlm: FastVLM) -> None:
    """First tokens of many seeds against the softmax in float64, and against its nucleus."""
    images = vlm.encode_images([PICTURE])
    ids = vlm.prompt_ids(QUESTION, 1)
    embeddings = splice(vlm.language_model, ids, images.tokens)
    with torch.inference_mode():
        scores = vlm.language_model(inputs_embeds=embeddings).logits[0, -1].double() / 2.0
    wanted = scores.softmax(0)
    order = wanted.argsort(descending=True)
    nucleus = order[: int((wanted[order].cumsum(0) < 0.5).sum()) + 1]
    first = [vlm.answer(images, ids, sampling=Sampling(1, temperature=2.0, seed=seed)).token_ids for seed in range(400)]
    counts = torch.bincount(torch.tensor([t[0] for t in first if t]), minlength=len(wanted)) / len(first)
    assert float((counts - wanted).abs().max()) < 0.08
    for seed in range(40):
        (token,) = vlm.answer(images, ids, sampling=Sampling(1, 2.0, 0.5, seed)).token_ids
        assert token in nucleus
    assert len(nucleus) > 1


def test_why_it_ends(vlm: FastVLM) -> None:
    whole = ask(vlm)
    assert whole.stop == "length" and len(whole.token_ids) == 12
    place = next(i for i, token in enumerate(whole.token_ids) if i > 2 and token not in whole.token_ids[:i])
    vlm.stop_ids = frozenset({whole.token_ids[place]})
    ended = ask(vlm)
    assert ended.stop == "end" and ended.token_ids == whole.token_ids[:place]
    vlm.stop_ids = frozenset({whole.token_ids[0]})
    assert ask(vlm).token_ids == () and ask(vlm).text == "" and ask(vlm).timings.tokens_per_s is None
    vlm.stop_ids = frozenset()
    vlm.context_length = whole.prompt_tokens + whole.visual_tokens + 5
    full = ask(vlm)
    assert full.stop == "context" and full.token_ids == whole.token_ids[:5]
    assert ask(vlm, max_new_tokens=5).stop == "length"


class Watched:
    """The eager tower, slowed down, counting its calls."""

    name, projected, resolution = "watched", False, (128, 128)

    def __init__(self, vlm: FastVLM, seconds: float = 0.0) -> None:
        self.inner, self.seconds, self.calls = vlm.tower, seconds, 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        time.sleep(self.seconds)
        return self.inner.encode(pixels)


def test_prompts_that_fill_the_context_are_refused_before_the_work(vlm: FastVLM) -> None:
    tower = Watched(vlm)
    taken = len(vlm.prompt_ids(QUESTION, 1)) - 1 + 4
    vlm.context_length = taken
    with pytest.raises(PromptError, match=rf"the prompt takes {taken} tokens \(4 of them images\).* room for {taken}"):
        vlm.generate([PICTURE], QUESTION, tower=tower)
    with pytest.raises(PromptError, match="1 <image> mark and 2 images came"):
        vlm.generate([PICTURE, OTHER], f"<image>\n{QUESTION}", tower=tower)
    with pytest.raises(ImageError, match=r"no image at no-such\.jpg"):
        vlm.generate(["no-such.jpg"], QUESTION, tower=tower)
    assert tower.calls == 0
    vlm.context_length = taken + 1
    assert vlm.generate([PICTURE], QUESTION, tower=tower).stop == "context"
    assert tower.calls == 1


def test_streaming(vlm: FastVLM) -> None:
    pieces: list[Piece] = []
    answer = vlm.generate([PICTURE], QUESTION, sampling=Sampling(40), stream=pieces.append)
    assert "".join(piece.text for piece in pieces).strip() == answer.text
    assert answer.text == vlm.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
    ids = [piece.token_id for piece in pieces]
    assert tuple(ids[:40]) == answer.token_ids and len(ids) <= 41  # one more where half a character was left


def test_images_are_looked_at(vlm: FastVLM) -> None:
    images = vlm.encode_images([PICTURE])
    assert ask(vlm, images).token_ids == ask(vlm).token_ids  # encoded beforehand or now
    # The golden encoder says nearly the same of any picture: these tokens differ.
    noise = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    one, other = images.tokens[0], noise

    def with_tokens(*tokens: Tensor) -> tuple[int, ...]:
        question = " and ".join(["<image>"] * len(tokens)) + ": what is it?"
        answer = ask(vlm, EncodedImages(tokens, "made up", 0, 0, 0), question)
        assert answer.visual_tokens == 16 * len(tokens)
        return answer.token_ids

    answers = [with_tokens(one), with_tokens(other), with_tokens(one, other), with_tokens(other, one)]
    assert len(set(answers)) == 4


def test_several_turns_and_text_alone(vlm: FastVLM) -> None:
    images = vlm.encode_images([PICTURE])
    first = ask(vlm, images)
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Are you sure?"},
    ]
    second = ask(vlm, images, turns)
    assert second.prompt_tokens > first.prompt_tokens and second.visual_tokens == 16
    alone = ask(vlm, [], "What is 2 + 2?")
    assert alone.visual_tokens == 0 and alone.tower is None and len(alone.token_ids) == 12
    assert alone.timings.encoder_ms == alone.timings.connector_ms == 0


def test_where_the_time_goes(vlm: FastVLM) -> None:
    start = time.perf_counter()
    answer = vlm.generate([PICTURE], QUESTION, tower=Watched(vlm, 0.05), sampling=Sampling(8))
    wall = 1e3 * (time.perf_counter() - start)
    parts = answer.timings
    assert answer.tower == "watched" and answer.visual_tokens == 4
    assert parts.encoder_ms >= 50 and min(parts.preprocess_ms, parts.connector_ms, parts.prefill_ms) > 0
    assert parts.ttft_ms == pytest.approx(parts.encoder_ms + parts.connector_ms + parts.prefill_ms)
    assert parts.decoded == 7 and parts.tokens_per_s == pytest.approx(7e3 / parts.decode_ms)
    assert parts.preprocess_ms + parts.ttft_ms + parts.decode_ms <= wall
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["timings"]["ttft_ms"] == parts.ttft_ms and told["timings"]["tokens_per_s"] == parts.tokens_per_s
    assert told["token_ids"] == list(answer.token_ids) and told["stop"] == "length"


def test_towers(vlm: FastVLM) -> None:
    with pytest.raises(ConfigError, match="watched takes 128x128 alone; found --res 256x256"):
        vlm.generate([PICTURE], QUESTION, tower=Watched(vlm), resolution=(256, 256))
    tower = Watched(vlm)
    vlm.drop_encoder()
    assert vlm.generate([PICTURE], QUESTION, tower=tower, sampling=Sampling(1)).tower == "watched"
    assert vlm.generate([], QUESTION, sampling=Sampling(1)).tower is None
    with pytest.raises(ConfigError, match="the eager encoder was dropped"):
        vlm.generate([PICTURE], QUESTION)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; found 0"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"seed": -1}, "a seed is 0 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


def test_token_ids_must_fit(vlm: FastVLM) -> None:
    images = vlm.encode_images([PICTURE])
    with pytest.raises(PromptError, match="the token 320, and the model embeddings for 0 to 319"):
        vlm.answer(images, [1, -200, 320])
    with pytest.raises(PromptError, match="2 marks for images and 1 images"):
        vlm.answer(images, [1, -200, -200])
