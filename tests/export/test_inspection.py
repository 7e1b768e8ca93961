"""What an artifact costs, against PyTorch's own counts and the paper's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fvexport.core.errors import ArtifactError
from fvexport.encoder import VARIANTS, FastViTHD, load_checkpoint, reparameterize
from fvexport.export.export_options import ExportOptions
from fvexport.export.inspection import inspect_artifact
from fvexport.export.manifest import TensorSpec
from fvexport.export.onnx_export import export_onnx

NAMES = ["stem", *(f"stage {i}" for i in range(1, 6)), "final_conv"]


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "dynamic"
    options = ExportOptions(height=192, width=128, batch=None, dynamic_res=True, precision="fp16", projector=True)
    export_onnx(None, folder, options=options, variant="tiny", parity=False)
    return folder


def counted_gmacs(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Multiply-adds by PyTorch's counter, attention spelled out so that it is seen."""

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    own = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = plain
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(x)
    finally:
        torch.nn.functional.scaled_dot_product_attention = own
    return counter.get_total_flops() / 2e9


def test_dynamic_file_against_pytorch(dynamic: Path) -> None:
    found = inspect_artifact(dynamic)
    assert [stage.name for stage in found.stages] == [*NAMES, "connector"]
    assert found.resolution == (192, 128) and found.tokens == 6 and found.precision == "fp16"
    assert found.inputs == [TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, "height", "width"))]
    assert found.outputs == [TensorSpec(name="image_features", dtype="float32", shape=("batch", "tokens", 64))]
    assert found.nodes == sum(found.ops.values()) == sum(stage.nodes for stage in found.stages)
    assert found.files["encoder.onnx"] == (dynamic / "encoder.onnx").stat().st_size

    checkpoint = load_checkpoint(None, variant="tiny")
    fused, connector = reparameterize(checkpoint.encoder), reparameterize(checkpoint.connector)
    x = torch.rand(1, 3, 192, 128)
    assert found.gmacs == pytest.approx(counted_gmacs(torch.nn.Sequential(fused, connector), x), rel=1e-6)
    weights = sum(p.numel() for module in (fused, connector) for p in module.parameters())
    # The graph spells out LayerNorm's scale of ones, which the module does not keep.
    assert found.parameters == pytest.approx(weights, rel=1e-3)


def test_activations_of_the_stem(dynamic: Path) -> None:
    """Input cast, then three convolutions with a GELU each: one at half the size, two at a quarter; 2 bytes each."""
    stem = inspect_artifact(dynamic).stages[0]
    channels, pixels = VARIANTS["tiny"].dims[0], 192 * 128
    assert stem.activation_bytes == 2 * (3 * pixels + channels * (2 * pixels // 4 + 4 * pixels // 16))
    assert stem.nodes == 7
    assert stem.parameters == channels * (27 + 9 + channels) + 3 * channels


def test_fixed_batch_counts_one_image(tmp_path: Path, dynamic: Path) -> None:
    options = ExportOptions(height=192, width=128, batch=2, precision="fp16", projector=True)
    export_onnx(None, tmp_path / "two", options=options, variant="tiny", parity=False)
    one, two = inspect_artifact(dynamic), inspect_artifact(tmp_path / "two")
    assert two.inputs[0].shape == (2, 3, 192, 128)
    assert [(s.name, s.parameters) for s in one.stages] == [(s.name, s.parameters) for s in two.stages]
    assert [s.gmacs for s in one.stages] == pytest.approx([s.gmacs for s in two.stages])
    # Dynamic files also hold a few sizes, 8 bytes each.
    assert two.activation_bytes == pytest.approx(one.activation_bytes, rel=1e-3)


@pytest.mark.slow
def test_the_released_size(tmp_path: Path) -> None:
    export_onnx(None, tmp_path / "full", options=ExportOptions(height=256, width=256), parity=False)
    found = inspect_artifact(tmp_path / "full")
    assert found.gmacs == pytest.approx(14.8, abs=0.05)
    assert found.parameters == pytest.approx(122.7e6, abs=0.05e6)
    assert found.tokens == 16 and found.opset == 20
    assert [stage.name for stage in found.stages] == NAMES
    with torch.device("meta"):
        model = FastViTHD(VARIANTS["fastvithd"], form="fused")
    assert found.gmacs == pytest.approx(counted_gmacs(model, torch.empty(1, 3, 256, 256, device="meta")), rel=1e-6)
    assert math.isclose(found.parameters, sum(p.numel() for p in model.parameters()), rel_tol=1e-4)


def test_plain_data(dynamic: Path) -> None:
    data = inspect_artifact(dynamic).to_dict()
    assert json.loads(json.dumps(data)) == data
    with pytest.raises(ArtifactError, match="no artifact"):
        inspect_artifact(dynamic / "nowhere")
