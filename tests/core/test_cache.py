"""Where the user's cache is."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from fvexport.core.cache import cache_folder


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have places of their own")
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder("calibration") == tmp_path / "x" / "fvexport" / "calibration"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("calibration") == tmp_path / ".cache" / "fvexport" / "calibration"


@pytest.mark.parametrize("homeless", [RuntimeError("no home"), Path("~/.cache/fvexport")])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, homeless: Path | RuntimeError) -> None:
    """As in a container whose user has no entry; releases of platformdirs differ in what they do then."""

    def user_cache_path(*args: object, **options: object) -> Path:
        if isinstance(homeless, RuntimeError):
            raise homeless
        return homeless

    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    assert cache_folder("kernels") == Path(tempfile.gettempdir()) / "fvexport" / "kernels"
