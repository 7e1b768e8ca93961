"""Writing an artifact: killed at any moment, on a full disk, over an old one: the old or the new stands, never half."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fvexport.core import output_path
from fvexport.core.errors import ArtifactError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export import artifact as module
from fvexport.export.artifact import LAYERS_FILE, MANIFEST_FILE, MODEL_FILE, Artifact, check_writable, writing
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx

SMALL = ExportOptions(height=64, width=64)

CHILD = """
import shutil, sys
from pathlib import Path
from fvexport.core import output_path
from fvexport.export import artifact
source, out, exchange = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "exchange"
if not exchange:
    output_path._renameat2 = lambda a, b, flag: False
print("ready", flush=True)
while True:
    with artifact.writing(out, force=True) as folder:
        for file in source.iterdir():
            shutil.copy(file, folder / file.name)
"""


def write(out: Path, text: str = "{") -> None:
    """An artifact whose manifest is damaged."""
    with writing(out, force=True) as folder:
        (folder / MANIFEST_FILE).write_text(text)
        (folder / MODEL_FILE).touch()


def listing(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@pytest.fixture(params=["renameat2", "two renames"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path to write, with and without the atomic exchange."""
    if request.param == "two renames":
        monkeypatch.setattr(output_path, "_renameat2", lambda a, b, flag: False)
    return tmp_path / "x[1] é"


def test_new_and_replaced(out: Path) -> None:
    write(out, "first")
    write(out, "second")
    assert (out / MANIFEST_FILE).read_text() == "second"
    assert listing(out.parent) == [out.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interrupted_block_leaves_the_old_one(out: Path, error: type[BaseException]) -> None:
    write(out, "old")
    with pytest.raises(error), writing(out, force=True) as folder:  # noqa: PT012
        (folder / MANIFEST_FILE).write_text("new")
        raise error
    assert (out / MANIFEST_FILE).read_text() == "old"
    assert listing(out.parent) == [out.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_refusal_of_the_system_is_ours_to_tell(out: Path, number: int) -> None:
    with pytest.raises(ArtifactError, match="the disk is full; free some space"), writing(out, force=True):
        raise OSError(number, os.strerror(number))
    assert listing(out.parent) == []


def test_failed_rename_leaves_the_old_one(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(out, "old")

    def refuse(new: Path, old: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "put_folder", refuse)
    with pytest.raises(ArtifactError, match=r"Permission denied; check the permissions of \S+ or choose"):
        write(out, "new")
    assert (out / MANIFEST_FILE).read_text() == "old"
    assert listing(out.parent) == [out.name]


def test_two_threads_write_the_same_place(out: Path) -> None:
    both, errors = threading.Barrier(2), []

    def run(text: str) -> None:
        try:
            with writing(out, force=True) as folder:
                both.wait(timeout=20)
                (folder / MANIFEST_FILE).write_text(text)
                (folder / MODEL_FILE).touch()
                both.wait(timeout=20)
                time.sleep(0 if text == "a" else 0.2)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(text,)) for text in "ab"]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert (out / MANIFEST_FILE).read_text() == "b"
    assert listing(out.parent) == [out.name]


def test_link_is_replaced_and_its_folder_left_alone(out: Path) -> None:
    real = out.parent / "real"
    write(real, "real")
    out.symlink_to(real)
    write(out, "new")
    assert (real / MANIFEST_FILE).read_text() == "real"
    assert (out / MANIFEST_FILE).read_text() == "new"
    assert listing(out.parent) == ["real", out.name]


def test_a_killed_run_s_old_folder_is_read_where_it_waits_and_put_back_by_a_writer(
    tmp_path: Path, static: Artifact
) -> None:
    out, scratch = tmp_path / "a", tmp_path / ".a.writing-00c0ffee"
    scratch.mkdir()
    (scratch / "lock").touch()
    shutil.copytree(static.path, scratch / "replaced")  # killed between its two renames
    assert Artifact.open(out, verify=True).manifest == static.manifest
    assert listing(tmp_path) == [scratch.name]
    with pytest.raises(ArtifactError, match="replace it with --force"):
        check_writable(out, force=False)
    assert listing(tmp_path) == ["a"]
    shutil.copytree(static.path, scratch / "replaced")  # killed after the second one
    (scratch / "lock").touch()
    Artifact.open(out)
    assert listing(tmp_path) == [scratch.name, "a"]
    check_writable(out, force=True)
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("name", [".a.replaced", ".a.writing-00c0ffee", ".a.writing-1-b234af20"])
def test_opening_leaves_folders_alone_that_may_be_the_user_s(tmp_path: Path, static: Artifact, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis").write_text("mine")
    with pytest.raises(ArtifactError, match="no artifact at"):
        Artifact.open(tmp_path / "a")
    write(tmp_path / "a")
    assert (tmp_path / name / "thesis").read_text() == "mine"


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_kill_at_any_moment(tmp_path: Path, static: Artifact, how: str) -> None:
    out = tmp_path / "a"
    shutil.copytree(static.path, out)
    child_file = tmp_path.with_suffix(".py")
    child_file.write_text(CHILD)
    for moment in range(8):
        command = [sys.executable, str(child_file), str(static.path), str(out), how]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path)
        assert child.stdout is not None and child.stdout.readline()
        time.sleep(0.0137 * moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert Artifact.open(out, verify=True).manifest == static.manifest
    check_writable(out, force=True)
    with writing(out, force=True) as folder:
        shutil.copytree(static.path, folder, dirs_exist_ok=True)
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("what", ["file", "folder", "dangling link"])
def test_what_is_no_artifact_is_never_replaced(tmp_path: Path, what: str) -> None:
    out = tmp_path / "thing"
    if what == "file":
        out.write_text("mine")
    elif what == "folder":
        (out / "thesis").mkdir(parents=True)
    else:
        out.symlink_to(tmp_path / "nowhere")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="no artifact of fvexport; choose another --out"):
            check_writable(out, force=force)
    assert listing(tmp_path) == ["thing"]


@pytest.mark.parametrize("manifest", ["{}", '{"name": "x"}', "[]", '{"schema_version": 1, "files": {}}', "", "{cut"])
def test_another_program_s_manifest_makes_no_artifact(tmp_path: Path, manifest: str) -> None:
    """A browser's extension, a web app: folders that hold a `manifest.json` too."""
    out = tmp_path / "extension"
    out.mkdir()
    (out / MANIFEST_FILE).write_text(manifest)
    (out / "background.js").write_text("precious")
    with pytest.raises(ArtifactError, match="no artifact of fvexport; choose another --out"):
        check_writable(out, force=True)
    with pytest.raises(ArtifactError, match="not what this command writes"):
        write(out)
    assert (out / "background.js").read_text() == "precious"
    assert listing(tmp_path) == ["extension"]


@pytest.mark.parametrize("name", ["report.html", "encoder.plan/", "a/", ".a.writing-00c0ffee/", "a\nb"])
def test_what_a_user_put_beside_an_artifact_s_files_is_kept(tmp_path: Path, static: Artifact, name: str) -> None:
    out = shutil.copytree(static.path, tmp_path / "a")
    entry = out / name
    if name.endswith("/"):
        entry.mkdir()
    else:
        entry.touch()
    said = name.strip("/").replace("\n", " ")
    words = rf"a holds {re.escape(said)}, which is no file of an artifact; move it away or choose another --out"
    with pytest.raises(ArtifactError, match=words):
        check_writable(out, force=True)
    with pytest.raises(ArtifactError, match="not what this command writes"):
        write(out)
    assert entry.exists() and listing(tmp_path) == ["a"]


@pytest.mark.parametrize("how", ["whole", "empty", "cut off", "newer", "older", "files", "file gone", "scratch"])
def test_damaged_artifacts_are_replaced(tmp_path: Path, static: Artifact, how: str) -> None:
    out = shutil.copytree(static.path, tmp_path / "a")
    text = (out / MANIFEST_FILE).read_text()
    content = json.loads(text)
    if how == "empty":
        text = ""
    elif how == "cut off":
        text = text[:200]
    elif how == "newer":
        text = json.dumps(content | {"schema_version": 99, "files": content["files"] | {"weights.bin": {}}})
        (out / "weights.bin").touch()
    elif how == "older":
        text = json.dumps({"schema_version": 0, "checkpoint": None, "files": []})
    elif how == "files":
        (out / LAYERS_FILE).touch()
        (out / ".DS_Store").touch()
    elif how == "file gone":
        (out / MODEL_FILE).unlink()
    elif how == "scratch":
        (out / ".features.safetensors.writing-00c0ffee").mkdir()
        (out / ".features.safetensors.writing-00c0ffee" / "lock").touch()
    (out / MANIFEST_FILE).write_text(text)
    check_writable(out, force=True)
    write(out, "new")
    assert (out / MANIFEST_FILE).read_text() == "new"


def test_existing_artifact_needs_force_and_an_empty_folder_does_not(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(ArtifactError, match="replace it with --force"):
        check_writable(tmp_path / "a", force=False)
    check_writable(tmp_path / "a", force=True)
    (tmp_path / "empty").mkdir()
    check_writable(tmp_path / "empty", force=False)
    write(tmp_path / "empty")
    assert listing(tmp_path) == ["a", "empty"]


@pytest.mark.parametrize("out", [".", "..", "sub/..", "/"])
def test_place_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="a folder of its own"):
        check_writable(Path(out), force=True)


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a folder"):
        check_writable(tmp_path / "file" / "a" / "b", force=False)
    for name in ("x" * 300, "x" * 240):  # the second is too long for the scratch folder's name alone
        with pytest.raises(ArtifactError, match="File name too long"):
            check_writable(tmp_path / name, force=False)
    with pytest.raises(ArtifactError, match=r"1000000000000 MB needed, \d+ MB free"):
        check_writable(tmp_path / "a", force=False, need_bytes=10**18)
    if Path("/proc/self").exists() and os.access("/proc", os.W_OK):
        with pytest.raises(ArtifactError, match=r"/proc/a: the file system of /proc takes no files; choose another"):
            check_writable(Path("/proc/a"), force=False, need_bytes=1)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ArtifactError, match="no permission"):
        check_writable(tmp_path / "new" / "a", force=False)
    assert listing(tmp_path) == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_too_small(small_disk: Path, tiny: Checkpoint) -> None:
    with pytest.raises(ArtifactError, match=r"MB needed, 1[.\d]* MB free"):
        export_onnx(tiny, small_disk / "a", options=SMALL, parity=False)
    assert listing(small_disk) == []


def test_disk_that_fills_up(small_disk: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program took the space meanwhile: the early check saw enough."""
    write(small_disk / "a", "old")
    usage: Any = shutil.disk_usage(small_disk)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match=r"cannot write \S+: the disk is full; free some space or choose another"):
        export_onnx(tiny, small_disk / "a", options=SMALL, force=True, parity=False)
    assert listing(small_disk) == ["a"]
    assert (small_disk / "a" / MANIFEST_FILE).read_text() == "old"


def test_disk_full_without_a_small_disk(tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_ir, "save", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        export_onnx(tiny, tmp_path / "a", options=ExportOptions(height=128, width=128), parity=False)
    assert listing(tmp_path) == []
    # Where onnxsim changes the graph, both are written to a temporary folder first.
    pytest.importorskip("onnxsim")
    with pytest.raises(ArtifactError, match="cannot write temporary files"):
        export_onnx(tiny, tmp_path / "a", options=SMALL, parity=False)
    assert listing(tmp_path) == []
