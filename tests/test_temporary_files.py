"""Without a folder for temporary files, commands that need one say so before their work, and the others work."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from fvexport.benchmarks.sweep.run import run_sweep
from fvexport.benchmarks.sweep.sweep_options import SweepOptions
from fvexport.core.errors import UnavailableError
from fvexport.core.temporary import check_temporary_folder
from fvexport.encoder.fastvlm import load_fastvlm
from fvexport.export import export_onnx

WORDS = r"no folder takes temporary files .*; set TMPDIR"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made in any of the folders that Python tries."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere", "/dev/null"])


def test_check(nowhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=WORDS):
        check_temporary_folder()
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path)])
    check_temporary_folder()


def test_it_comes_before_the_work(nowhere: None, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=WORDS):
        export_onnx("no/such-checkpoint", tmp_path / "artifact")
    with pytest.raises(UnavailableError, match=WORDS):
        load_fastvlm("no/such-checkpoint")
    with pytest.raises(UnavailableError, match=WORDS):
        run_sweep(SweepOptions(), tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []
