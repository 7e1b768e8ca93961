"""An artifact's ONNX file for libraries that refuse what they find in some folders.

In the Hugging Face cache, files are links to blobs named after their hashes. onnx, OpenVINO and onnxruntime before 1.31
follow no link of a weights file out of its folder, so the weights are looked for among the blobs.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from ..core.utf8_path import utf8_path
from .artifact import Artifact


def has_linked_weights(artifact: Artifact) -> bool:
    """Whether a file of the artifact is a link; `Artifact.open` accepts those of the Hugging Face cache."""
    return any((artifact.path / name).is_symlink() for name in artifact.manifest.files)


def located_graph(artifact: Artifact) -> tuple[onnx.ModelProto, Path]:
    """The graph without its weights, and the folder of the files that it names for them."""
    model, folder = onnx.load(str(artifact.model_path), load_external_data=False), artifact.path
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            file = artifact.path / entry.value
            if entry.key == "location" and file.is_symlink():
                target = file.resolve()
                entry.value, folder = target.name, target.parent
    return model, folder


def read_model(artifact: Artifact) -> onnx.ModelProto:
    """The graph with its weights."""
    with artifact.one_version():
        return _with_weights(artifact)


def _with_weights(artifact: Artifact) -> onnx.ModelProto:
    model, folder = located_graph(artifact)
    with utf8_path(folder) as path:
        onnx.load_external_data_for_model(model, path)
    return model
