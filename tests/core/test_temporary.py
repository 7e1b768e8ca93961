"""Temporary folders, and what is said where there is no place for them."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from fvexport.core.cleanup import undo_all
from fvexport.core.errors import UnavailableError
from fvexport.core.temporary import temporary_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_removed_at_the_end_or_when_a_signal_ends_the_process(place: Path) -> None:
    with temporary_folder() as folder:
        (folder / "file").write_text("")
        assert folder.parent == place
        undo_all()
        assert not folder.exists()
    with temporary_folder() as folder:
        (folder / "file").write_text("")
    assert not list(place.iterdir())


def test_a_full_disk_is_not_blamed_on_something_else(place: Path) -> None:
    reason = r"cannot write temporary files in \S+: the disk is full; free some space or set TMPDIR to another folder"
    with pytest.raises(UnavailableError, match=reason), temporary_folder():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), temporary_folder():
        Path(place / "photo.jpg").read_bytes()


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "missing"))
    with pytest.raises(UnavailableError, match=r"cannot make a temporary folder: .*; set TMPDIR"), temporary_folder():
        pass
