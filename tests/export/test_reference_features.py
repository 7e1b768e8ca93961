"""`Encoder(image)` against the PyTorch model on pixels that the form's own library prepared, one export per form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fvexport.encoder.checkpoint import load_encoder
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx
from fvexport.export.runtime import Encoder

REFERENCE = Path(__file__).parents[1] / "data" / "preprocess"
CASES: list[dict[str, Any]] = json.loads((REFERENCE / "cases.json").read_text())["cases"]

FORMS = [
    ("timm", {"config.json"}, "float"),
    ("open_clip", {"open_clip_config.json"}, "uint8"),
    ("mobileclip", {"preprocessor_config.json"}, "float"),
    ("llava", {"config.json", "preprocessor_config.json"}, "uint8"),
    ("transformers", {"processor_config.json"}, "float"),
]
"""Form, files, and the artifact's input."""


@pytest.mark.parametrize(("form", "files", "kind"), FORMS, ids=[form for form, *_ in FORMS])
def test_features_are_those_of_the_own_pipeline(form, files, kind, renamed, golden_dir, tmp_path, distance):
    """With weights whose features depend on the picture far more than those of the other golden models."""
    case = next(c for c in CASES if c["form"] == form and c["image"] == "large" and c["files"].keys() == files)
    arrays = np.load(REFERENCE / "levels.npz")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(renamed("train", form), folder / "model.safetensors")
    for file, content in case["files"].items():
        (folder / file).write_text(json.dumps(content))
    height, width = case["size"]
    report = export_onnx(
        str(folder), tmp_path / "made", options=ExportOptions(height=height, width=width, input=kind), parity=False
    )

    mean, std = (np.array(case[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        pixel_values = torch.from_numpy((arrays[case["name"]] / 255 - mean) / std).float()[None]
        expected = load_encoder(golden_dir / "timm_tiny")(pixel_values)
    found = Encoder(report.artifact)(Image.fromarray(arrays["image large"]))
    assert distance(found, expected) <= 1e-4
    assert report.artifact.manifest.checkpoint.preprocessing_source.split(",")[0] in files
