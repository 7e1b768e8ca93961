"""The released form through `torch.onnx.export`, as a user would do it without fvexport."""

from __future__ import annotations

from pathlib import Path

import torch

from ...encoder.fastvithd import FastViTHD
from ...encoder.reparameterize import merge_branches
from ...export.tensor_names import INPUT_NAME
from ...export.tracing import quiet


def export_plain(encoder: FastViTHD, shape: tuple[int, int, int, int], path: Path, opset: int | None = None) -> None:
    """Writes what timm's `reparameterize_model` and `torch.onnx.export` give for an input of that shape."""
    released: FastViTHD = merge_branches(encoder)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            released, (torch.zeros(shape),), dynamo=True, opset_version=opset, input_names=[INPUT_NAME], verbose=False
        )
    assert program is not None
    program.save(str(path), external_data=True)
