"""Two writers of one result: the second is refused while the first writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fvexport.core.errors import ArtifactError
from fvexport.core.locks import locked

HOLD = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print('held', flush=True)
sys.stdin.read()
"""


def test_another_process_is_refused_until_it_dies(tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactError, match="another run"), locked(file, "another run is writing"):
            pytest.fail("two hold the lock")
        holder.kill()
        holder.wait()
        with locked(file, "another run is writing"):
            pass


def test_a_block_of_this_process_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    with locked(file, "busy"), pytest.raises(ArtifactError, match="busy"), locked(file, "busy"):
        pytest.fail("two hold the lock")
    with locked(file, "busy"):
        pass


@pytest.mark.parametrize("keep", [True, False])
def test_a_lock_file_is_kept_or_removed(tmp_path: Path, keep: bool) -> None:
    file = tmp_path / "a.lock"
    with pytest.raises(ValueError, match="ours"), locked(file, "busy", keep=keep):
        raise ValueError("ours")
    assert file.exists() == keep
