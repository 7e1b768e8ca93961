"""Which tests run: long ones only if `-m` names them, those for a GPU only where there is one, with the reason."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

collected = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["pytest_collection_modifyitems"]


class Item:
    def __init__(self, *marks: str, file: str = "test_a.py") -> None:
        self.marks, self.added, self.nodeid = marks, list[Any](), f"{file}::test"

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None

    def add_marker(self, mark: Any) -> None:
        self.added.append(mark)


def hook_of(deselected: Any) -> SimpleNamespace:
    return SimpleNamespace(pytest_deselected=deselected)


def kept(expression: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Marks of the items that stay and of those that are left out; `-m`'s own choice is pytest's."""
    items, gone = [Item(), Item("gpu"), Item("long"), Item("gpu", "long")], list[Any]()

    def deselected(items: list[Any]) -> None:
        gone.extend(items)

    collected(SimpleNamespace(option=SimpleNamespace(markexpr=expression), hook=hook_of(deselected)), items)
    return [item.marks for item in items], [item.marks for item in gone]


@pytest.mark.parametrize("expression", ["", "gpu", "not gpu", "slow or gpu"])
def test_long_tests_are_left_out(expression: str) -> None:
    assert kept(expression) == ([(), ("gpu",)], [("long",), ("gpu", "long")])


@pytest.mark.parametrize("expression", ["long", "not long", "gpu and long", "gpu and (long or slow)"])
def test_long_tests_that_are_named_are_pytests_to_choose(expression: str) -> None:
    assert kept(expression) == ([(), ("gpu",), ("long",), ("gpu", "long")], [])


def test_files_with_slow_tests_come_first() -> None:
    files = {"test_a.py": (), "test_b.py": ("slow",), "test_c.py": ()}
    items = [Item(*marks, file=file) for file in ("test_c.py", "test_b.py", "test_a.py") for marks in ((), files[file])]
    collected(SimpleNamespace(option=SimpleNamespace(markexpr=""), hook=hook_of(lambda items: None)), items)
    assert [item.nodeid[:9] for item in items] == [f"test_{name}.py" for name in "bbccaa"]


@pytest.mark.parametrize(
    ("cuda", "there", "reason"),
    [("13.0", True, None), ("13.0", False, "PyTorch finds none"), (None, False, "is built for another device")],
)
def test_gpu_tests_are_skipped_with_the_reason(
    cuda: str | None, there: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    plain, marked = Item(), Item("gpu")
    config = SimpleNamespace(option=SimpleNamespace(markexpr="gpu"), hook=hook_of(lambda items: None))
    collected(config, [plain, marked])
    assert not plain.added
    reasons = [mark.kwargs["reason"] for mark in marked.added]
    assert [r.startswith("needs an NVIDIA GPU: ") and reason in r for r in reasons] == (
        [] if reason is None else [True]
    )
