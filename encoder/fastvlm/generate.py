"""From embeddings to an answer: prefill, greedy or sampled decoding, streaming, and where the time goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
        decoded: how many those are.
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
        raise NotImplementedError


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
        tower: what encoded the images.
    """

    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    prompt_tokens: int
    visual_tokens: int
    timings: Timings
    tower: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        raise NotImplementedError
