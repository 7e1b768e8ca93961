"""A conversation -> ChatML text -> token ids, with marks where images go.

Source: template `qwen_2` of apple/ml-fastvlm (`llava/conversation.py`), `predict.py` there, and LLaVA's
`tokenizer_image_token`, which tokenizes the text around each `<image>` by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...core.errors import PromptError
from ...core.phrases import counted
from ...core.plain_text import SURROGATES
from .tokenizer import guarded

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "<image>\\nWhat is this?"}`, as transformers' chat templates take it; the content may be
a list of `{"type": "image"}` and `{"type": "text", "text": …}` too. Roles: system (first alone), user, assistant."""

Conversation: TypeAlias = str | Sequence[Message]
"""A question, or several turns that begin with the user's (after a system message, if any) and end with it."""

IMAGE_TOKEN_INDEX = -200
"""Stands in token ids where an image's tokens go: LLaVA's number."""
MARK = "<image>"
SYSTEM = "You are a helpful assistant."

Segment: TypeAlias = str | None
"""A run of text, or None for an image."""


def segments(conversation: Conversation, images: int, *, mark: str = MARK) -> list[Segment]:
    """The conversation in ChatML, up to where the assistant's answer begins, as runs of text with images between.

    Args:
        conversation: see `Conversation`. Without a mark, `images` of them go before the first user's text.
        images: how many there are.
        mark: what stands for an image in the text that is tokenized: models with `mm_use_im_start_end` wrap it.

    Raises:
        PromptError: another number of marks than images, marks outside the user's turns, roles out of turn.
    """
    turns = _turns(conversation)
    users = [index for index, (role, _) in enumerate(turns) if role == "user"]
    marks = sum(turns[index][1].count(MARK) for index in users)
    if marks == 0 and images:
        role, text = turns[users[0]]
        turns[users[0]] = role, f"{MARK}\n" * images + text
    elif marks != images:
        raise PromptError(
            f"the conversation has {counted(marks, f'{MARK} mark')} and {counted(images, 'image')} "
            f"came with it; give one mark for each image, or none at all"
        )
    before, after = mark.split(MARK)
    found: list[Segment] = [""]

    def add(text: str) -> None:
        found[-1] = f"{found[-1]}{text}"

    for role, text in turns:
        add(f"<|im_start|>{role}\n")
        # What an assistant said is text, whatever it holds.
        first, *rest = text.split(MARK) if role == "user" else [text]
        add(first)
        for part in rest:
            add(before)
            found += [None, after + part]
        add("<|im_end|>\n")
    add("<|im_start|>assistant\n")
    return found


def tokenize(tokenizer: Any, parts: Sequence[Segment]) -> list[int]:
    """Token ids with `IMAGE_TOKEN_INDEX` for each image; raises CheckpointError if the tokenizer fails."""
    ids: list[int] = []
    for part in parts:
        if part is None:
            ids.append(IMAGE_TOKEN_INDEX)
        elif part:
            problem = "the tokenizer cannot tokenize the prompt"
            ids += guarded(problem, lambda text: tokenizer(text, add_special_tokens=False).input_ids, part)
    return ids


def _turns(conversation: Conversation) -> list[tuple[str, str]]:
    """(role, text) of each turn, system first."""
    messages = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else list(conversation)
    turns = [(str(message.get("role")), _text(message.get("content"))) for message in messages]
    if not turns or turns[0][0] != "system":
        turns.insert(0, ("system", SYSTEM))
    for index, (role, text) in enumerate(turns[1:]):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise PromptError(f"turn {index + 1} of the conversation must be the {expected}'s; found {role!r}")
        if re.search(f"[{SURROGATES}]", text):
            raise PromptError(f"turn {index + 1} of the conversation has bytes that are no UTF-8; give text in UTF-8")
        if role == "user" and not text.replace(MARK, "").strip():
            raise PromptError(f"turn {index + 1} of the conversation asks nothing; give a question")
    if len(turns) < 2 or turns[-1][0] != "user":
        raise PromptError("the conversation must end with a question: its last turn is the user's")
    if MARK in turns[0][1]:
        raise PromptError(f"{MARK} stands in the system message; marks belong into the user's turns")
    return turns


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(map(_part, content))
    raise PromptError(f"a message's content must be text or a list of parts; found {type(content).__name__}")


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return f"{MARK}\n"
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise PromptError(
        f'a part of a message must be {{"type": "image"}} or {{"type": "text", "text": …}}; found {part!r}'
    )
