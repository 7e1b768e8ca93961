"""config.pbtxt of artifacts with hostile manifests: the server's schema reads it, and it has our fields alone."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import hostile_text, json_documents

from fvexport.export.artifact import MANIFEST_FILE, Artifact
from fvexport.export.triton_server import write_repository

pytest.importorskip("tritonclient")
FIELDS = {
    "name", "backend", "default_model_filename", "max_batch_size", "input", "output", "instance_group", "parameters",
    "dynamic_batching",
}  # fmt: skip


MODEL_CONFIG = runpy.run_path(str(Path(__file__).parents[1] / "triton_schema.py"))["load_schema"]().ModelConfig


def check(source: Artifact, folder: Path, document: Any) -> None:
    changed = folder / "artifact"
    if not changed.exists():  # the other files stay as they are
        shutil.copytree(source.path, changed)
    (changed / MANIFEST_FILE).write_text(json.dumps(document))
    out = write_repository(Artifact.open(changed), folder / "models", name="eye", platform="onnx", force=True)
    found = text_format.Parse((out / "config.pbtxt").read_text(encoding="utf-8"), MODEL_CONFIG())
    assert {field.name for field, _ in found.ListFields()} <= FIELDS
    assert (found.name, found.backend, found.default_model_filename) == ("eye", "onnxruntime", "model.onnx")
    assert (found.input[0].name, found.output[0].name) == ("pixel_values", "image_features")
    assert all(name.startswith("fvexport.") for name in found.parameters)
    assert len(found.instance_group) == 1


@fuzz(examples=40, data=st.data())
def test_config_of_a_changed_manifest(exported: Callable[..., Artifact], folder: Path, data: st.DataObject) -> None:
    source = exported()
    with only_our_errors():
        check(source, folder, data.draw(json_documents(source.manifest.to_dict())))


@fuzz(examples=40, data=st.data())
def test_config_of_a_manifest_with_hostile_texts(
    exported: Callable[..., Artifact], folder: Path, data: st.DataObject
) -> None:
    source = exported()
    document: Any = source.manifest.to_dict()
    document["variant"] = data.draw(hostile_text)
    document["checkpoint"] |= {"form": "timm", "source": data.draw(hostile_text), "sha256": data.draw(hostile_text)}
    document["files"]["encoder.onnx"]["sha256"] = data.draw(hostile_text)
    with only_our_errors():
        check(source, folder, document)


def test_a_sound_one(exported: Callable[..., Artifact], folder: Path) -> None:
    check(exported(), folder, exported().manifest.to_dict())
