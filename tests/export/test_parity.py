"""Verdicts of real comparisons: each status reached by tampering with the file, and the block that was hit is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from fvexport.core.errors import ArtifactError, CheckpointError, ConfigError, ImageError
from fvexport.core.verdict.figures import compare, worst
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.preprocess import Preprocessor
from fvexport.export import parity
from fvexport.export.artifact import DATA_FILE, MANIFEST_FILE, MODEL_FILE, Artifact
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx
from fvexport.export.parity import MAX_IMAGES, check_parity
from fvexport.export.parity_backends import ParityOnnxRuntime
from fvexport.export.runtime import OnnxRuntimeBackend

Copy = Callable[[Artifact], Path]
Export = Callable[..., Artifact]
TYPES = {
    TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}  # fmt: skip


def tamper(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes one weight in the data file, and makes the manifest agree."""
    graph = onnx.load(folder / MODEL_FILE, load_external_data=False).graph
    tensor = next(t for t in graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place["offset"]), int(place["length"])
    data = bytearray((folder / DATA_FILE).read_bytes())
    weight = np.frombuffer(bytes(data[offset : offset + length]), TYPES[tensor.data_type])
    changed = change(weight.astype(np.float32)).astype(weight.dtype).tobytes()
    assert changed != weight.tobytes()
    data[offset : offset + length] = changed
    (folder / DATA_FILE).write_bytes(data)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][DATA_FILE]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    Artifact.open(folder, verify=True)


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"input": "uint8"}, {"projector": True}], ids=str)
def test_untouched_files_pass(exported: Export, tiny: Checkpoint, options: dict[str, Any]) -> None:
    verdict = check_parity(exported(**options), checkpoint=tiny, layers=True)
    assert (verdict.status, verdict.first_bad_layer) == ("pass", None)
    assert verdict.figures.rel_l2 < 1e-5
    assert [f.name for f in verdict.layers] == [name for name, _ in tiny.encoder.named_blocks()]
    assert all(f.passed and f.rel_l2 is not None and f.rel_l2 < f.bound for f in verdict.layers)
    assert verdict.resolutions == ["128x128"]
    assert len(verdict.images) == 2
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_judged_beside_pytorch(exported: Export, tiny: Checkpoint, precision: str) -> None:
    verdict = check_parity(exported(precision=precision), checkpoint=tiny, layers=True)
    assert verdict.passed
    assert verdict.torch.rel_l2 > 1e-4
    assert verdict.figures.rel_l2 < 2 * verdict.torch.rel_l2
    assert "rounded" in verdict.backend
    assert verdict.first_bad_layer is None


def test_dynamic_files_are_compared_at_two_resolutions(dynamic: Artifact, tiny: Checkpoint) -> None:
    verdict = check_parity(dynamic, checkpoint=tiny)
    assert verdict.passed
    assert verdict.resolutions == ["128x128", "64x64"]


def test_figures_are_those_of_plain_numpy(
    static: Artifact, tiny: Checkpoint, copied: Copy, photographs: dict[str, Path]
) -> None:
    folder = copied(static)
    tamper(folder, "stages.3.blocks.0.mlp.fc2.weight", lambda w: 1.05 * w)
    files = [photographs["coffee"], photographs["astronaut"]]
    verdict = check_parity(folder, checkpoint=tiny, images=files)
    rows = []
    for file in files:
        pixels = Preprocessor(128, 128)(file)
        with torch.inference_mode():
            wanted = tiny.encoder(torch.from_numpy(pixels)).numpy()
        rows.append(compare(wanted, OnnxRuntimeBackend(Artifact.open(folder)).run(pixels)))
    assert verdict.figures.rel_l2 == pytest.approx(worst(rows).rel_l2, rel=1e-3)
    assert verdict.figures.cosine_min == pytest.approx(worst(rows).cosine_min, rel=1e-6)
    assert verdict.images == [str(file) for file in files]
    assert verdict.torch.rel_l2 < 1e-5 < verdict.figures.rel_l2


@pytest.mark.parametrize("where", ["padding", "picture"])
def test_only_tokens_that_see_the_picture_are_judged(
    exported: Export, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A wide picture on a high canvas: of three rows of tokens the middle one sees it."""
    make = parity.parity_backend

    def make_wrong(*args: Any, **options: Any) -> Any:
        backend = make(*args, **options)
        run = backend.run

        def wrong(pixels: np.ndarray) -> np.ndarray:
            features = run(pixels).copy()
            assert features.shape[1] == 3
            features[:, [0, 2] if where == "padding" else [1]] += 10
            return features

        monkeypatch.setattr(backend, "run", wrong)
        return backend

    monkeypatch.setattr(parity, "parity_backend", make_wrong)
    picture = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    verdict = check_parity(exported(height=192, width=64), checkpoint=tiny, images=[picture])
    assert verdict.status == ("pass" if where == "padding" else "fail")
    square = np.random.default_rng(0).integers(0, 256, (192, 64, 3), np.uint8)  # fills the canvas
    assert check_parity(exported(height=192, width=64), checkpoint=tiny, images=[square]).status == "fail"


def test_centred_figures_of_a_verdict(exported: Export, tiny: Checkpoint, photographs: dict[str, Path]) -> None:
    """Both photographs share a mean; one that a fixed batch repeats counts once."""
    artifact = exported(batch=3, precision="bf16")
    files = [photographs["astronaut"], photographs["coffee"]]
    found = check_parity(artifact, checkpoint=tiny, images=files).figures
    pixels = Preprocessor(128, 128)(files)
    with torch.inference_mode():
        wanted = tiny.encoder.double()(torch.from_numpy(pixels).double()).numpy()
    tiny.encoder.float()
    backend = ParityOnnxRuntime(artifact, emulate_half=True)
    error = np.square(backend.run(pixels[[0, 1, 0]])[:2] - wanted).sum(2).mean(1)
    power = np.square(wanted - wanted.mean((0, 1))).sum(2).mean()
    assert found.centred_rel_l2 == pytest.approx(np.sqrt(error.max() / power), rel=1e-2)
    assert found.centred_rel_l2 > 1.5 * found.rel_l2  # these features have a large constant part


@pytest.mark.parametrize(
    "block", ["stages.0.blocks.0", "stages.1.downsample", "stages.2.blocks.1", "stages.3.pos_emb", "stages.4.blocks.0"]
)
@pytest.mark.parametrize("bad", ["fail", "non-finite"])
def test_first_bad_layer(static: Artifact, tiny: Checkpoint, copied: Copy, block: str, bad: str) -> None:
    folder = copied(static)
    graph = onnx.load(folder / MODEL_FILE, load_external_data=False).graph
    name = next(t.name for t in graph.initializer if t.name.startswith(block + ".") and t.external_data)
    tamper(folder, name, lambda w: 1.1 * w if bad == "fail" else np.where(np.arange(w.size) == 3, np.nan, w))
    verdict = check_parity(folder, checkpoint=tiny, layers=True)
    assert (verdict.status, verdict.first_bad_layer) == (bad, block)
    assert not verdict.passed
    assert verdict.figures.finite == (bad == "fail")
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert check_parity(folder, checkpoint=tiny).status == bad


def test_overflow_in_half_precision(exported: Export, tiny: Checkpoint, copied: Copy) -> None:
    """Finite weights whose results are not: onnxruntime alone would not notice, a GPU would."""
    folder = copied(exported(precision="fp16"))
    tamper(folder, "stages.3.blocks.0.mlp.fc2.weight", lambda w: np.clip(3e5 * w, -6e4, 6e4))
    verdict = check_parity(folder, checkpoint=tiny, layers=True)
    assert (verdict.status, verdict.first_bad_layer) == ("non-finite", "stages.3.blocks.0")
    assert "overflows" not in verdict.reason  # PyTorch does not


def test_source_is_found_again(golden_dir: Path, tmp_path: Path, exported: Export, static: Artifact) -> None:
    assert check_parity(exported("llava_tiny", projector=True, batch=None, dynamic_res=True)).passed
    assert check_parity(static.path).passed  # seeded weights are made anew
    seeded = load_checkpoint(variant="tiny", seed=3)
    small = ExportOptions(height=64, width=128)
    artifact = export_onnx(seeded, tmp_path / "a", options=small, parity=False).artifact
    assert check_parity(artifact).passed


def test_other_weights_are_refused(static: Artifact, golden_dir: Path, exported: Export) -> None:
    with pytest.raises(ArtifactError, match=r"made from other weights .* than .*timm_tiny"):
        check_parity(static, checkpoint=str(golden_dir / "timm_tiny"))
    with pytest.raises(CheckpointError):
        check_parity(static, checkpoint=str(golden_dir / "absent"))


def test_another_connector_is_refused(golden_dir: Path, tmp_path: Path, exported: Export) -> None:
    """The same encoder under another language model: its sizes differ, or its weights alone."""
    for width in (48, 64):
        folder = tmp_path / f"wide-{width}"
        shutil.copytree(golden_dir / "llava_tiny", folder)
        tensors = load_file(folder / "model.safetensors")
        for name, value in tensors.items():
            if "mm_projector" in name:
                value = 1.5 * value[:width]
                tensors[name] = (value[:, :width] if name.endswith("2.weight") else value).contiguous()
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": width}))
        artifact = exported("llava_tiny", projector=True, batch=None, dynamic_res=True)
        with pytest.raises(ArtifactError, match="connector"):
            check_parity(artifact, checkpoint=str(folder))


def test_images(
    static: Artifact, dynamic: Artifact, tiny: Checkpoint, tmp_path: Path, photographs: dict[str, Path]
) -> None:
    with pytest.raises((ConfigError, ImageError)):
        check_parity(static, checkpoint=tiny, images=[])
    with pytest.raises((ConfigError, ImageError)):
        check_parity(static, checkpoint=tiny, images=tmp_path)
    for number in range(MAX_IMAGES + 2):
        shutil.copy(photographs["coffee"], tmp_path / f"{number}{photographs['coffee'].suffix}")
    assert len(check_parity(static, checkpoint=tiny, images=tmp_path).images) == MAX_IMAGES
    with photographs["coffee"].open("rb") as stream:  # compared at two sizes, and can be read once
        assert check_parity(dynamic, checkpoint=tiny, images=[stream]).passed
    array = np.zeros((70, 80, 3), np.uint8)
    assert check_parity(static, checkpoint=tiny, images=[array]).images == ["image 0"]


def test_checkpoint_that_moved_away(tmp_path: Path, golden_dir: Path) -> None:
    """The artifact remembers where its weights were; where they are now is the user's to say."""
    shutil.copy(golden_dir / "timm_tiny" / "model.safetensors", tmp_path / "old.safetensors")
    options = ExportOptions(height=128, width=128)
    artifact = export_onnx(tmp_path / "old.safetensors", tmp_path / "a", options=options, parity=False).artifact
    (tmp_path / "old.safetensors").rename(tmp_path / "new.safetensors")
    with pytest.raises(CheckpointError, match=r"was made from .*old\.safetensors.*--checkpoint"):
        check_parity(artifact)
    assert check_parity(artifact, checkpoint=str(tmp_path / "new.safetensors")).passed
