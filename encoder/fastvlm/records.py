"""A FastVLM's JSON files as structs: types and bounds, checked before anything is built from them.

Only the entries that are used are listed; all others are ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from ...core.records import Record

MAX_LAYERS = 1024
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT = 1 << 30
"""The largest values believed: ten times those of any published model, and small enough to build in seconds."""

Layers: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
Heads: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 12)]
Width: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 20)]
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_VOCABULARY)]
Factor: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
Factors: TypeAlias = Annotated[list[Factor], Meta(max_length=1 << 16)]
RopeType: TypeAlias = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]


class Rotary(Record, frozen=True, kw_only=True):
    """`rope_parameters`, called `rope_scaling` before transformers 5."""

    rope_type: RopeType | UnsetType = UNSET
    type: RopeType | UnsetType = UNSET
    rope_theta: Annotated[float, Meta(ge=1, le=1e15)] | UnsetType = UNSET
    factor: Factor | UnsetType | None = UNSET
    original_max_position_embeddings: Tokens | UnsetType | None = UNSET
    attention_factor: Factor | UnsetType | None = UNSET
    beta_fast: Factor | UnsetType | None = UNSET
    beta_slow: Factor | UnsetType | None = UNSET
    mscale: Factor | UnsetType | None = UNSET
    mscale_all_dim: Factor | UnsetType | None = UNSET
    truncate: bool | UnsetType = UNSET
    short_factor: Factors | UnsetType = UNSET
    long_factor: Factors | UnsetType = UNSET
    low_freq_factor: Factor | UnsetType = UNSET
    high_freq_factor: Factor | UnsetType = UNSET


class LanguageEntries(Record, frozen=True, kw_only=True):
    """Qwen2's entries of `config.json`, beside which LLaVA puts its own; those left out have Qwen2's defaults."""

    vocab_size: Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | UnsetType | None = UNSET
    hidden_act: str | UnsetType = UNSET
    max_position_embeddings: Tokens | UnsetType = UNSET
    rms_norm_eps: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    tie_word_embeddings: bool | UnsetType = UNSET
    rope_theta: Annotated[float, Meta(ge=1, le=1e15)] | UnsetType = UNSET
    rope_scaling: Rotary | UnsetType | None = UNSET
    rope_parameters: Rotary | UnsetType | None = UNSET
    use_sliding_window: bool | UnsetType = UNSET
    sliding_window: Tokens | UnsetType | None = UNSET
    max_window_layers: Annotated[int, Meta(ge=0, le=MAX_LAYERS)] | UnsetType = UNSET
    layer_types: list[Literal["full_attention", "sliding_attention"]] | UnsetType | None = UNSET
    eos_token_id: TokenId | list[TokenId] | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        heads, groups = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of twice num_attention_heads, {heads}")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads, {groups}")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        for token in token_ids(self.eos_token_id):
            if token >= self.vocab_size:
                raise ValueError(f"eos_token_id {token} is not below vocab_size, {self.vocab_size}")


class LlavaEntries(Record, frozen=True, kw_only=True):
    """LLaVA's entries of `config.json` that say how a prompt is made."""

    tie_word_embeddings: bool | UnsetType = UNSET
    tokenizer_model_max_length: Tokens | None = None
    mm_use_im_start_end: bool | None = None


class GenerationEntries(Record, frozen=True, kw_only=True):
    """`generation_config.json`, of which only the stop tokens are used."""

    eos_token_id: TokenId | list[TokenId] | None = None


class TokenizerEntries(Record, frozen=True, kw_only=True):
    """`tokenizer_config.json`: what decides how the tokenizer is opened.

    The class is Qwen2's under either of its names, or the general one, which takes all from `tokenizer.json`.
    """

    tokenizer_class: (
        Literal["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"] | None
    ) = None
    model_max_length: float | None = None


def token_ids(value: int | list[int] | UnsetType | None) -> list[int]:
    """The ids of an `eos_token_id`, which may be one, several or none."""
    return value if isinstance(value, list) else [value] if isinstance(value, int) else []
