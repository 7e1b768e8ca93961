"""Opening an artifact: whatever is wrong with the folder, one ArtifactError that says so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fvexport.core.errors import ArtifactError
from fvexport.export.artifact import DATA_FILE, MANIFEST_FILE, MODEL_FILE, Artifact
from fvexport.export.manifest import Manifest
from fvexport.export.runtime import Encoder

Copy = Callable[[Artifact], Path]
Keys = tuple[Any, ...]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3) | st.just("x" * 400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / MANIFEST_FILE
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def true_hashes(data: dict[str, Any], folder: Path) -> None:
    for name in data["files"]:
        content = (folder / name).read_bytes()
        data["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def paths(data: Any, here: Keys = ()) -> list[Keys]:
    """Where every value of a JSON document stands."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [here, *(p for key, value in items for p in paths(value, (*here, key)))]


def test_opens(static: Artifact) -> None:
    again = Artifact.open(str(static.path), verify=True)
    assert again.manifest.to_json() == static.manifest.to_json()
    assert sorted(f.name for f in static.path.iterdir()) == [MODEL_FILE, DATA_FILE, MANIFEST_FILE]
    assert again.model_path == static.path / MODEL_FILE


def test_moved_elsewhere_it_still_runs(
    static: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: dict[str, Path]
) -> None:
    wanted = Encoder(static)(photographs["coffee"])
    folder = tmp_path / "Ü ber" / "x[1]"
    shutil.copytree(static.path, folder)
    monkeypatch.chdir(folder.parent)
    np.testing.assert_array_equal(Encoder("x[1]")(photographs["coffee"]), wanted)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_mutated_manifest_opens_or_is_refused(static: Artifact, tmp_path_factory: Any, data: st.DataObject) -> None:
    document = json.loads((static.path / MANIFEST_FILE).read_text())
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        shutil.copytree(static.path, folder)
    *way, last = data.draw(st.sampled_from(paths(document)[1:]))
    parent = document
    for key in way:
        parent = parent[key]
    kind = data.draw(st.sampled_from(["replace", "remove", "rename"]))
    value = parent.pop(last)
    if kind == "replace":
        value = data.draw(JSON)
    if kind != "remove":
        key = data.draw(st.text(max_size=4) | st.just("../x")) if kind == "rename" and isinstance(last, str) else last
        parent.insert(last, value) if isinstance(parent, list) else parent.__setitem__(key, value)
    (folder / MANIFEST_FILE).write_text(json.dumps(document))
    try:
        opened = Artifact.open(folder)
    except ArtifactError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert opened.manifest.architecture.stride == 64


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=40) | JSON.map(json.dumps) | st.sampled_from(["[" * 100_000, '{"schema_version": 1}', "", "NaN"])
)
def test_any_text_is_no_manifest(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"where.*export it again"):
        Manifest.from_json(text, "where")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema_version", 2, "schema version 2"),
        ("config", None, r"\$\.config: expected object, found null"),
        ("config", {}, "missing"),
        ("precision", "fp7", r"\$\.precision: unknown value 'fp7'"),
        ("precision", "fp8", "fp8 without a quantization"),
        ("quantization", {"float_precision": "fp16"}, r"\$\.quantization: object missing required field"),
        ("fp16", [], r"\$\.fp16: expected object \| null, found array"),
        ("input", {"name": "x", "dtype": "float", "shape": None}, r"\$\.input\.shape: expected array, found null"),
        ("output", {"name": "x", "dtype": "float", "shape": [1, 2]}, r"\$\.output\.shape: expected 3 axes, found 2"),
        ("checkpoint", {"form": "seeded"}, r"\$\.checkpoint: object missing required field source"),
        ("files", {}, f"names no {MODEL_FILE}"),
        ("files", {MODEL_FILE: {"bytes": "many"}}, r"\$\.files\[\.\.\.\]\.bytes: expected int, found str"),
    ],
)
def test_damaged_manifest(static: Artifact, copied: Copy, key: str, value: Any, words: str) -> None:
    folder = copied(static)
    edit(folder, lambda data: data.__setitem__(key, value))
    with pytest.raises(ArtifactError, match=words):
        Artifact.open(folder)


def test_zero_head_dim_is_no_crash(static: Artifact, copied: Copy) -> None:
    folder = copied(static)
    edit(folder, lambda data: data["config"].__setitem__("head_dim", 0))
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["../encoder.onnx", "/etc/passwd", "sub/encoder.onnx", "x" * 300, "\0", ""])
def test_file_names_of_the_manifest(static: Artifact, copied: Copy, name: str) -> None:
    folder = copied(static)
    edit(folder, lambda data: data["files"].__setitem__(name, {"bytes": 1, "sha256": ""}))
    with pytest.raises(ArtifactError, match=r"outside the folder|is gone|File name too long"):
        Artifact.open(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, DATA_FILE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "folder", "changed"])
def test_damaged_file(static: Artifact, copied: Copy, name: str, damage: str) -> None:
    folder = copied(static)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "folder":
        file.mkdir()
    elif damage == "changed":
        file.write_bytes(content[:-9] + b"tampering")
    words = {"truncated": f"{len(content) // 2} bytes instead of {len(content)}", "changed": "SHA-256 differs"}
    with pytest.raises(ArtifactError, match=words.get(damage, "is gone|is a folder")):
        Artifact.open(folder, verify=damage == "changed")


def test_changed_weights_are_seen_when_asked_for(static: Artifact, copied: Copy) -> None:
    folder = copied(static)
    with (folder / DATA_FILE).open("r+b") as stream:
        stream.write(b"\0\0\0\0")
    Artifact.open(folder)  # the size is right
    with pytest.raises(ArtifactError, match=f"{DATA_FILE} was changed"):
        Artifact.open(folder, verify=True)


@pytest.mark.parametrize("name", [MODEL_FILE, DATA_FILE, MANIFEST_FILE, "encoder.onnx.extra"])
def test_a_link_is_no_file_of_an_artifact(static: Artifact, copied: Copy, name: str) -> None:
    """Whoever copies an artifact would copy what its links lead to."""
    folder = copied(static)
    target = folder.parent / "secret"
    target.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    if name == MANIFEST_FILE:  # it is read, and never copied
        Artifact.open(folder)
        return
    edit(folder, lambda data: data["files"].setdefault(name, {"bytes": 6, "sha256": ""}))
    with pytest.raises(ArtifactError, match=f"{name} is a link"):
        Artifact.open(folder)


def test_a_fifo_is_no_file_of_an_artifact(static: Artifact, copied: Copy) -> None:
    folder = copied(static)
    for name, words in ((DATA_FILE, "is a FIFO"), (MANIFEST_FILE, "cannot read")):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ArtifactError, match=words):
            Artifact.open(folder)


def test_model_that_is_none(static: Artifact, copied: Copy) -> None:
    folder = copied(static)
    (folder / MODEL_FILE).write_text("<html>404</html>")
    edit(folder, lambda data: true_hashes(data, folder))
    with pytest.raises(ArtifactError, match="not a readable ONNX file"):
        Artifact.open(folder, verify=True)


def test_no_artifact_at_all(tmp_path: Path, static: Artifact, copied: Copy) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact at .*; make one with `fvexport onnx --out"):
        Artifact.open(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=f"holds no {MANIFEST_FILE}"):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactError, match="is a file"):
        Artifact.open(static.model_path)
    with pytest.raises(ArtifactError, match="cannot open"):
        Artifact.open(tmp_path / ("x" * 300))
    folder = copied(static)
    (folder / MANIFEST_FILE).write_bytes(b"\xff\xfe{")
    with pytest.raises(ArtifactError, match="cannot read"):
        Artifact.open(folder)
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).mkdir()
    with pytest.raises(ArtifactError, match="cannot read"):
        Artifact.open(folder)
