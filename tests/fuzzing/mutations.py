"""Hypothesis strategies that damage a sound file the way an attacker, a bad disk or another program would.

Each takes a sound document and draws changed ones: JSON with other types, sizes and texts at any place, JSON lines,
safetensors files with another header, ONNX models with any field changed, and bytes flipped, cut or repeated.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

TEXTS = (
    "", " ", "\n", "\0", "a\nb: c {}", "\x1b]0;title\x07", "\x1b[31m", "\u202e\u2066", "\ud800", "\ufffe", "é" * 200,
    "x" * 300, "x" * 100_000, "../../etc/passwd", "/dev/zero", "/", ".", "..", "C:\\nul", "~nobody/x", "https://example.com/x",
    '=HYPERLINK("http://example.com")', "@SUM(1)", "+1", "-1", "<script>alert(1)</script>", "](javascript:x)", "|a|b|",
    "$\\frac$", "${x}", "%s%n", "{0}", "NaN", "1e999", "0x10", " 8", "9" * 5000, "-" * 1000, "()" * 500, "[" * 2000,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 64, 255, 256, 1000, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63,
    2**64, -(2**31), -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e-30, 1e30, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

Path = tuple[Any, ...]

hostile_text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))
hostile_number = st.one_of(st.sampled_from(NUMBERS), st.integers(-(2**70), 2**70), st.floats())
hostile_value: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    hostile_number,
    hostile_text,
    st.sampled_from([[], {}, [[]], [None], {"": None}, [[[[[[]]]]]], [0] * 1000, {"x" * 300: 1}]),
    st.lists(st.one_of(hostile_number, hostile_text), max_size=3),
).map(copy.deepcopy)  # the next change may be inside it
"""What a place in a file of JSON may hold instead of a sound value."""


@st.composite
def json_documents(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one to three of its places changed: replaced, removed, renamed, repeated, or exchanged."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            return draw(hostile_value)
        place = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "wrap", "add", "exchange"]))
        if change == "replace":
            _put(changed, place, draw(hostile_value))
        elif change == "wrap":
            _put(changed, place, [_get(changed, place)] * draw(st.sampled_from([1, 2, 50])))
        elif change == "exchange":
            _put(changed, place, copy.deepcopy(_get(changed, draw(st.sampled_from(places)))))
        else:
            holder = _get(changed, place[:-1])
            if change == "remove":
                del holder[place[-1]]
            elif isinstance(holder, dict):
                name = draw(st.one_of(hostile_text, st.sampled_from(sorted(map(str, holder)))))
                holder[name] = holder.pop(place[-1]) if change == "rename" else draw(hostile_value)
            else:
                holder.append(draw(hostile_value) if change == "add" else copy.deepcopy(holder[place[-1]]))
    return changed


@st.composite
def json_files(draw: st.DrawFn, document: Any) -> bytes:
    """A file of JSON: `document` with changed places, in most cases; else its text damaged or written another way."""
    how = draw(st.sampled_from(["document"] * 6 + ["bytes", "numeral", "deep", "utf-16", "mark", "twice"]))
    if how in ("document", "utf-16"):
        text = json.dumps(draw(json_documents(document)))
        return text.encode("utf-16" if how == "utf-16" else "utf-8", "surrogatepass")
    text = json.dumps(document)
    if how == "bytes":
        return draw(byte_files(text.encode()))
    if how == "mark":
        return b"\xef\xbb\xbf" + text.encode()
    if how == "deep":
        return draw(st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900]))
    places = list(_places(document))
    if not places:
        return text.encode()
    place = draw(st.sampled_from(places))
    if how == "numeral":  # spelled in a way that Python's writer would not choose
        changed = copy.deepcopy(document)
        _put(changed, place, "@@@")
        spelled = draw(
            st.sampled_from(["9" * 4301, "-" + "9" * 5000, "1e999", "-1E+400", "NaN", "Infinity", "0.1e-9999"])
        )
        return json.dumps(changed).replace('"@@@"', spelled).encode()
    holder = _get(document, place[:-1])
    if not isinstance(holder, dict):
        return text.encode()
    entry = json.dumps(place[-1]) + ": "
    return text.replace(entry, entry + json.dumps(draw(hostile_value)) + ", " + entry, 1).encode(
        "utf-8", "surrogatepass"
    )


@st.composite
def json_lines_files(draw: st.DrawFn, rows: list[Any]) -> bytes:
    """A file of JSON lines with one changed row, in most cases; else with rows repeated, left out, or bytes damaged."""
    lines = [json.dumps(row).encode() for row in rows]
    how = draw(st.sampled_from(["row"] * 6 + ["bytes", "repeat", "remove", "join", "blank"]))
    number = draw(st.integers(0, len(rows) - 1))
    if how == "row":
        lines[number] = draw(json_files(rows[number])).replace(b"\n", b" ")
    elif how == "repeat":
        lines.insert(draw(st.integers(0, len(rows))), lines[number])
    elif how == "remove":
        del lines[number]
    elif how == "blank":
        lines.insert(number, draw(st.sampled_from([b"", b"  ", b"\0", b"null", b"[]", b"{}", b"0", b'""'])))
    content = (b" " if how == "join" else b"\n").join(lines) + draw(st.sampled_from([b"\n", b"\n", b"", b"\r\n"]))
    return draw(byte_files(content)) if how == "bytes" else content


@st.composite
def byte_files(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes flipped, overwritten, left out, inserted or repeated, or cut off at some place."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        count = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        how = draw(st.sampled_from(["flip", "write", "remove", "insert", "repeat", "cut"]))
        if how == "flip" and at < len(changed):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "write":
            changed[at : at + count] = draw(st.binary(min_size=count, max_size=count))
        elif how == "remove":
            del changed[at : at + count]
        elif how == "insert":
            changed[at:at] = draw(st.sampled_from([b"\0" * count, b"\xff" * count, b"\n", b'"', b"{", b"[" * count]))
        elif how == "repeat":
            changed[at:at] = changed[at : at + count] * draw(st.sampled_from([1, 2, 100]))
        elif how == "cut":
            del changed[at:]
    return bytes(changed)


@st.composite
def safetensors_files(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of safetensors with a changed header, in most cases; else with a wrong length, or bytes damaged."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = draw(st.sampled_from(["header"] * 6 + ["bytes", "length"]))
    if how == "bytes":
        return draw(byte_files(content))
    if how == "length":
        size = draw(st.sampled_from([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1]))
        return struct.pack("<Q", size) + content[8:]
    text = draw(json_files(header))
    return struct.pack("<Q", len(text)) + text + data


def protobuf_files(content: bytes, kind: Callable[[], Any]) -> st.SearchStrategy[bytes]:
    """Files of one protobuf message (`onnx.ModelProto`) with one to three fields changed at any depth."""
    return _protobuf_files(lambda: content, kind)  # hypothesis would print the content with every error


@st.composite
def _protobuf_files(draw: st.DrawFn, get_content: Callable[[], bytes], kind: Callable[[], Any]) -> bytes:
    content = get_content()
    if draw(st.integers(0, 9)) == 0:
        return draw(byte_files(content))
    message = kind()
    message.ParseFromString(content)
    for _ in range(draw(st.integers(1, 3))):
        # The outer messages first: else nearly every change is to one of many nodes.
        nested = list(_messages(message))
        few = nested[: max(1, len(nested) // 50)]
        chosen = draw(st.sampled_from(nested if draw(st.booleans()) else few))
        present = [field for field, _ in chosen.ListFields()]
        field = draw(st.sampled_from(present if present and draw(st.booleans()) else list(chosen.DESCRIPTOR.fields)))
        _change_field(draw, chosen, field)
    return bytes(message.SerializeToString())


def _change_field(draw: st.DrawFn, message: Any, field: Any) -> None:
    """Clears a field of a protobuf message, repeats or removes its items, or gives it a hostile value."""
    if draw(st.integers(0, 4)) == 0:
        message.ClearField(field.name)
        return
    value = getattr(message, field.name)
    if _repeated(field):
        if len(value) and draw(st.booleans()):
            at = draw(st.integers(0, len(value) - 1))
            if draw(st.booleans()):
                del value[at]
            elif field.message_type:
                value.add().CopyFrom(value[at])
            else:
                value.append(value[at])
        elif field.message_type:
            value.add()
        else:
            value.append(draw(_scalar(field)))
    elif field.message_type:
        value.SetInParent()
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: Any) -> st.SearchStrategy[Any]:
    """Values that a scalar field of a protobuf message can hold."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        texts = st.sampled_from([text for text in TEXTS if text.isascii()])
        if field.type == field.TYPE_BYTES:
            return st.one_of(texts.map(str.encode), st.binary(max_size=9), st.just(b"\xff\xfe"))
        return texts
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return st.sampled_from([0.0, -1.0, 1e30, float("nan"), float("inf")])
    if kind == field.CPPTYPE_BOOL:
        return st.booleans()
    if kind == field.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    bits = 31 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 63
    least = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -(2**bits)
    near = [n for n in (0, 1, -1, 2, 3, 17, 256, 2**31 - 1, 2**40, 2**62, 2**63 - 1, -(2**63)) if least <= n < 2**bits]
    return st.sampled_from(near)


def _messages(message: Any) -> list[Any]:
    """A protobuf message and those inside it, outer ones first."""
    found = [message]
    for outer in found:  # grows while it is walked
        for field, value in outer.ListFields():
            if field.message_type:
                found.extend(value if _repeated(field) else [value])
    return found


def _repeated(field: Any) -> bool:
    return bool(
        getattr(field, "is_repeated", False) or getattr(field, "label", None) == 3
    )  # before protobuf 6: `label`


def _places(document: Any, above: Path = ()) -> list[Path]:
    """The paths of all places below the top of a document of JSON."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    places = []
    for key, value in items:
        places += [(*above, key), *_places(value, (*above, key))]
    return places


def _get(document: Any, place: Path) -> Any:
    for key in place:
        document = document[key]
    return document


def _put(document: Any, place: Path, value: Any) -> None:
    _get(document, place[:-1])[place[-1]] = value
