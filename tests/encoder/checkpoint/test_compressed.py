"""PyTorch files whose zip is compressed: a small one must not fill the memory."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fvexport.core.errors import CheckpointError
from fvexport.encoder.checkpoint.tensors import _pickled


def test_a_small_file_does_not_unpack_to_much(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(80 << 20))
    with pytest.raises(CheckpointError, match="unpacks to 83886080"):
        _pickled("weights.pt", file, "zip")
