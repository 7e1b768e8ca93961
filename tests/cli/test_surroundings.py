"""Odd surroundings of a command: closed standard streams, a deleted current folder, no /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell starts these")


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script of sh, in which `fvexport` is the command."""
    start = f'fvexport() {{ "{sys.executable}" -m fvexport "$@"; }}\n'
    return subprocess.run(["sh", "-c", start + script], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str, artifact: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    done = shell(f"fvexport encode a.png --artifact '{artifact}' --out f.safetensors {closed}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "f.safetensors").is_file()


def test_errors_keep_their_exit_code_without_a_stream(tmp_path: Path) -> None:
    assert shell("fvexport inspect nowhere 2>&- >&-", tmp_path).returncode == 1


def test_a_deleted_current_folder_is_told(tmp_path: Path) -> None:
    done = shell("mkdir gone; cd gone; rmdir ../gone; fvexport doctor", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the current folder cannot be used (") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_missing_proc_is_told(tmp_path: Path) -> None:
    hidden = 'umount -l /proc 2>/dev/null || exit 99; exec "$0" -m fvexport doctor'
    done = subprocess.run(
        ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c", hidden, sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if "error: /proc" not in done.stderr and (done.returncode == 99 or "unshare" in done.stderr):
        pytest.skip("this user may not unmount /proc in a namespace of its own")
    assert done.returncode == 1
    assert done.stderr == (
        "error: /proc is not mounted here, and PyTorch and onnxruntime need it; `mount -t proc proc /proc`\n"
    )
