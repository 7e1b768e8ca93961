"""Reading an artifact while other runs replace it: everything that is read belongs to one version."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from fvexport.core.errors import ArtifactError
from fvexport.core.output_path import put_folder, scratch_beside
from fvexport.export.artifact import DATA_FILE, MANIFEST_FILE, MODEL_FILE, Artifact, describe_files
from fvexport.export.inspection import inspect_artifact
from fvexport.export.runtime import Encoder
from fvexport.export.runtime.onnxruntime_backend import OnnxRuntimeBackend
from fvexport.export.runtime.openvino_backend import OpenVinoBackend

SECOND = "seeded:2"
"""Source of the second version's weights."""
SWAPS = """
import shutil, sys
from pathlib import Path
from fvexport.core import output_path
from fvexport.core.output_path import put_folder, scratch_beside
out, versions, exchange = Path(sys.argv[1]), sys.argv[2:4], sys.argv[4] == "exchange"
if not exchange:
    output_path._renameat2 = lambda source, target, flag: False
print("ready", flush=True)
for _ in range(60):
    for version in versions:
        with scratch_beside(out) as scratch:
            shutil.copytree(version, scratch)
            put_folder(scratch, out, force=True, ours=lambda _: True)
"""


@pytest.fixture(scope="module")
def versions(static: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two artifacts that differ in their manifests, graphs and weights."""
    folder = tmp_path_factory.mktemp("versions")
    first, second = folder / "first", folder / "second"
    shutil.copytree(static.path, first)
    shutil.copytree(static.path, second)
    weights = np.fromfile(second / DATA_FILE, np.uint8).view(np.float32) * np.float32(1.01)
    weights.tofile(second / DATA_FILE)
    graph = onnx.load(str(second / MODEL_FILE), load_external_data=False)
    graph.doc_string = "second"
    (second / MODEL_FILE).write_bytes(graph.SerializeToString())
    manifest = static.manifest.replace(
        files=describe_files(second), checkpoint=replace(static.manifest.checkpoint, source=SECOND)
    )
    (second / MANIFEST_FILE).write_text(manifest.to_json())
    return first, second


@contextmanager
def swapped(out: Path, versions: tuple[Path, Path], how: str) -> Iterator[Callable[[], bool]]:
    """Has another process replace the artifact at `out` by one version after the other; yields whether it does."""
    shutil.copytree(versions[0], out)
    command = [sys.executable, "-c", SWAPS, str(out), *map(str, versions), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        try:
            yield lambda: writer.poll() is None
        finally:
            writer.kill()


def digests(artifact: Artifact) -> dict[str, str]:
    with artifact.one_version():
        names = (MODEL_FILE, DATA_FILE)
        return {name: hashlib.sha256((artifact.path / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no folder in use")
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_all_that_is_read_is_of_one_version(tmp_path: Path, versions: tuple[Path, Path], how: str) -> None:
    whole = 0
    with swapped(tmp_path / "a", versions, how) as goes_on:
        while goes_on() or not whole:
            try:
                artifact = Artifact.open(tmp_path / "a")
                found = digests(artifact)
                graph = inspect_artifact(artifact)
            except ArtifactError as error:
                assert "replaced" in str(error)
                continue
            whole += 1
            assert found == {name: artifact.manifest.files[name].sha256 for name in found}
            assert graph.files[MODEL_FILE] == artifact.manifest.files[MODEL_FILE].bytes
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no folder in use")
@pytest.mark.parametrize(
    ("backend", "reader", "step"),
    [("onnxruntime-cpu", OnnxRuntimeBackend, "edits"), ("openvino", OpenVinoBackend, "edit")],
)
def test_a_swap_while_a_runtime_loads(
    tmp_path: Path, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, backend: str, reader: type, step: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128)).astype(np.uint8)
    features = [Encoder(version, backend).run(pixels) for version in versions]
    assert np.abs(features[0] - features[1]).max() > 1e-3
    out, original, swaps = tmp_path / "a", getattr(reader, step), list[str]()
    shutil.copytree(versions[0], out)

    def swapping(*args: Any, **named: Any) -> Any:
        """The step of the runtime's loading, after a swap the first time."""
        if not swaps:
            swaps.append("once")
            with scratch_beside(out) as scratch:
                shutil.copytree(versions[1], scratch)
                put_folder(scratch, out, force=True, ours=lambda _: True)
        return original(*args, **named)

    monkeypatch.setattr(reader, step, swapping)
    encoder = Encoder(out, backend)  # opens it again
    assert swaps and encoder.artifact.manifest.checkpoint.source == SECOND
    np.testing.assert_allclose(encoder.run(pixels), features[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("read", [digests, inspect_artifact, Encoder], ids=["files", "inspect", "Encoder"])
def test_an_artifact_that_was_opened_and_then_replaced(
    tmp_path: Path, versions: tuple[Path, Path], read: Callable[[Artifact], Any]
) -> None:
    out = tmp_path / "a"
    shutil.copytree(versions[0], out)
    artifact = Artifact.open(out)
    read(artifact)
    out.rename(tmp_path / "old")
    shutil.copytree(versions[1], out)
    with pytest.raises(ArtifactError, match=r"a was replaced by another run while it was read; run the command again"):
        read(artifact)
    read(Artifact.open(out))
