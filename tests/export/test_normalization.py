"""An artifact of a checkpoint with a mean and a std of its own: levels and pixel values give the same features."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.preprocess import Preprocessor
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx
from fvexport.export.runtime import Encoder
from fvexport.export.triton_server import write_repository


@pytest.fixture(scope="module")
def timm(golden_dir):
    """With timm's published preprocessing; its features depend on the picture far more than the other golden ones."""
    return load_checkpoint(golden_dir / "timm_tiny")


@pytest.fixture(scope="module", params=["float", "uint8"])
def exported(request, timm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("normalized") / request.param
    return export_onnx(timm, folder, options=ExportOptions(height=64, width=64, input=request.param), parity=False)


def test_the_artifact_normalizes_as_the_checkpoint_does(exported, timm, photographs, tmp_path):
    artifact = exported.artifact
    prepare = Preprocessor(64, 64, timm.info.preprocessing)
    assert artifact.manifest.preprocessor == prepare
    assert any("assuming the timm form's published way" in notice for notice in exported.notices)
    levels, values = prepare.pixels(photographs["chelsea"])[None], prepare([photographs["chelsea"]])
    with torch.no_grad():
        expected = timm.encoder(torch.from_numpy(values)).numpy()
    for backend in ("onnxruntime-cpu", "eager"):
        encoder = Encoder(artifact, backend, checkpoint=timm)
        for found in (
            encoder(photographs["chelsea"]), encoder.run(levels), encoder.run(values),
            encoder.run_tensor(torch.from_numpy(levels)).numpy(), encoder.run_tensor(torch.from_numpy(values)).numpy(),
        ):  # fmt: skip
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    served = write_repository(artifact, tmp_path)
    config = (served / "config.pbtxt").read_text()
    assert ("0 to 255" if encoder.uint8 else "mean 0.481455") in config
    assert Preprocessor.from_dict(json.loads(json.dumps(artifact.manifest.to_dict()["preprocessing"]))) == prepare
