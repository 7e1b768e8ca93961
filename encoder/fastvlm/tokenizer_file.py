"""`tokenizer.json` as structs, restricted to what Qwen2's tokenizers have.

The format can say almost any computation on a text: expressions that take a time without end, replacements that double
the text thirty times. Every published FastVLM has Qwen2's few steps, so these are taken, and a little room beside them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from ...core.records import Record
from .records import TokenId

Word: TypeAlias = Annotated[str, Meta(max_length=1024)]
"""A token; Qwen2's longest has 128 characters."""

Affix: TypeAlias = Annotated[str, Meta(max_length=16)]

Qwen2Pattern: TypeAlias = Literal[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
]
"""Where Qwen2 cuts text, as transformers writes it and all of Qwen2's releases have it."""


class PlainNormalizer(Record, frozen=True, kw_only=True):
    """These make a text some twenty times as long at most, however often they are applied."""

    type: Literal["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip"]


class Normalizer(Record, frozen=True, kw_only=True):
    """Qwen2's is NFC."""

    type: Literal["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Sequence"]
    normalizers: Annotated[list[PlainNormalizer], Meta(max_length=4)] | UnsetType = UNSET


class Pattern(Record, frozen=True, kw_only=True):
    """Of a Split: no expression of the file's own."""

    Regex: Qwen2Pattern


class PlainSplitter(Record, frozen=True, kw_only=True):
    """A part of Qwen2's."""

    type: Literal["Split", "ByteLevel"]
    pattern: Pattern | UnsetType = UNSET


class Splitter(Record, frozen=True, kw_only=True):
    """Qwen2's is a sequence of Split and ByteLevel."""

    type: Literal["Split", "ByteLevel", "Sequence"]
    pattern: Pattern | UnsetType = UNSET
    pretokenizers: Annotated[list[PlainSplitter], Meta(max_length=4)] | UnsetType = UNSET


class TemplateToken(Record, frozen=True, kw_only=True):
    """What a template adds to a text."""

    ids: Annotated[list[int], Meta(max_length=16)] | UnsetType = UNSET
    tokens: Annotated[list[Word], Meta(max_length=16)] | UnsetType = UNSET


class PlainProcessor(Record, frozen=True, kw_only=True):
    """A template repeats the text for each of its pieces that stands for it, so these are few."""

    type: Literal["ByteLevel", "TemplateProcessing"]
    single: Annotated[list[Any], Meta(max_length=4)] | UnsetType = UNSET
    pair: Annotated[list[Any], Meta(max_length=8)] | UnsetType = UNSET
    special_tokens: Annotated[dict[str, TemplateToken], Meta(max_length=16)] | UnsetType = UNSET


class Processor(Record, frozen=True, kw_only=True):
    """Qwen2's is ByteLevel, or none."""

    type: Literal["ByteLevel", "TemplateProcessing", "Sequence"]
    single: Annotated[list[Any], Meta(max_length=4)] | UnsetType = UNSET
    pair: Annotated[list[Any], Meta(max_length=8)] | UnsetType = UNSET
    special_tokens: Annotated[dict[str, TemplateToken], Meta(max_length=16)] | UnsetType = UNSET
    processors: Annotated[list[PlainProcessor], Meta(max_length=2)] | UnsetType = UNSET


class Decoder(Record, frozen=True, kw_only=True):
    """Qwen2's."""

    type: Literal["ByteLevel"]


class BytePairs(Record, frozen=True, kw_only=True):
    """The vocabulary, and which tokens join; a merge is one text with a space, or a pair."""

    type: Literal["BPE"]
    continuing_subword_prefix: Affix | None = None
    end_of_word_suffix: Affix | None = None
    unk_token: Word | None = None
    vocab: dict[Word, TokenId]
    merges: list[Annotated[str, Meta(max_length=2049)] | Annotated[list[Word], Meta(min_length=2, max_length=2)]]


class AddedToken(Record, frozen=True, kw_only=True):
    """A token beside the vocabulary, such as `<|im_end|>`."""

    id: TokenId
    content: Word


class TokenizerFile(Record, frozen=True, kw_only=True):
    """The whole file."""

    normalizer: Normalizer | None = None
    pre_tokenizer: Splitter | None = None
    post_processor: Processor | None = None
    decoder: Decoder | None = None
    model: BytePairs
    added_tokens: Annotated[list[AddedToken], Meta(max_length=1 << 14)] | UnsetType = UNSET
