"""Artifacts in the Hugging Face cache, where files are links, and in folders whose names are no UTF-8."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvexport.core.errors import ArtifactError
from fvexport.export.artifact import Artifact
from fvexport.export.model_file import has_linked_weights, read_model
from fvexport.export.parity import check_parity
from fvexport.export.quantized_module import quantized_module
from fvexport.export.runtime import Encoder
from fvexport.export.saturation import count_saturating

Export = Callable[..., Artifact]
Layout = Callable[[Path, Path], Path]


def hub_cache(artifact: Path, tmp_path: Path, below: str = "") -> Path:
    """The layout of huggingface_hub: `snapshots/<commit>/…` links to `blobs/<hash>`."""
    repo = tmp_path / "models--me--encoder"
    folder = repo / "snapshots" / "0123abcd" / below
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for index, file in enumerate(sorted(artifact.iterdir())):
        blob = repo / "blobs" / f"{index:040x}"
        shutil.copy(file, blob)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    return folder


def hub_cache_below(artifact: Path, tmp_path: Path) -> Path:
    return hub_cache(artifact, tmp_path, "onnx/128")


def no_utf8(artifact: Path, tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(b"caf\xe9") / "artifact"
    try:
        return shutil.copytree(artifact, folder)
    except OSError:
        pytest.skip("file names here are UTF-8")


def hub_cache_no_utf8(artifact: Path, tmp_path: Path) -> Path:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("file names here are UTF-8")
    return hub_cache(artifact, tmp_path / os.fsdecode(b"caf\xe9"))


LAYOUTS = [hub_cache, hub_cache_below, no_utf8, hub_cache_no_utf8]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_every_backend(static: Artifact, tmp_path: Path, layout: Layout, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    folder = layout(static.path, tmp_path)
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    wanted = Encoder(static, backend).run(pixels)
    np.testing.assert_allclose(Encoder(folder, backend).run(pixels), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inner_tensors_and_half_precision(exported: Export, tmp_path: Path, layout: Layout) -> None:
    """Both edit the graph, which onnxruntime then gets as bytes."""
    artifact = Artifact.open(layout(exported(precision="bf16").path, tmp_path))
    assert check_parity(artifact, layers=True).passed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantized(made: Callable[[str], Any], tmp_path: Path, layout: Layout) -> None:
    original = made("onnxruntime-cpu").artifact
    artifact = Artifact.open(layout(original.path, tmp_path), verify=True)
    assert has_linked_weights(artifact) == ("hub" in layout.__name__)
    assert count_saturating(read_model(artifact)) == count_saturating(read_model(original))
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    np.testing.assert_array_equal(Encoder(artifact).run(pixels), Encoder(original).run(pixels))


@pytest.mark.parametrize("layout", [hub_cache, no_utf8])
def test_the_module_of_an_fp8_file(made: Callable[[str], Any], tmp_path: Path, layout: Layout) -> None:
    original = made("fp8, projector").artifact
    found = quantized_module(Artifact.open(layout(original.path, tmp_path)))
    wanted = quantized_module(original).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


def test_links_that_lead_elsewhere(static: Artifact, copied: Callable[[Artifact], Path], tmp_path: Path) -> None:
    """DVC's layout, a link to a file of the user's, and one out of the cache."""
    words = r"is a link to .*, and would give away what it leads to; .*cp -rL"
    for name in ("encoder.onnx.data", "encoder.onnx"):
        folder = copied(static)
        target = shutil.move(folder / name, tmp_path / "elsewhere")
        (folder / name).symlink_to(target)
        with pytest.raises(ArtifactError, match=words):
            Artifact.open(folder)
        shutil.rmtree(folder)
    (tmp_path / "c").mkdir()
    folder = hub_cache(static.path, tmp_path / "c")
    link = folder / "encoder.onnx.data"
    moved = shutil.move(link.resolve(), tmp_path / "c" / "secret")
    link.unlink()
    link.symlink_to(moved)
    with pytest.raises(ArtifactError, match=words):
        Artifact.open(folder)
    shutil.copytree(static.path, tmp_path / "whole")
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    assert Artifact.open(tmp_path / "link").manifest == static.manifest
