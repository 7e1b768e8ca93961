"""Loading takes the memory of the encoder, whatever else the file holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.forms import timm_to_apple
from fvexport.encoder.config import FastViTHDConfig
from fvexport.encoder.fastvithd import FastViTHD

CONFIG = FastViTHDConfig(depths=(1, 1, 2, 2, 2), dims=(48, 96, 192, 384, 768))
LIMIT = 1.3

# Peak resident memory since the imports, pages of mapped files included; VmHWM is of this process alone.
MEASURE = """
import json, sys
from fvexport.encoder.checkpoint import load_checkpoint

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
base = status("VmRSS")
info = load_checkpoint(sys.argv[1]).info
print(json.dumps({"peak": status("VmHWM") - base, "sha256": info.sha256}))
"""


@pytest.fixture(scope="module")
def encoder() -> FastViTHD:
    with torch.device("meta"):
        model = FastViTHD(CONFIG, form="released")
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.zero_()
    return model


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_peak_memory(tmp_path: Path, encoder: FastViTHD, suffix: str) -> None:
    prefix = "model.vision_tower.vision_tower.model."
    tensors = {prefix + timm_to_apple(name): tensor for name, tensor in encoder.state_dict().items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert 60e6 < size < 100e6
    language = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(2500, 3000) for i in range(10)}  # 300 MB
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(tensors | language, file)
    assert file.stat().st_size > 350e6

    command = [sys.executable, "-c", MEASURE, str(file)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    file.unlink()
    assert found["peak"] < LIMIT * size, f"{found['peak'] / size:.2f} times the encoder"
    assert found["peak"] > size  # else nothing was measured


def test_reading_in_pieces_loses_nothing(tmp_path: Path, encoder: FastViTHD) -> None:
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")  # ten times one piece
    loaded = load_checkpoint(tmp_path).encoder.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in encoder.state_dict().items())
