"""FP8 artifacts read back from their ONNX files, run eagerly and on the kernels, and judged."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.core.errors import ArtifactError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export import prepare as preparing
from fvexport.export.artifact import MANIFEST_FILE, MODEL_FILE, Artifact
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import ExportReport, export_onnx
from fvexport.export.parity import check_parity
from fvexport.export.prepare import Prepared
from fvexport.export.quantized_module import quantized_module
from fvexport.export.runtime import Encoder, OnnxRuntimeBackend, PyTorchBackend
from fvexport.kernels import policy

Made = Callable[[str], ExportReport]
Distance = Callable[[Any, Any], float]
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `triton` run where there is no GPU: its operators compute in PyTorch then, without a CUDA graph."""
    monkeypatch.setattr("fvexport.export.runtime.pytorch_backend.require", lambda row: None)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplies every quantized layer in FP8: the tiny model has no ConvFFN of 384 channels."""
    monkeypatch.setattr(policy, "ROWS", tuple(replace(row, min_channels=0) for row in policy.ROWS))


@pytest.fixture(scope="module")
def pixels(photographs: dict[str, Path]) -> np.ndarray:
    return Preprocessor(128, 128)(photographs["coffee"])


def grown(checkpoint: Checkpoint) -> Checkpoint:
    """The same function, but stage 4's stream and one hidden tensor of stage 5 pass FP16's end by far."""
    encoder = reparameterize(checkpoint.encoder)
    stage, block, mlp = encoder.stages[3], encoder.stages[3].blocks[0], encoder.get_submodule("stages.4.blocks.0.mlp")
    with torch.no_grad():
        for part in (stage.pos_emb.reparam_conv, block.token_mixer.proj, block.mlp.fc2):
            part.weight *= 2.0**17
            part.bias *= 2.0**17
        block.norm.eps *= 4.0**17
        for reader in (block.mlp.conv, encoder.stages[4].downsample.proj[0].reparam_conv):
            reader.weight /= 2.0**17
        mlp.fc1.weight *= 1e6
        mlp.fc2.weight /= 1e6
    return replace(checkpoint, encoder=encoder, info=replace(checkpoint.info, sha256=weights_sha256(encoder)))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "uint8, any size, as traced": ({"input": "uint8", "batch": None, "dynamic_res": True, "simplify": False}, {}),
    "layers in float": ({}, {"min_sqnr": 27.5}),
    "layers in float, as traced": ({"simplify": False}, {"min_sqnr": 27.5}),
    "inside FP16": ({}, {}),
    "attention plugin": ({"attention_plugin": True}, {}),
}


@pytest.fixture(scope="module")
def exported(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Artifact, FastViTHD]]:
    """`exported(case)`: an artifact, and the module that was exported, in the dtype of the file and back."""
    found: dict[str, tuple[Artifact, FastViTHD]] = {}

    def export(case: str) -> tuple[Artifact, FastViTHD]:
        if case not in found:
            options, calibration = CASES[case]
            kept: list[Prepared] = []
            own = preparing.prepare

            def keeping(*args: Any) -> Prepared:
                kept.append(own(*args))
                return replace(kept[0], encoder=copy.deepcopy(kept[0].encoder))

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fvexport.export.onnx_export.prepare", keeping)
                report = export_onnx(
                    grown(tiny) if case == "inside FP16" else tiny, tmp_path_factory.mktemp("fp8") / "made",
                    options=ExportOptions(height=128, width=128, precision="fp8", **options),
                    calibration=CalibrationOptions(samples=4, **calibration), parity=False,
                )  # fmt: skip
            found[case] = report.artifact, kept[0].encoder.half().float()
        return found[case]

    return export


@pytest.mark.parametrize("case", list(CASES))
def test_it_is_the_module_that_was_exported(
    exported: Callable[..., tuple[Artifact, FastViTHD]], distance: Distance, case: str
) -> None:
    """To the last bit: every weight, scale and epsilon, of quantized layers and all others."""
    artifact, wanted = exported(case)
    found = quantized_module(artifact)
    record = artifact.manifest.quantization
    assert bool(record.kept_float) == ("in float" in case) and bool(artifact.manifest.fp16) == (case == "inside FP16")
    have, want = found.state_dict(), wanted.state_dict()
    assert have.keys() == want.keys()
    for name, value in want.items():
        assert have[name].dtype == value.dtype and torch.equal(have[name].float(), value.float()), name
    norms = [[m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)] for model in (found, wanted)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6) and len(norms[0]) == 2
    levels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = levels if found.uint8_input else levels.float() / 255
    with torch.inference_mode():
        assert distance(found(x), wanted(x)) < 1e-3  # layouts differ, and so the order of sums


@pytest.mark.usefixtures("without_gpu", "everywhere")
@pytest.mark.parametrize("case", ["plain", "layers in float", "inside FP16"])
def test_kernels_compute_what_the_module_does(
    exported: Callable[..., tuple[Artifact, FastViTHD]], pixels: np.ndarray, distance: Distance, case: str
) -> None:
    """On the CPU in float32. No checkpoint is asked for: the file has all."""
    artifact, module = exported(case)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(pixels))
    backend = PyTorchBackend(artifact, "triton", checkpoint="nowhere")
    assert distance(backend.run(pixels), wanted) < 1e-3
    assert distance(PyTorchBackend(artifact, "eager").run(pixels), wanted) < 1e-5
    total = len(artifact.manifest.quantization.quantized)
    assert backend.computes.endswith(f"Triton kernels, {total} of {total} quantized layers in FP8")


@pytest.mark.usefixtures("without_gpu")
def test_verdict(made: Made, photographs: dict[str, Path]) -> None:
    """Its narrow layers take inputs that are not rounded, and the backend says so."""
    artifact, golden = made("fp8, projector").artifact, load_checkpoint(GOLDEN / "llava_tiny")
    verdict = check_parity(artifact, checkpoint=golden, backend="triton")
    assert verdict.passed, verdict.reason
    assert "Triton kernels, 4 of 16 quantized layers in FP8, the others with FP8 weights" in verdict.backend
    eager = check_parity(artifact, checkpoint=golden, backend="eager", layers=True)
    assert eager.passed and eager.first_bad_layer is None and len(eager.layers) == 16
    assert verdict.figures.rel_l2 < 1.41 * eager.figures.rel_l2
    assert Encoder(artifact, backend="triton", checkpoint=golden)(photographs["coffee"]).shape == (1, 4, 64)


@pytest.mark.usefixtures("without_gpu", "everywhere")
def test_verdict_with_every_layer_in_fp8(made: Made) -> None:
    golden = load_checkpoint(GOLDEN / "llava_tiny")
    verdict = check_parity(made("fp8, projector").artifact, checkpoint=golden, backend="triton")
    assert verdict.passed and "16 of 16 quantized layers in FP8" in verdict.backend


def test_as_near_as_onnxruntime(
    exported: Callable[..., tuple[Artifact, FastViTHD]], tiny: Checkpoint, pixels: np.ndarray, distance: Distance
) -> None:
    artifact, _ = exported("plain")
    with torch.inference_mode():
        wanted = tiny.encoder(torch.from_numpy(pixels))
    theirs = distance(OnnxRuntimeBackend(artifact).run(pixels), wanted)
    assert distance(PyTorchBackend(artifact, "eager").run(pixels), wanted) < 1.41 * theirs


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_a_gpu_without_fp8_is_refused(
    exported: Callable[..., tuple[Artifact, FastViTHD]], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    artifact, _ = exported("plain")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with pytest.raises(UnavailableError, match=rf"need compute capability 8\.9 .*a GPU has 8\.{capability[1]}: export"):
        Encoder(artifact, backend="triton")


@pytest.mark.usefixtures("without_gpu")
def test_int8_is_refused(made: Made) -> None:
    with pytest.raises(UnavailableError, match=r"triton runs fp32, fp16, bf16, fp8; .* is int8"):
        PyTorchBackend(made("tensorrt").artifact, "triton")


def test_files_of_another_make(exported: Callable[..., tuple[Artifact, FastViTHD]], tmp_path: Path) -> None:
    artifact, _ = exported("plain")

    def damaged(change: Callable[[Any], None], manifest: Callable[[dict[str, Any]], None]) -> Artifact:
        folder = Path(shutil.copytree(artifact.path, tmp_path / "copy", dirs_exist_ok=True))
        model = onnx.load(folder / MODEL_FILE, load_external_data=False)
        change(model.graph)
        (folder / MODEL_FILE).write_bytes(model.SerializeToString())
        content = json.loads((folder / MANIFEST_FILE).read_text())
        manifest(content)
        content["files"][MODEL_FILE]["bytes"] = (folder / MODEL_FILE).stat().st_size
        (folder / MANIFEST_FILE).write_text(json.dumps(content))
        return Artifact.open(folder)

    def renamed(graph: Any) -> None:
        next(n for n in graph.node if n.name == "stages.2.blocks.0.mlp.fc1/Conv").name = "another"

    def computed(graph: Any) -> None:
        next(n for n in graph.node if n.name == "stages.2.blocks.0.mlp.conv/Conv").input[1] = "pixel_values"

    def other_layer(graph: Any) -> None:
        node = next(n for n in graph.node if n.name == "stages.2.blocks.0.mlp.fc1/Conv")
        node.input[1] = next(n for n in graph.node if n.name == "stages.1.blocks.0.mlp.fc1/Conv").input[1]

    for change, words in (
        (renamed, "no node stages.2.blocks.0.mlp.fc1/Conv"),
        (computed, "pixel_values is not a constant"),
        (other_layer, r"stages.2.blocks.0.mlp.fc1 has a weight \(64, 16, 1, 1\)"),
    ):
        with pytest.raises(ArtifactError, match=words):
            quantized_module(damaged(change, lambda content: None))
    with pytest.raises(ArtifactError, match=r"other layers than its manifest says \(stages.0.blocks.0.mlp.fc1\)"):
        quantized_module(damaged(lambda graph: None, lambda content: content["quantization"]["quantized"].pop(0)))
