"""Artifacts whose graph or manifest somebody changed: opened, inspected, and run by runtimes that trust a graph."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import json_documents, protobuf_files

from fvexport.export.artifact import MANIFEST_FILE, MODEL_FILE, Artifact
from fvexport.export.inspection import inspect_artifact
from fvexport.export.runtime import Encoder

CASES = {"static": {}, "dynamic": {"batch": None, "dynamic_res": True}}
PIXELS = np.random.default_rng(0).random((2, 3, 128, 128), np.float32)


def graph_changed(source: Artifact, folder: Path, content: bytes) -> Path:
    """A copy of an artifact with another graph, of the size that the manifest says."""
    if not (folder / "artifact").exists():  # the other files stay as they are
        shutil.copytree(source.path, folder / "artifact")
    (folder / "artifact" / MODEL_FILE).write_bytes(content)
    manifest = source.manifest.to_dict()
    manifest["files"][MODEL_FILE]["bytes"] = len(content)
    (folder / "artifact" / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder / "artifact"


def read(folder: Path, *backends: str) -> None:
    artifact = Artifact.open(folder)
    inspect_artifact(artifact)
    for backend in backends:
        features = Encoder(artifact, backend, threads=1).run(PIXELS)
        assert features.shape == (2, 4, 256)


@pytest.mark.parametrize("case", CASES)
@fuzz(examples=40, data=st.data())
def test_graph(exported: Callable[..., Artifact], folder: Path, case: str, data: st.DataObject) -> None:
    source = exported(**CASES[case])
    content = data.draw(protobuf_files(source.model_path.read_bytes(), onnx.ModelProto))
    path = graph_changed(source, folder, content)
    with only_our_errors():
        read(path)


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("case", CASES)
@fuzz(examples=15, share=0.25, data=st.data())
def test_graph_that_runs(
    exported: Callable[..., Artifact], folder: Path, case: str, backend: str, data: st.DataObject
) -> None:
    pytest.importorskip(backend.removesuffix("-cpu"))
    source = exported(**CASES[case])
    content = data.draw(protobuf_files(source.model_path.read_bytes(), onnx.ModelProto))
    path = graph_changed(source, folder, content)
    if "FUZZ_KEEP" in os.environ:  # a crash leaves the input here
        (Path(os.environ["FUZZ_KEEP"]) / f"{case}-{backend}.onnx").write_bytes(content)
    with only_our_errors(seconds=60):
        read(path, backend)


@pytest.mark.parametrize("case", CASES)
@fuzz(examples=40, data=st.data())
def test_manifest_of_an_artifact(
    exported: Callable[..., Artifact], folder: Path, case: str, data: st.DataObject
) -> None:
    source = exported(**CASES[case])
    path = graph_changed(source, folder, source.model_path.read_bytes())
    document: Any = data.draw(json_documents(json.loads((path / MANIFEST_FILE).read_text())))
    (path / MANIFEST_FILE).write_text(json.dumps(document))
    with only_our_errors():
        read(path, "onnxruntime-cpu")


def test_sound_artifacts_run(exported: Callable[..., Artifact], folder: Path) -> None:
    for options in CASES.values():
        source = exported(**options)
        read(graph_changed(source, folder, source.model_path.read_bytes()), "onnxruntime-cpu", "openvino")
