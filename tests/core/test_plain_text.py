"""What is printed controls no terminal, and texts of any language stay as they are."""

from __future__ import annotations

import pytest

from fvexport.core.plain_text import plain_line, plain_text, without_escapes

HARMLESS = (
    "",
    "photo.jpg",
    "a  b\u00a0c",
    "Größe 1\u202f024",
    "日本語 العربية",
    "می\u200cخواهم",
    "👩\u200d🔬 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "\x1b"[1:],
)


@pytest.mark.parametrize("text", HARMLESS)
def test_text_of_any_language_stays(text: str) -> None:
    assert plain_line(text) == plain_text(text) == without_escapes(text) == text


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[31m", "\x1b[2J", "\x1b[?1049h", "\x9b31m", "\x1b]0;title\x07", "\x1b]0;title\x1b\\", "\x9d0;title\x9c",
        "\x1b]8;;http://example.com\x1b\\", "\x1b]52;c;aGk=\x07", "\x1bP1$r0m\x1b\\", "\x1bc", "\x1b(0", "\x1b7",
    ],
)  # fmt: skip
def test_a_whole_sequence_goes(sequence: str) -> None:
    assert plain_line(f"a{sequence}b") == plain_text(f"a{sequence}b") == "ab"


@pytest.mark.parametrize("text", ["\x1b]0;no end, and a long text", "\x1b", "\x1b[", "\x9d", "a\x1b\x1b[31"])
def test_no_rest_of_a_sequence_is_one(text: str) -> None:
    assert not any(c in plain_line(text) for c in "\x1b\x9b\x9d")


def test_controls_end_no_line_and_turn_no_text() -> None:
    every = "".join(
        map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
    )
    each = [plain_line(f"a{c}b") for c in every if c not in "\x1b\x9b"]
    assert set(each) == {"a b"}
    assert plain_text("first\n\tsecond\r\n") == "first\n\tsecond\n"
    assert set(plain_text("".join(c for c in every if c not in "\x1b\x9b"))) == {"\n", "\t"}
