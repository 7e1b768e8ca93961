"""Time to first token: the language models it stands on, and that the parts are what they are called."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from fvexport.benchmarks.tasks import ttft
from fvexport.benchmarks.tasks.ttft import Vision, measure_ttft, measure_ttft_paired, seeded_language_model
from fvexport.core.errors import ConfigError
from fvexport.encoder.qwen2 import hollow_qwen2, import_qwen2, prefill

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": True,
}  # fmt: skip
SLEEP = 0.03


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(ttft.DIMENSIONS, "qwen2-0.5b", SMALL)
    return seeded_language_model("qwen2-0.5b")


@pytest.mark.parametrize(
    ("name", "published"),
    # As the model cards of Qwen2-0.5B, -1.5B and -7B on Hugging Face count them.
    [("qwen2-0.5b", 494_032_768), ("qwen2-1.5b", 1_543_714_304), ("qwen2-7b", 7_615_616_512)],
)
def test_dimensions_are_the_published_ones(name: str, published: int) -> None:
    model = hollow_qwen2(import_qwen2().Config(**ttft.DIMENSIONS[name]))
    assert sum(p.numel() for p in model.parameters()) == published


def test_seeded_weights_are_whole_and_equal_for_equal(small: Any) -> None:
    assert small.lm_head.weight is small.model.embed_tokens.weight
    for tensor in (*small.parameters(), *small.buffers()):
        assert not tensor.is_meta and bool(torch.isfinite(tensor).all()) and float(tensor.float().std()) > 0
    again, other = seeded_language_model("qwen2-0.5b"), seeded_language_model("qwen2-0.5b", seed=1)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert not torch.equal(tensor, other.state_dict()[name]), name
    assert seeded_language_model("qwen2-0.5b", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tensors_larger_than_the_pool_are_filled(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttft, "POOL", 1009)
    weight = seeded_language_model("qwen2-0.5b").model.embed_tokens.weight
    assert weight.shape == (300, 64)
    assert len(torch.unique(weight, dim=0)) == 300  # no two rows alike
    assert 0.9 < float(weight.pow(2).sum(1).mean()) < 1.1


def test_prefill_is_the_models_own_last_position(small: Any) -> None:
    embeddings = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    logits, cache = prefill(small, embeddings)
    assert torch.allclose(logits, small(inputs_embeds=embeddings).logits[:, -1], atol=1e-5)
    assert cache.get_seq_length() == 9
    moved = embeddings.clone()
    moved[0, 2] += 0.5
    assert not torch.allclose(logits, prefill(small, moved)[0], atol=1e-2)  # every position matters


def test_parts_are_timed_apart(small: Any) -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(SLEEP)
        return torch.zeros(len(x), 4, 64)

    def slower(tokens: torch.Tensor) -> torch.Tensor:
        time.sleep(2 * SLEEP)
        return tokens

    found = measure_ttft(Vision(slow, slower), small, torch.zeros(3, 3, 64, 64), prompt_tokens=7, rounds=3)
    assert found.encoder_ms >= 1e3 * SLEEP and found.connector_ms >= 2e3 * SLEEP and found.prefill_ms > 0
    assert found.ttft_p10_ms <= found.ttft_ms <= found.ttft_p90_ms
    assert found.ttft_ms >= 3e3 * SLEEP
    assert (found.visual_tokens, found.prompt_tokens, found.rounds) == (12, 7, 3)
    assert found.to_dict()["visual_tokens"] == 12
    whole = measure_ttft(Vision(slow), small, torch.zeros(1, 3, 64, 64), rounds=1)
    assert whole.connector_ms == 0 and whole.visual_tokens == 4 and whole.ttft_p10_ms == whole.ttft_p90_ms


def test_candidates_take_turns(small: Any) -> None:
    order = []

    def vision(name: str) -> Vision:
        return Vision(lambda x: (order.append(name), torch.zeros(1, 2, 64))[1])

    found = measure_ttft_paired({n: vision(n) for n in "abc"}, small, torch.zeros(1, 3, 64, 64), rounds=3, warmup=1)
    assert list(found) == ["a", "b", "c"]
    assert "".join(order[3:]) == "abcbcacab"


def test_what_is_refused(small: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown language model 'llama'; known are qwen2-0\.5b"):
        seeded_language_model("llama")  # type: ignore[arg-type]
    for wrong in ({"rounds": 0}, {"prompt_tokens": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            measure_ttft(Vision(lambda x: x), small, torch.zeros(1, 3, 64, 64), **wrong)
