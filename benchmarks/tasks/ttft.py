"""Time to first token, by part: encoder, connector, and the language model's pass over visual tokens and prompt.

The one place where it is measured: `fvexport ask --profile` and a sweep's rows both call `measure_ttft`. Latency does
not depend on the values of weights, so a seeded language model of the released dimensions stands in for a trained one.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...encoder.qwen2 import hollow_qwen2, import_qwen2, prefill
from ...kernels.timing import p10_p90

LanguageModelName = Literal["qwen2-0.5b", "qwen2-1.5b", "qwen2-7b"]

DIMENSIONS: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Of the language models in FastVLM-0.5B, -1.5B and -7B (their config.json)."""

POOL = (1 << 20) - 3
"""Random values made for a seeded model, repeated in its tensors; a prime, so that no two rows are alike."""


@dataclass(frozen=True)
class Vision:
    """What turns pixels into the language model's embeddings.

    Attributes:
        encode: pixels (B, 3, H, W) -> visual tokens (B, N, C).
        connector: (B, N, C) -> (B, N, d); None where `encode` has it within.
    """

    encode: Callable[[Tensor], Tensor]
    connector: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Ttft:
    """Time to first token of one candidate: medians over rounds, in milliseconds.

    Attributes:
        encoder_ms, connector_ms, prefill_ms: the parts; the connector's is 0 where the encoder has it within.
        ttft_ms: of their sum, round by round, with its 10th and 90th percentile.
        visual_tokens: of all images of the call.
        prompt_tokens: of the text.
        rounds: counted ones.
    """

    encoder_ms: float
    connector_ms: float
    prefill_ms: float
    ttft_ms: float
    ttft_p10_ms: float
    ttft_p90_ms: float
    visual_tokens: int
    prompt_tokens: int
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def seeded_language_model(
    name: LanguageModelName, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", seed: int = 0
) -> Any:
    """A `Qwen2ForCausalLM` of a released FastVLM's dimensions, with seeded weights: its words mean nothing.

    Args:
        name: a key of `DIMENSIONS`.
        dtype: of its weights; float32 by default.
        device: where they are made; 0.5 billion of them take 2 GB in float32.
        seed: equal for equal.

    Raises:
        ConfigError: an unknown name.
        UnavailableError: transformers is not installed.
    """
    if name not in DIMENSIONS:
        raise ConfigError(f"unknown language model {name!r}; known are {', '.join(get_args(LanguageModelName))}")
    config = import_qwen2().Config(
        **DIMENSIONS[name],
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model = hollow_qwen2(config)
    pool = torch.empty(POOL).normal_(generator=torch.Generator().manual_seed(seed)).to(device, dtype or torch.float32)
    weights = {n: _filled(n, tuple(t.shape), pool) for n, t in model.named_parameters()}  # tied ones once
    model.load_state_dict(weights, strict=False, assign=True)  # not strict: a tied head has no weights of its own
    model.tie_weights()
    return model.to(device).requires_grad_(False)


def _filled(name: str, shape: tuple[int, ...], pool: Tensor) -> Tensor:
    """Values that keep activations of order one: norms near 1, matrices by their fan-in."""
    count = torch.Size(shape).numel()
    start = zlib.crc32(name.encode()) % POOL
    tensor = torch.empty(count, dtype=pool.dtype, device=pool.device)
    done = min(count, POOL - start)
    tensor[:done] = pool[start : start + done]
    while done < count:
        part = min(POOL, count - done)
        tensor[done : done + part] = pool[:part]
        done += part
    if len(shape) > 1:
        return tensor.mul_(shape[-1] ** -0.5).view(shape)
    return tensor.mul_(0.1).add_(1.0) if "norm" in name else tensor.mul_(0.1)


def measure_ttft(
    vision: Vision, language_model: Any, pixels: Tensor, *, prompt_tokens: int = 32, rounds: int = 5, warmup: int = 1
) -> Ttft:
    """Time to first token of one candidate; several are fairer side by side (`measure_ttft_paired`).

    Args:
        vision: encoder and connector.
        language_model: a `Qwen2ForCausalLM`, on the device and in the dtype to be measured.
        pixels: (B, 3, H, W), as `vision.encode` takes them; the tokens of all B stand in one prompt, as of tiles.
        prompt_tokens: of the text around them.
        rounds: counted rounds.
        warmup: rounds run first and not counted.
    """
    return measure_ttft_paired(
        {"": vision}, language_model, pixels, prompt_tokens=prompt_tokens, rounds=rounds, warmup=warmup
    )[""]


def measure_ttft_paired(
    candidates: Mapping[str, Vision], language_model: Any, pixels: Tensor, *, prompt_tokens: int = 32,
    rounds: int = 5, warmup: int = 1,
) -> dict[str, Ttft]:  # fmt: skip
    """`measure_ttft` of several candidates, once per round each, so that drift hits all alike."""
    if rounds < 1 or prompt_tokens < 1:
        raise ConfigError(f"rounds and prompt tokens must be at least 1; found {rounds} and {prompt_tokens}")
    ids = (torch.arange(prompt_tokens) % language_model.config.vocab_size)[None].to(language_model.device)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
    counts: dict[str, int] = {}
    names = list(candidates)
    for index in range(-warmup, rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            parts, counts[name] = _once(candidates[name], language_model, pixels, ids)
            if index >= 0:
                taken[name].append(parts)
    return {name: _summary(parts, counts[name], prompt_tokens) for name, parts in taken.items()}


def _once(vision: Vision, language_model: Any, pixels: Tensor, ids: Tensor) -> tuple[tuple[float, float, float], int]:
    """(encoder, connector, prefill) in milliseconds, and the number of visual tokens."""
    device = language_model.device

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * time.perf_counter()

    with torch.inference_mode():
        start = now()
        tokens = vision.encode(pixels)
        encoded = now()
        if vision.connector is not None:
            tokens = vision.connector(tokens)
        connected = now()
        text = language_model.get_input_embeddings()(ids)
        visual = tokens.flatten(0, 1)[None].to(text.device, text.dtype)
        logits, _ = prefill(language_model, torch.cat([text, visual], dim=1))
        logits.argmax(-1).item()
        end = now()
    return (encoded - start, (connected - encoded) if vision.connector else 0.0, end - connected), visual.shape[1]


def _summary(parts: list[tuple[float, float, float]], visual_tokens: int, prompt_tokens: int) -> Ttft:
    encoder, connector, prefills = (statistics.median(part) for part in zip(*parts, strict=True))
    sums = [sum(part) for part in parts]
    low, high = p10_p90(sums)
    return Ttft(
        encoder_ms=encoder, connector_ms=connector, prefill_ms=prefills, ttft_ms=statistics.median(sums),
        ttft_p10_ms=low, ttft_p90_ms=high, visual_tokens=visual_tokens, prompt_tokens=prompt_tokens,
        rounds=len(sums),
    )  # fmt: skip
