"""Which tokenizers are opened, and what becomes of a panic in the library that runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvexport.core.errors import CheckpointError
from fvexport.encoder.fastvlm.generate import TextStream
from fvexport.encoder.fastvlm.prompt import tokenize
from fvexport.encoder.fastvlm.tokenizer import guarded, tokenizer_from

pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(120)

TEXT = "<|im_start|>user\nWhat is in this picture? 42 Zoë’s 日本<|im_end|>\n"
GENERAL = "PreTrainedTokenizerFast"
ENDLESS = "(([a-z ])+.?)+[0-9]$"
DOUBLING = {"type": "Replace", "pattern": {"String": "s"}, "content": "ss"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
TEXT_ITSELF = {"Sequence": {"id": "A", "type_id": 0}}
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing", "single": [TEXT_ITSELF],
    "pair": [TEXT_ITSELF, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [318], "tokens": ["<|im_end|>"]}},
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path, write_tokenizer: Callable[..., None]) -> Callable[..., Path]:
    """`written(steps, kind)`: a tokenizer whose file has other steps, opened by a class that takes them from there."""

    def write(steps: dict[str, Any], kind: str | None = GENERAL) -> Path:
        write_tokenizer(tmp_path)
        for name, changes in (("tokenizer.json", steps), ("tokenizer_config.json", {"tokenizer_class": kind})):
            path = tmp_path / name
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return tmp_path

    return write


def split(pattern: dict[str, str]) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("kind", [None, "Qwen2Tokenizer", "Qwen2TokenizerFast", GENERAL, "TokenizersBackend"])
@pytest.mark.parametrize(
    "steps",
    [
        {"post_processor": BYTES, "decoder": BYTES},  # Qwen2's releases
        {"post_processor": TEMPLATE, "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
        {"post_processor": {"type": "Sequence", "processors": [BYTES, TEMPLATE]}, "normalizer": None},
    ],
)
def test_steps_that_are_taken(written: Callable[..., Path], steps: dict[str, Any], kind: str | None) -> None:
    ids = tokenize(tokenizer_from(written({})), [TEXT])
    tokenizer = tokenizer_from(written(steps, kind))
    assert tokenize(tokenizer, [TEXT]) == ids
    assert tokenizer.decode(ids) == TEXT


def test_what_transformers_writes_is_taken(written: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = tokenizer_from(written({}, "Qwen2Tokenizer"))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = tokenizer_from(tmp_path / "saved")
    assert tokenize(again, [TEXT]) == tokenize(tokenizer, [TEXT])


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ({"pre_tokenizer": split({"Regex": ENDLESS})}, r"pre_tokenizer\.pattern\.Regex: unknown value '\(\("),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split({"Regex": ENDLESS}), BYTES]}},
            r"pretokenizers\[0\]\.pattern\.Regex: unknown value",
        ),
        ({"pre_tokenizer": split({"String": "s"})}, "Regex"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"pre_tokenizer\.type: unknown value 'Whitespace'"),
        ({"normalizer": DOUBLING}, r"normalizer\.type: unknown value 'Replace'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 31}}, "length <= 4"),
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING]}}, "unknown value 'Replace'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence"}]}}, "unknown value 'Sequence'"),
        ({"normalizer": {"pattern": {"String": "s"}, "content": "ss"}}, "missing required field type"),
        ({"post_processor": TEMPLATE | {"single": [TEXT_ITSELF] * 1000}}, "length <= 4"),
        ({"post_processor": {"type": "Sequence", "processors": [TEMPLATE] * 3}}, "length <= 2"),
        ({"decoder": DOUBLING}, r"decoder\.type: unknown value 'Replace'"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}, r"model\.type: unknown value 'WordLevel'"),
        ({"added_tokens": [{"id": 1, "content": "s" * 2000}]}, "length <= 1024"),
        ({"model": None}, "model: expected"),
    ],
)
@pytest.mark.parametrize("kind", [GENERAL, "Qwen2Tokenizer"])
def test_steps_that_are_refused(written: Callable[..., Path], steps: dict[str, Any], found: str, kind: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"tokenizer\.json has a wrong value \(.*{found}.*use the checkpoint's own"
    ):
        tokenizer_from(written(steps, kind))


@pytest.mark.parametrize("kind", ["BertTokenizer", "LlamaTokenizer", ""])
def test_classes_that_are_refused(written: Callable[..., Path], kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"tokenizer_class: unknown value '{kind}'.*own Qwen2 tokenizer"):
        tokenizer_from(written({}, kind))


class PanicException(BaseException):
    """As PyO3's, which cannot be imported."""


class Panics:
    """A tokenizer whose every call panics."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise PanicException('called `Result::unwrap()` on an `Err` value: "retry-limit"\nmore')

    decode = __call__


def test_a_panic_is_an_error_of_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"^the tokenizer cannot tokenize the prompt \(called .*limit\"\); give"):
        tokenize(Panics(), ["text"])
    with pytest.raises(CheckpointError, match=r"^the tokenizer cannot decode the answer \(called .*limit\"\); give"):
        TextStream(Panics()).add(1)


def test_a_panic_of_the_library() -> None:
    """A real one: an expression that gives up."""
    from tokenizers import Regex, pre_tokenizers

    endless = pre_tokenizers.Split(Regex(ENDLESS), behavior="isolated")
    with pytest.raises(CheckpointError, match=r"^trouble \(.*\); give the folder of a tokenizer"):
        guarded("trouble", endless.pre_tokenize_str, "a" * 38 + "?")


def test_an_interrupt_is_not_held_up() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("trouble", interrupted)
