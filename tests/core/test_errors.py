from __future__ import annotations

from fvexport.core.errors import LONGEST, FvexportError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(FvexportError("no\x1b image\r\n at\tx")) == "no image at x"


def test_a_long_message_keeps_its_problem_and_its_fix() -> None:
    message = str(FvexportError(f"bad value ({'9' * 100_000}); export it again"))
    assert len(message) < LONGEST + 10
    assert message.startswith("bad value (999")
    assert message.endswith("9); export it again")
    sound = f"no file {'x' * (LONGEST - 100)}; check the path"
    assert str(FvexportError(sound)) == sound
