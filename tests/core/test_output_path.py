"""Writing results: what is never replaced, whose scratch is removed, and who wins where two write one place."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fvexport.core import output_path
from fvexport.core.errors import ArtifactError, ConfigError
from fvexport.core.output_path import (
    check_file,
    os_errors,
    put_file,
    put_folder,
    remove_leftovers,
    scratch_beside,
    waiting_folder,
)

HOLD = """
import sys
from pathlib import Path
from fvexport.core.output_path import scratch_beside
with scratch_beside(Path(sys.argv[1])) as scratch:
    scratch.write_text("work")
    print("ready", flush=True)
    sys.stdin.read()
    print("there" if scratch.exists() else "gone", flush=True)
"""


def listing(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("may not make a device here")


def link_to_a_device(path: Path) -> None:
    path.symlink_to(os.devnull)


def link_to_an_open_stream(path: Path) -> None:
    path.symlink_to("/proc/self/fd/1")  # as /dev/stdout


def folder(path: Path) -> None:
    (path / "thesis").mkdir(parents=True)


SPECIAL = [fifo, unix_socket, device, link_to_a_device, link_to_an_open_stream, folder]


@pytest.mark.skipif(sys.platform != "linux", reason="special files of Linux")
@pytest.mark.parametrize("make", SPECIAL)
def test_special_files_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may be no longer than 107 bytes
    out = Path("out")
    make(out)
    before = out.lstat()
    for force in (False, True):
        with pytest.raises(ArtifactError, match=r"^out is a .*, not a regular file; choose another --out$"):
            check_file(out, force=force)
        with scratch_beside(out) as scratch:
            scratch.write_text("new")
            with pytest.raises(ArtifactError, match="not a regular file"):  # it came during the work
                put_file(scratch, out, force=force)
        with scratch_beside(out) as scratch:
            scratch.mkdir()
            with pytest.raises(ArtifactError, match="is not what this command writes"):
                put_folder(scratch, out, force=force, ours=lambda path: (path / "manifest.json").exists())
    assert os.path.samestat(out.lstat(), before)
    assert listing(tmp_path) == ["out"]


def test_files_and_links_are_replaced_with_force_alone(tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "target"
    target.write_text("target")
    for make in (lambda: out.write_text("old"), lambda: out.symlink_to(target), lambda: out.symlink_to("nowhere")):
        make()
        with pytest.raises(ArtifactError, match="exists; replace it with --force"):
            check_file(out, force=False)
        check_file(out, force=True)
        with scratch_beside(out) as scratch:
            scratch.write_text("new")
            put_file(scratch, out)
        assert (out.read_text(), out.is_symlink(), target.read_text()) == ("new", False, "target")
        out.unlink()


@pytest.fixture(params=["renameat2", "without"])
def renameat2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without Linux' renameat2, which some file systems lack."""
    if request.param == "without":
        monkeypatch.setattr(output_path, "_renameat2", lambda source, target, flag: False)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_without_force_the_first_of_several_runs_wins(tmp_path: Path, renameat2: None, kind: str) -> None:
    out, runs = tmp_path / "out", 6
    ready, won, refused = threading.Barrier(runs), list[int](), list[str]()

    def run(number: int) -> None:
        with scratch_beside(out) as scratch:
            if kind == "folder":
                scratch.mkdir()
            (scratch / "number" if kind == "folder" else scratch).write_text(str(number))
            ready.wait(timeout=20)
            try:
                if kind == "folder":
                    put_folder(scratch, out, force=False, ours=lambda _: True)
                else:
                    put_file(scratch, out, force=False)
                won.append(number)
            except ArtifactError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (out / "number" if kind == "folder" else out).read_text() == str(won[0])
    assert len(won) == 1 and len(refused) == runs - 1
    assert all("another run has written" in reason and "--force" in reason for reason in refused)
    assert listing(tmp_path) == ["out"]


def test_with_force_the_last_of_several_runs_wins(tmp_path: Path, renameat2: None) -> None:
    out, failed = tmp_path / "out", list[BaseException]()

    def run(number: int) -> None:
        try:
            for _ in range(10):
                with scratch_beside(out) as scratch:
                    scratch.mkdir()
                    (scratch / "number").write_text(str(number))
                    put_folder(scratch, out, force=True, ours=lambda path: (path / "number").exists())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (out / "number").read_text() in "0123"
    assert listing(tmp_path) == ["out"]


# --- scratch folders --------------------------------------------------------------------------------


def test_runs_that_start_together_keep_their_scratch(tmp_path: Path) -> None:
    """One may look at another's folder between the moments when that is made and locked."""
    lost, interval = list[BaseException](), sys.getswitchinterval()

    def run() -> None:
        for _ in range(200):
            try:
                with scratch_beside(tmp_path / "out") as scratch:
                    scratch.write_text("work")
                    scratch.read_text()
            except BaseException as error:
                lost.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not lost
    assert listing(tmp_path) == []


def holder(out: Path, *prefix: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    started = process.stdout.readline() == "ready\n"
    if prefix and not started:
        process.communicate()
        pytest.skip("may not make namespaces here")
    assert started
    return process


@pytest.mark.parametrize("containers", [False, True])
def test_a_live_run_keeps_its_scratch_and_a_killed_one_s_goes(tmp_path: Path, containers: bool) -> None:
    """Two containers on one volume have the same process ids."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc") if containers else ()
    if containers and shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    out = tmp_path / "x[1] é"
    first = holder(out, *prefix)
    second = holder(out, *prefix)
    remove_leftovers(out)
    assert len(listing(tmp_path)) == 2
    assert first.communicate("")[0] == "there\n"
    assert len(listing(tmp_path)) == 1
    second.kill()
    second.communicate()
    with scratch_beside(out):
        assert len(listing(tmp_path)) == 1
    assert listing(tmp_path) == []


def test_this_process_s_own_live_scratch_stays(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "a") as first, scratch_beside(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
        remove_leftovers(tmp_path / "a")
        assert first.read_text() == "1" and second.read_text() == "2"
    assert listing(tmp_path) == []


def test_without_locks_nothing_is_removed_but_the_run_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = holder(tmp_path / "a")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    leftover = listing(tmp_path)
    monkeypatch.setattr(output_path, "try_lock", lambda descriptor: None)  # as on some network file systems
    with scratch_beside(tmp_path / "a") as scratch:
        assert not (scratch.parent / "lock").exists()
        monkeypatch.undo()
        scratch.write_text("")
        shutil.rmtree(tmp_path / leftover[0])
        remove_leftovers(tmp_path / "a")  # of a run whose system has locks
        assert scratch.exists()
    assert listing(tmp_path) == []


def test_folders_that_are_no_scratch_stay(tmp_path: Path) -> None:
    names = [".a.replaced", ".a.writing-zz", ".a.writing-1-b234af20", ".b.writing-00c0ffee", ".a.writing-00c0ffee"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("mine")
    (tmp_path / ".a.writing-00000000").symlink_to(".b.writing-00c0ffee")
    (tmp_path / ".a.writing-11111111").mkdir()  # killed before it was locked
    remove_leftovers(tmp_path / "a")
    assert listing(tmp_path) == sorted([*names, ".a.writing-00000000"])
    assert all((tmp_path / name / "thesis").exists() for name in names)


def test_a_folder_that_a_killed_run_moved_away_comes_back(tmp_path: Path) -> None:
    out, scratch = tmp_path / "a", tmp_path / ".a.writing-00c0ffee"
    (scratch / "replaced" / "old").mkdir(parents=True)
    (scratch / "lock").touch()
    assert waiting_folder(out) == scratch / "replaced"
    remove_leftovers(out)
    assert listing(tmp_path) == ["a"] and listing(out) == ["old"]
    assert waiting_folder(out) is None


# --- messages ---------------------------------------------------------------------------------------


def test_errors_name_the_result_and_not_the_scratch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught, scratch_beside(tmp_path / "art") as scratch:
        raise ConfigError(f"{scratch / 'encoder.onnx'} is bad")
    assert str(caught.value) == f"{tmp_path / 'art' / 'encoder.onnx'} is bad"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space or choose another --out"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full; free some space or choose another --out"),
        (OSError(errno.EFBIG, "File too large"), r"larger than this user's limit \(ulimit -f\); raise it or choose"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; check the permissions of"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "cannot write [^;]*: No such file; choose another --out$"),
        (OSError("1024 requested and 0 written"), "1024 requested and 0 written; choose another --out"),
    ],
)
def test_the_reason_and_the_fix(tmp_path: Path, error: OSError, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason), os_errors(tmp_path / "a"):
        raise error
    error.filename = "/elsewhere/photo.jpg"
    with pytest.raises(type(error)), os_errors(tmp_path / "a"):
        raise error


FSIZE = """
import resource, sys
from pathlib import Path
import numpy
from fvexport.core.output_path import os_errors, scratch_beside
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with os_errors(Path(sys.argv[1])), scratch_beside(Path(sys.argv[1])) as scratch:
        numpy.zeros(1000).tofile(scratch)
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_that_numpy_does_not_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FSIZE, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert "ulimit -f" in done.stdout
    assert listing(tmp_path) == []


def test_names_that_are_too_long(tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 240):  # the second is too long for its scratch folder alone
        with pytest.raises(ArtifactError, match="File name too long; choose another --out"):
            check_file(tmp_path / name, force=False)
