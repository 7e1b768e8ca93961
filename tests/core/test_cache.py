"""Where the user's cache is, and whose files in it are used."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from fvexport.core import cache
from fvexport.core.cache import cache_folder, check_cache, is_trusted, keep_compilers_caches, make_cache
from fvexport.core.errors import ConfigError, FvexportWarning
from fvexport.core.home import expand_home


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
    name = f"fvexport-{os.getuid()}" if hasattr(os, "getuid") else "fvexport"
    assert cache_folder("kernels") == Path(tempfile.gettempdir()) / name / "kernels"


posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has other owners and modes")


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file of the cache, whose folders do not exist."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_told", set())
    before = os.umask(0o002)  # as where each user has a group
    yield cache_folder("calibration") / "a.safetensors"
    os.umask(before)


@posix
def test_a_cache_is_this_user_s_alone(file: Path) -> None:
    assert is_trusted(file) and not file.parent.exists()  # nothing is made to read
    make_cache(file)
    assert [folder.stat().st_mode & 0o777 for folder in (file.parent.parent, file.parent)] == [0o700, 0o700]
    file.write_text("")
    file.chmod(0o600)
    make_cache(file)
    assert is_trusted(file)


@posix
@pytest.mark.parametrize("level", ["file", "kind", "cache"])
@pytest.mark.parametrize("how", ["owner", "group", "others", "link"])
def test_what_others_own_or_can_write_to_is_ignored(file: Path, level: str, how: str) -> None:
    make_cache(file)
    file.write_text("")
    file.chmod(0o600)
    path = {"file": file, "kind": file.parent, "cache": file.parent.parent}[level]
    if how in ("owner", "link") and os.geteuid():
        pytest.skip("needs root to give files away")
    if how == "owner":
        os.chown(path, 54321, 54321)
    elif how == "link":  # planted by another user; what it leads to is ours
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
        os.chown(path, 54321, 54321, follow_symlinks=False)
    else:
        path.chmod(path.stat().st_mode | (0o020 if how == "group" else 0o002))
    with pytest.raises(PermissionError, match=r"another user|other users") as caught:
        make_cache(file)
    assert caught.value.filename == str(path)
    with pytest.warns(FvexportWarning, match="is ignored .*remove it, or set XDG_CACHE_HOME"):
        assert not is_trusted(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert not is_trusted(file)


@posix
def test_a_folder_that_the_caller_names_may_be_below_a_shared_one(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    check_cache(tmp_path / "shared" / "mine" / "a")
    make_cache(tmp_path / "shared" / "mine" / "a")
    (tmp_path / "shared" / "mine").chmod(0o777)
    with pytest.raises(PermissionError):
        check_cache(tmp_path / "shared" / "mine" / "a")


@posix
def test_compilers_keep_their_code_where_others_cannot_write(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(variable, "named")
    keep_compilers_caches()
    assert os.environ[variable] == "named"
    monkeypatch.delenv(variable)
    keep_compilers_caches()
    assert Path(os.environ[variable]) == cache_folder("inductor") and cache_folder("inductor").is_dir()
    monkeypatch.delenv(variable)
    cache_folder("inductor").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(FvexportWarning, match="ignored"):
        keep_compilers_caches()
    assert Path(os.environ[variable]).parent == tmp_path
    monkeypatch.delenv(variable)


@posix
def test_compilers_get_a_folder_that_they_can_use(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(variable, "")  # they would take the current folder
    keep_compilers_caches()
    assert Path(os.environ[variable]) == cache_folder("inductor")
    monkeypatch.setenv(variable, str(tmp_path / "a file"))
    (tmp_path / "a file").touch()
    with pytest.raises(ConfigError, match=f"{variable} is '.*a file', which is no folder"):
        keep_compilers_caches()
    monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "with blanks"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    keep_compilers_caches()  # the C++ compiler is called without quotes
    assert "blanks" not in os.environ[variable]
    monkeypatch.delenv(variable)


def test_paths_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expand_home("~/x") == tmp_path / "x"
    assert expand_home("a/~/x") == Path("a/~/x")
    with pytest.raises(ConfigError, match=r"cannot find ~nobody9/x \(there is no such user\); write out the path"):
        expand_home("~nobody9/x")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and an entry in the passwd file
    with pytest.raises(ConfigError, match=r"cannot find ~/x \(this user has no home folder\)"):
        expand_home("~/x")
