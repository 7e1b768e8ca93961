"""Files of JSON as frozen structs: a wrong value is named by its path, and what a newer version wrote is kept.

A struct's fields are the file's entries, in the file's order. An entry that an earlier version did not write has a
default; where its absence itself tells something, the default is `msgspec.UNSET`, which is not written.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
D = TypeVar("D", bound="Document")

Number = int | float
"""A number of JSON, kept as it was written: 2 is not written back as 2.0."""


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
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        problem = re.sub("^(Expected|Object)", lambda word: word[0].lower(), problem.replace("`", ""))
        problem = problem.replace("Invalid enum value", "unknown value").replace(", got ", ", found ")
        raise RecordError(f"{path.strip('`') or '$'}: {problem}") from None


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
