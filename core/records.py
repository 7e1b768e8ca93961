"""Files of JSON as frozen structs: a wrong value is named by its path, and what a newer version wrote is kept.

A struct's fields are the file's entries, in the file's order. An entry that an earlier version did not write has a
default; where its absence itself tells something, the default is `msgspec.UNSET`, which is not written.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

import msgspec

from .plain_text import CONTROLS, SURROGATES

T = TypeVar("T")
D = TypeVar("D", bound="Document")

Number = int | float
"""A number of JSON, kept as it was written: 2 is not written back as 2.0."""


_expected: dict[str, str] = {}
"""Pattern of a text -> what an error says was expected."""


def matching(pattern: str, expected: str, max_length: int | None = None) -> msgspec.Meta:
    """Limits a text to a pattern, which errors describe as `expected`."""
    _expected[pattern] = expected
    return msgspec.Meta(pattern=pattern, max_length=max_length)


_PLAIN = f"\\A[^{CONTROLS}{SURROGATES}]*\\Z"
_LINE = "one line of text without control characters or lone surrogates"

Text = Annotated[str, matching(_PLAIN, _LINE, 10_000)]
"""A text that can be shown: one line, no control characters, no half of a UTF-16 pair."""

Name = Annotated[str, matching(_PLAIN, _LINE, 200)]
"""The same for what is short."""

MOST_SAID = 200
"""Most characters of an error about one value."""

MAX_DEPTH = 64
"""Most lists and objects inside one another."""


class RecordError(ValueError):
    """A value that a record cannot have: `$.input.shape: expected array, found str`, in one line."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An object within a file."""


class Document(Record, frozen=True, kw_only=True):
    """A whole file.

    Attributes:
        unknown: entries that a newer version wrote, at any depth, nested as in the file (items of a list by index).
    """

    unknown: dict[Any, Any] = msgspec.field(default_factory=dict, name="")

    @classmethod
    def from_dict(cls: type[D], data: Any) -> D:
        """Reads what `to_dict` made, now or in another version; raises RecordError."""
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if name}  # no entry, but `unknown`, has an empty name
        known = parse(data, cls)
        return msgspec.structs.replace(known, unknown=unknown_entries(data, plain(known)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the inverse of `from_dict`."""
        content: dict[str, Any] = plain(self)
        del content[""]
        return with_unknown(content, self.unknown)

    def replace(self: D, **changes: Any) -> D:
        """A copy with other values; unknown entries within the old ones are left out."""
        unknown = {name: value for name, value in self.unknown.items() if name not in changes}
        return msgspec.structs.replace(self, **changes, unknown=unknown)


def plain(record: Any) -> Any:
    """Dictionaries and lists of a record, of dataclasses, or of both."""
    return _with_lists(msgspec.to_builtins(record))


def parse(data: Any, kind: type[T]) -> T:
    """Plain data as a record or dataclass, without what that does not know; raises RecordError."""
    _check_depth(data)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problem, path = re.fullmatch("(.*?)(?: - at `([^`]*)`)?", str(error), re.DOTALL).groups()  # type: ignore[union-attr]
        for pattern, expected in _expected.items():
            problem = problem.replace(f"`str` matching regex {pattern!r}", expected)
        problem = re.sub("^(Expected|Object)", lambda word: word[0].lower(), problem.replace("`", ""))
        problem = problem.replace("Invalid enum value", "unknown value").replace(", got ", ", found ")
        if problem.startswith("expected") and ", found " not in problem:
            problem += f", found {json.dumps(_at(data, path or '$'))[:60]}"
        raise RecordError(f"{path or '$'}: {problem[: 2 * MOST_SAID]}") from None
    except UnicodeEncodeError:
        raise RecordError("$: a name has a lone surrogate") from None


def _at(data: Any, path: str) -> Any:
    """The value at a path such as `$.files[2].bytes`; what holds it, where a key is no plain word."""
    for key, index in re.findall(r"\.([^.\[\]]+)|\[([^\]]*)\]", path):
        try:
            data = data[key or int(index)]
        except (LookupError, TypeError, ValueError):
            break
    return data


def _check_depth(data: Any) -> None:
    """Raises RecordError for nesting in which functions that call themselves could exceed Python's limit."""
    level, depth = [data], 0
    while level:
        level = [inner for outer in level for _, inner in _items(outer) if isinstance(inner, dict | list)]
        depth += 1
        if depth > MAX_DEPTH:
            raise RecordError(f"$: lists and objects are nested more than {MAX_DEPTH} deep")


def _with_lists(data: Any) -> Any:
    """`data` as JSON would give it back: with lists in the place of tuples."""
    if isinstance(data, dict):
        return {name: _with_lists(value) for name, value in data.items()}
    return [_with_lists(value) for value in data] if isinstance(data, list | tuple) else data


def unknown_entries(data: Any, known: Any) -> dict[Any, Any]:
    """The entries of plain data that are not in `known`, the plain form of the record that was read from it."""
    found = {}
    for key, value in _items(data):
        if isinstance(known, dict) and key not in known:
            found[key] = value
        elif rest := unknown_entries(value, known[key]):
            found[key] = rest
    return found


def with_unknown(content: Any, unknown: dict[Any, Any]) -> Any:
    """Puts what `unknown_entries` found back into `content`, and returns it."""
    for key, value in unknown.items():
        if isinstance(content, dict) and key not in content:
            content[key] = value
        else:
            with_unknown(content[key], value)
    return content


def _items(data: Any) -> Any:
    return data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
