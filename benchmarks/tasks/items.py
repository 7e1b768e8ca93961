"""The user's data: JSON lines, checked whole before anything expensive and read one at a time.

    {"image": "photo.jpg", "question": "What is this?", "answers": ["a cat", "cat"]}     ask, vqa
    {"image": "photo.jpg", "captions": ["A cat on a bench."]}                            caption
    {"image": "photo.jpg", "label": "cat"}                                               retrieval

`image` may be a list of several; paths are relative to the file's folder. Answers, captions and labels are needed for
metrics alone, not for agreement. `id` and other entries are the user's own.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...core.errors import ConfigError
from ...core.input_file import open_regular, parse_json
from ...core.plain_text import SURROGATES
from ..json_lines import limited_lines

Task = Literal["vqa", "caption", "retrieval"]
TASKS: tuple[Task, ...] = get_args(Task)
Kind = Literal[Task, "ask"]
"""What the data is for, which says what a line must hold."""

MOST_IMAGES = 1000
"""Of one line."""
LONGEST_PATH = 4096
LONGEST_QUESTION = 1_000_000
"""Characters: more than any model's context holds."""
MOST_REFERENCES = 1000
LONGEST_REFERENCE = 10_000
"""Characters of an answer, caption or label: comparing two texts takes time proportional to the product of lengths."""

_REFERENCES: dict[Kind, tuple[str, str]] = {"vqa": ("answers", "answer"), "caption": ("captions", "caption")}
_EXAMPLES: dict[Kind, str] = {
    "ask": '{"image": "photo.jpg", "question": "…"}',
    "vqa": '{"image": "photo.jpg", "question": "…", "answers": ["…"]}',
    "caption": '{"image": "photo.jpg", "captions": ["…"]}',
    "retrieval": '{"image": "photo.jpg", "label": "…"}',
}


@dataclass(frozen=True)
class Item:
    """One line of the data.

    Attributes:
        line: its number in the file, from 1.
        images: paths as the file gives them.
        folder: that they are relative to.
        question: of `ask` and `vqa`, else empty.
        references: what people answered or wrote.
        label: for retrieval.
        id: the user's own name of it.
    """

    line: int
    images: tuple[str, ...]
    folder: Path
    question: str = ""
    references: tuple[str, ...] = ()
    label: str | None = None
    id: str | int | None = None

    @property
    def paths(self) -> list[Path]:
        """Where the images lie."""
        return [self.folder / image for image in self.images]

    @property
    def key(self) -> str:
        """Tells whether a result still belongs to this line."""
        return hashlib.sha256(json.dumps([self.images, self.question]).encode()).hexdigest()[:12]


def count_items(file: Path, kind: Kind) -> int:
    """Lines of a data file, all of them checked; raises ConfigError as `read_items`, and for a file without any."""
    count = sum(1 for _ in read_items(file, kind))
    if not count:
        raise ConfigError(f"{file} holds no line; give some like {_EXAMPLES[kind]}")
    return count


def read_items(file: Path, kind: Kind) -> Iterator[Item]:
    """The lines of a data file, one in memory at a time; blank ones are skipped.

    Raises ConfigError for a file that cannot be read, and with the number of the first line that is not as it must be.
    """
    try:
        with io.TextIOWrapper(open_regular(file), encoding="utf-8-sig") as lines:
            for number, text in enumerate(limited_lines(lines, file), 1):
                if text.strip():
                    yield _item(file, number, text, kind)
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text; give JSON lines like {_EXAMPLES[kind]}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file} ({error.strerror or error}); check the path") from None


def _item(file: Path, number: int, text: str, kind: Kind) -> Item:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"{file}, line {number}: {what}; a line is like {_EXAMPLES[kind]}")

    try:
        data = parse_json(text)
    except ValueError as error:
        raise wrong(f"not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise wrong("not a JSON object")
    images = data.get("image", data.get("images"))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(map(_is_path, images)):
        raise wrong('"image" must be a path or a list of paths')
    if len(images) > MOST_IMAGES:
        raise wrong(f"it has {len(images)} images, more than {MOST_IMAGES}")
    if kind == "retrieval" and len(images) > 1:
        raise wrong("retrieval takes one image a line")
    question = data.get("question", "") if kind in ("ask", "vqa") else ""
    if kind in ("ask", "vqa") and not (isinstance(question, str) and question.strip()):
        raise wrong('"question" must be a text')
    if not _is_text(question, LONGEST_QUESTION):
        raise wrong(f'"question" must be a text of at most {LONGEST_QUESTION} characters, without lone surrogates')
    try:
        references = _references(data, *_REFERENCES[kind]) if kind in _REFERENCES else ()
        label = _text(data["label"]) if kind == "retrieval" and data.get("label") is not None else None
    except TypeError as error:
        raise wrong(str(error)) from None
    own = data.get("id", data.get("question_id"))
    named = own if isinstance(own, str | int) and not isinstance(own, bool) else None
    return Item(number, tuple(images), file.absolute().parent, question, references, label, named)


def _references(data: Mapping[str, Any], several: str, one: str) -> tuple[str, ...]:
    """Under either name: a text, a list of texts, or VQA v2's list of objects with an "answer"."""
    found = data.get(several, data.get(one))
    if found is None:
        return ()
    try:
        each = found if isinstance(found, list) else [found]
        if len(each) > MOST_REFERENCES:
            raise TypeError
        texts = tuple(_text(entry[one] if isinstance(entry, dict) else entry) for entry in each)
    except (TypeError, KeyError):
        what = f"a list of at most {MOST_REFERENCES} texts of {LONGEST_REFERENCE} characters"
        raise TypeError(f'"{several}" must be {what}, without lone surrogates') from None
    return texts


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError('"label" must be a text or a number')
    text = str(value)
    if not _is_text(text, LONGEST_REFERENCE):
        raise TypeError(f'"label" must be a text of at most {LONGEST_REFERENCE} characters, without lone surrogates')
    return text


def _is_path(value: Any) -> bool:
    """Whether it can be a path, whose undecodable bytes are lone surrogates."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_PATH and "\0" not in value


def _is_text(text: str, longest: int) -> bool:
    return len(text) <= longest and not re.search(f"[{SURROGATES}]", text)
