"""What becomes of a panic in the library that runs them."""

from __future__ import annotations

from typing import Any

import pytest

from fvexport.core.errors import CheckpointError
from fvexport.encoder.fastvlm.generate import TextStream
from fvexport.encoder.fastvlm.prompt import tokenize
from fvexport.encoder.fastvlm.tokenizer import guarded

pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(120)

ENDLESS = "(([a-z ])+.?)+[0-9]$"


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
