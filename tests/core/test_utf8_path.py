"""Libraries open files under names that are no UTF-8, on systems that have such names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from fvexport.core import utf8_path as module
from fvexport.core.errors import UnavailableError
from fvexport.core.utf8_path import utf8_path

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    try:
        (tmp_path / NAME).mkdir()
    except OSError:
        pytest.skip("file names here are UTF-8")
    return tmp_path / NAME


def test_other_paths_are_as_they_are(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "模型" / "x", Path("relative")):
        with utf8_path(path) as text:
            assert text == str(path)


@pytest.mark.parametrize("place", [lambda f: f / "plain", lambda f: f / NAME, lambda f: f.parent / f"{NAME}.x"])
def test_a_library_reads(folder: Path, place: Callable[[Path], Path]) -> None:
    file, tensors = place(folder), {"x": torch.arange(5)}
    file.write_bytes(save(tensors))
    with utf8_path(file) as text:
        text.encode()
        assert torch.equal(load_file(text)["x"], tensors["x"])


def test_a_library_writes(folder: Path) -> None:
    tensors = {"x": torch.arange(5)}
    with utf8_path(folder / "file") as text:
        save_file(tensors, text)
    assert (folder / "file").read_bytes() == save(tensors)


def test_a_folder(folder: Path) -> None:
    (folder / "file").write_text("content")
    with utf8_path(folder) as text:
        assert (Path(text) / "file").read_text() == "content"
    assert not os.path.exists(text) or not os.path.samefile(text, folder)  # noqa: PTH110, PTH121


def test_what_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError), utf8_path(folder / "absent" / "file"):
        pass
    monkeypatch.setattr(module, "DESCRIPTORS", Path("/nowhere"))
    with pytest.raises(UnavailableError, match=r"is not UTF-8, .*; rename it"), utf8_path(folder):
        pass
