from __future__ import annotations

import pytest

from fvexport.core.errors import LONGEST, FvexportError, first_line, lacks_memory, one_line, root_cause


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(FvexportError("no\x1b[0m image\r\n at\tx")) == "no image at x"


def test_a_long_message_keeps_its_problem_and_its_fix() -> None:
    message = str(FvexportError(f"bad value ({'9' * 100_000}); export it again"))
    assert len(message) < LONGEST + 10
    assert message.startswith("bad value (999")
    assert message.endswith("9); export it again")
    sound = f"no file {'x' * (LONGEST - 100)}; check the path"
    assert str(FvexportError(sound)) == sound


def test_colours_of_foreign_errors_are_removed_whole() -> None:
    error = RuntimeError("Failed. \x1b[96mThis is step 1/3\x1b[0m of \x1b]8;;http://x\x07it\x1b]8;;\x07\nmore")
    assert first_line(error) == "Failed. This is step 1/3 of it"
    assert one_line(f"{error}") == "Failed. This is step 1/3 of it more"


def test_root_cause() -> None:
    try:
        try:
            try:
                raise FileNotFoundError("no temporary directory")
            except FileNotFoundError:
                raise ValueError("while handling it")  # noqa: B904 - as libraries do
        except ValueError as error:
            raise RuntimeError("step 1/3") from error
    except RuntimeError as error:
        found = error
    assert str(root_cause(found)) == "no temporary directory"
    alone = RuntimeError("alone")
    assert root_cause(alone) is alone
    other = ValueError("other")
    alone.__cause__, other.__cause__ = other, alone
    assert root_cause(alone) in (alone, other)  # a circle ends


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (ImportError("libopenvino.so: failed to map segment from shared object"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shape mismatch"), False),
        (ImportError("no module named x"), False),
    ],
)
def test_a_lack_of_memory_in_the_words_of_libraries(error: BaseException, lacks: bool) -> None:
    assert lacks_memory(error) == lacks
