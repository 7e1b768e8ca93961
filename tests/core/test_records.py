"""Records: what is read, kept and refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.core.records import Document, Name, Number, Record, RecordError, Text, parse, plain


@dataclass(frozen=True)
class Size:
    height: int
    width: int = 64

    def __post_init__(self) -> None:
        if self.height < 1:
            raise ValueError(f"height must be positive; found {self.height}")


class Part(Record, frozen=True, kw_only=True):
    name: str
    size: Size
    share: Number | None = None


class File(Document, frozen=True, kw_only=True):
    kind: Literal["a", "b"]
    parts: tuple[Part, ...] = ()
    named: dict[str, Part] = msgspec.field(default_factory=dict)
    note: str | msgspec.UnsetType = msgspec.UNSET


PART = {"name": "x", "size": {"height": 1, "width": 2}, "share": 2}
FULL = {"kind": "a", "parts": [PART, PART], "named": {"one": PART}, "note": "text"}


def test_round_trip() -> None:
    found = File.from_dict(FULL)
    assert found.to_dict() == FULL and list(found.to_dict()) == list(FULL)
    assert json.dumps(found.to_dict()["parts"][0]) == json.dumps(PART)  # 2 stays 2
    assert found.parts[0].size == Size(1, 2) and found.unknown == {}
    assert File.from_dict(found.to_dict()) == copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found


def test_what_is_missing() -> None:
    assert File.from_dict({"kind": "b"}).to_dict() == {"kind": "b", "parts": [], "named": {}}
    assert File.from_dict({"kind": "b"}).note is msgspec.UNSET


def test_unknown_entries_are_kept_at_any_depth() -> None:
    newer = json.loads(json.dumps(FULL))
    newer["new"] = {"deep": [1, {"a": None}]}
    newer["parts"][1]["new"] = 3
    newer["parts"][1]["size"]["depth"] = 4
    newer["named"]["one"]["new"] = None
    found = File.from_dict(newer)
    assert found.to_dict() == newer
    assert found.unknown["parts"] == {1: {"new": 3, "size": {"depth": 4}}}
    assert found.replace(kind="b").to_dict() == newer | {"kind": "b"}
    assert found.replace(parts=found.parts).to_dict() == newer | {"parts": FULL["parts"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "$: expected object, found array"),
        ({}, "$: object missing required field kind"),
        ({"kind": "c"}, "$.kind: unknown value 'c'"),
        ({"kind": "a", "parts": [PART, {**PART, "name": 1}]}, "$.parts[1].name: expected str, found int"),
        ({"kind": "a", "parts": [{**PART, "share": "x"}]}, "$.parts[0].share: expected int | float | null, found str"),
        ({"kind": "a", "named": {"one": 1}}, "$.named[...]: expected object, found int"),
        ({"kind": "a", "parts": [{**PART, "size": {"height": 0}}]},
         "$.parts[0].size: height must be positive; found 0"),
        ({"kind": "a", "note": None}, "$.note: expected str, found null"),
    ],
)  # fmt: skip
def test_wrong_values_name_their_path(data: Any, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        File.from_dict(data)
    assert str(caught.value) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=3))
def test_any_unknown_entries(above: dict[str, Any], below: dict[str, Any]) -> None:
    data = {**{name: value for name, value in above.items() if name not in ("", *FULL)}, **FULL}
    data["parts"] = [{**{name: value for name, value in below.items() if name not in PART}, **PART}]
    assert File.from_dict(data).to_dict() == data


@given(JSON)
def test_any_data_is_read_or_refused_in_one_line(data: Any) -> None:
    try:
        found = File.from_dict(data)
    except RecordError as error:
        assert str(error).startswith("$") and "\n" not in str(error)
    else:
        assert File.from_dict(found.to_dict()) == found


def test_dataclasses_alone() -> None:
    assert parse({"height": 3, "depth": 1}, Size) == Size(3) and plain(Size(3)) == {"height": 3, "width": 64}


class Shown(Record, frozen=True, kw_only=True):
    text: Text = ""
    name: Name = ""
    number: float = 0.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text": "a\nb"}, r"\$\.text: expected one line of text .*, found \"a\\nb\""),
        ({"text": "\x1b[31m"}, r"\$\.text: expected one line"),
        ({"name": "\ud800"}, r"\$\.name: expected one line"),
        ({"name": "\u202e"}, r"\$\.name: expected one line"),
        ({"name": "x" * 201}, r"\$\.name: expected str of length <= 200, found \"x+"),
        ({"text": "\ufffe"}, r"\$\.text: expected one line"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"number": 10**400}, r"\$\.number: Number out of range"),
    ],
)
def test_what_no_record_holds(data: dict[str, object], said: str) -> None:
    with pytest.raises(RecordError, match=said) as caught:
        parse(data, Shown)
    assert len(str(caught.value)) < 500


def test_deep_nesting_is_no_record() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecordError, match="nested more than 64 deep"):
        parse({"newer": deep}, Shown)
    while deep:  # Python could not free it at once
        deep = deep.pop()  # type: ignore[assignment]
