"""From embeddings to an answer: prefill, greedy or sampled decoding, streaming, and where the time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..qwen2 import prefill
from .tokenizer import guarded

StopReason = Literal["end", "length", "context"]
"""The model ended its answer; `max_new_tokens` were made; the context is full."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: at most as many.
        temperature: 0 takes the likeliest (greedy).
        top_p: sample from the likeliest tokens whose probabilities reach this sum; None from all.
        seed: of the random choices; None for new ones each time. Without meaning at temperature 0.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1; found {self.max_new_tokens}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature must be 0 (greedy) or more; found {self.temperature:g}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1; found {self.top_p:g}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"a seed is 0 or more; found {self.seed}")


@dataclass(frozen=True)
class Piece:
    """What a stream callback gets: one token, and the text that it completes (often none, for half a character)."""

    text: str
    token_id: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in milliseconds of the clock.

    Attributes:
        preprocess_ms: files to pixels.
        encoder_ms: pixels to visual tokens.
        connector_ms: visual tokens to the language model's width; 0 where the artifact has it within.
        prefill_ms: the prompt with its visual tokens through the language model, and the first token chosen.
        decode_ms: the tokens after the first.
        decoded: how many those are, with the one that ended the answer.
    """

    preprocess_ms: float
    encoder_ms: float
    connector_ms: float
    prefill_ms: float
    decode_ms: float
    decoded: int

    @property
    def ttft_ms(self) -> float:
        """Time to first token, as the paper counts it: encoder, connector, prefill."""
        return self.encoder_ms + self.connector_ms + self.prefill_ms

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed after the first token; None where there was but one."""
        return 1e3 * self.decoded / self.decode_ms if self.decoded and self.decode_ms > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, `ttft_ms` and `tokens_per_s` included."""
        return asdict(self) | {"ttft_ms": self.ttft_ms, "tokens_per_s": self.tokens_per_s}


@dataclass(frozen=True)
class Answer:
    """What came out.

    Attributes:
        text: without special tokens; empty where the model has no tokenizer.
        token_ids: those generated; the one that ended the answer is left out.
        stop: why it ended.
        prompt_tokens: of the text, without images.
        visual_tokens: of all images.
        timings: by part.
        tower: what encoded the images; None for a question without any.
    """

    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    prompt_tokens: int
    visual_tokens: int
    timings: Timings
    tower: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"token_ids": list(self.token_ids), "timings": self.timings.to_dict()}


@dataclass(frozen=True)
class Decoded:
    """What `decode` made: tokens, why they ended, and the time by part."""

    token_ids: list[int]
    stop: StopReason
    prefill_ms: float
    decode_ms: float
    steps: int


@torch.inference_mode()
def decode(
    language_model: Any, embeddings: Tensor, sampling: Sampling, *, stop_ids: Collection[int], room: int,
    see: Callable[[int], None],
) -> Decoded:  # fmt: skip
    """Tokens after a prompt.

    Args:
        language_model: a `Qwen2ForCausalLM`.
        embeddings: (1, L, d), the prompt with its visual tokens.
        sampling: how tokens are chosen, and how many at most.
        stop_ids: tokens that end the answer.
        room: positions that the context has left.
        see: called with each token that belongs to the answer, as it is chosen.
    """
    choose = _chooser(sampling, embeddings.device)
    start = 1e3 * time.perf_counter()
    logits, cache = prefill(language_model, embeddings)
    token = choose(logits)
    prefilled = 1e3 * time.perf_counter()
    made: list[int] = []
    limit = min(sampling.max_new_tokens, room)
    stop: StopReason = "length" if sampling.max_new_tokens <= room else "context"
    steps = 0
    while True:
        if token in stop_ids:
            stop = "end"
            break
        made.append(token)
        see(token)
        if len(made) == limit:
            break
        ids = torch.tensor([[token]], device=embeddings.device)
        out = language_model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = choose(out.logits[:, -1])
        steps += 1
    return Decoded(made, stop, prefilled - start, 1e3 * time.perf_counter() - prefilled, steps)


def _chooser(sampling: Sampling, device: torch.device) -> Callable[[Tensor], int]:
    """Logits (1, vocabulary) -> the next token. Reading it waits for the device, so the clock is right without more."""
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax(-1))
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    warpers: list[Callable[..., Tensor]] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def sample(logits: Tensor) -> int:
        scores = logits.float()
        for warper in warpers:
            scores = warper(None, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))

    return sample


class TextStream:
    """Token ids -> text, piece by piece: a character whose bytes are spread over tokens comes with its last one.

    Only the tokens since the last boundary are decoded again, so a long answer costs no more per token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begin = 0  # what is decoded again, so that the tokenizer sees what stands before a new token
        self._said = 0  # ids before which everything was given out
        self._pieces: list[str] = []

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self._ids.append(token)
        before = self._decoded(self._begin, self._said)
        now = self._decoded(self._begin, len(self._ids))
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._begin, self._said = self._said, len(self._ids)
        return self._keep(now[len(before) :])

    def end(self) -> str:
        """What is left: the text of a token whose character was never completed."""
        rest = self._decoded(self._begin, len(self._ids))[len(self._decoded(self._begin, self._said)) :]
        self._begin = self._said = len(self._ids)
        return self._keep(rest)

    @property
    def text(self) -> str:
        """All pieces together."""
        return "".join(self._pieces)

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece

    def _decoded(self, begin: int, end: int) -> str:
        ids = self._ids[begin:end]
        problem = "the tokenizer cannot decode the answer"
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(guarded(problem, self._tokenizer.decode, ids, **options))
