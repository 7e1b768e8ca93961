"""Many items with one model: what is in memory, and what is encoded how often."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvexport.benchmarks.tasks.answering import Asking, answer_items
from fvexport.benchmarks.tasks.items import Item
from fvexport.benchmarks.tasks.rows import Rows, read_rows
from fvexport.core.errors import ConfigError, ImageError, PromptError


class Encoded:
    """Stands for the visual tokens of an image, which are what takes memory."""


class Vlm:
    """Answers with the question's length, and counts."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Encoded] = weakref.WeakSet()
        self.most_alive = 0
        self.encoded: list[str] = []

    def prompt_ids(self, question: str, images: int) -> list[int]:
        if "<image>" in question:
            raise PromptError("a mark too many")
        return [len(question)] * images

    def encode_images(self, paths: list[Path], **_: Any) -> Encoded:
        self.encoded.append(paths[0].name)
        if paths[0].name == "bad.png":
            raise ImageError("bad.png is no image")
        if paths[0].name == "size.png":
            raise ConfigError("a resolution that no image can have")
        result = Encoded()
        self.alive.add(result)
        gc.collect()
        self.most_alive = max(self.most_alive, len(self.alive))
        return result

    def answer(self, encoded: Encoded, ids: list[int], **_: Any) -> Any:
        timings = SimpleNamespace(to_dict=dict)
        return SimpleNamespace(
            text=str(ids[0]), token_ids=(ids[0],), stop="end", prompt_tokens=1, visual_tokens=1, timings=timings
        )


def run(tmp_path: Path, *items: tuple[str, str]) -> tuple[Vlm, list[dict[str, Any]]]:
    vlm, out = Vlm(), tmp_path / "out.jsonl"
    asking = Asking("Q: {question}", sampling=None, resolution=(64, 64))  # type: ignore[arg-type]
    listed = [Item(line, (image,), tmp_path, question) for line, (image, question) in enumerate(items, 1)]
    with Rows(out, {"eager": "run"}) as rows:
        answer_items(vlm, listed, rows, asking=asking, encoder="eager", total=len(listed))  # type: ignore[arg-type]
    return vlm, list(read_rows(out, "eager"))


def test_one_image_is_in_memory_at_a_time(tmp_path: Path) -> None:
    vlm, rows = run(tmp_path, *((f"{number}.png", "?") for number in range(20)))
    assert len(rows) == 20 and len(vlm.encoded) == 20
    assert vlm.most_alive == 1


def test_questions_about_one_image_encode_it_once(tmp_path: Path) -> None:
    asked = [("a.png", "?"), ("a.png", "{question}"), ("b.png", "?"), ("a.png", "?")]
    vlm, rows = run(tmp_path, *asked)
    assert vlm.encoded == ["a.png", "b.png", "a.png"]
    assert [row["answer"] for row in rows] == [str(len(f"Q: {question}")) for _, question in asked]


def test_a_bad_item_has_its_own_row_and_the_next_one_is_encoded_anew(tmp_path: Path) -> None:
    vlm, rows = run(tmp_path, ("a.png", "?"), ("bad.png", "?"), ("a.png", "<image>"), ("a.png", "?"))
    assert [row.get("error") for row in rows] == [None, "bad.png is no image", "a mark too many", None]
    assert vlm.encoded == ["a.png", "bad.png", "a.png"]


def test_what_all_items_would_fail_on_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resolution"):
        run(tmp_path, ("a.png", "?"), ("size.png", "?"))
    assert len(list(read_rows(tmp_path / "out.jsonl", "eager"))) == 1
