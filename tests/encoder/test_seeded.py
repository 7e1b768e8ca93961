"""Seeded weights: the same everywhere, of order one throughout, and every tensor counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fvexport.core.errors import ConfigError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.config import get_variant
from fvexport.encoder.fastvithd import FastViTHD, LayerScale
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.seeded import seed_weights

SHA256 = "6c9a085a7eec6a6bb58a72854a20b50335cb108a3fc5ccbfe7a93de4b5e9a794"
"""Of the tiny model's seed 0. Artifacts remember it: other values for the same seed would orphan them."""


@pytest.fixture(scope="module")
def full() -> FastViTHD:
    return load_checkpoint().encoder


@pytest.fixture(scope="module")
def photograph(photographs: dict[str, Path]) -> Tensor:
    return torch.from_numpy(Preprocessor(256, 256)([photographs["astronaut"]]))


@pytest.mark.parametrize(("threads", "hash_seed"), [("1", "1"), ("2", "77")])
def test_same_in_every_process(tmp_path: Path, threads: str, hash_seed: str) -> None:
    code = (
        f"import torch; torch.set_num_threads({threads}); torch.manual_seed({hash_seed}); "
        "from fvexport.encoder import load_checkpoint as load; print(load(variant='tiny').info.sha256)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert result.stdout.strip() == SHA256


def test_seed_and_name_choose_the_values() -> None:
    assert load_checkpoint(variant="tiny", seed=1).info.sha256 != SHA256
    assert load_checkpoint(variant="tiny", seed=0).info.sha256 == SHA256
    model = FastViTHD(get_variant("tiny"))
    seed_weights(model, 0)
    weights = [p for n, p in model.named_parameters() if n.endswith("mlp.fc1.weight")]
    assert len({w.flatten()[:9].sum().item() for w in weights}) == len(weights)  # no two streams are one


def test_global_random_stream_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_checkpoint(variant="tiny", seed=9)
    assert torch.equal(torch.rand(3), wanted)


def test_negative_seed() -> None:
    with pytest.raises(ConfigError, match="found -1"):
        load_checkpoint(variant="tiny", seed=-1)


@torch.inference_mode()
def test_activations_stay_of_order_one(full: FastViTHD, photograph: Tensor) -> None:
    found: dict[str, float] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, y, name=name: found.__setitem__(name, y.square().mean().sqrt().item())
        )
        for name, module in full.named_blocks()
    ]
    full(photograph)
    for handle in handles:
        handle.remove()
    assert len(found) == 54
    assert min(found.values()) > 0.1, found
    assert max(found.values()) < 10, found


def change(model: FastViTHD, x: Tensor, wanted: Tensor) -> float:
    return float((model(x) - wanted).norm() / wanted.norm())


@torch.inference_mode()
def test_every_branch_of_every_block_counts(full: FastViTHD, photograph: Tensor) -> None:
    """Each layer scale guards one residual branch: without it the block's output must move far beyond any tolerance."""
    lost: dict[str, float] = {}

    def without_each(name: str, block: nn.Module, x: Tensor, wanted: Tensor) -> None:
        for part, module in block.named_modules():
            if isinstance(module, LayerScale):
                kept = module.gamma.clone()
                module.gamma.zero_()
                lost[f"{name}.{part}"] = float((block.forward(x) - wanted).norm() / wanted.norm())
                module.gamma.copy_(kept)

    handles = [
        block.register_forward_hook(lambda module, x, y, name=name: without_each(name, module, x[0], y))
        for name, block in full.named_blocks()
    ]
    full(photograph[:, :, :128, 64:192])
    for handle in handles:
        handle.remove()
    assert len(lost) == 2 * (2 + 12 + 24) + 2 * (4 + 2)
    assert min(lost.values()) > 0.03, min(lost, key=lost.__getitem__)


@torch.inference_mode()
def test_attention_looks_somewhere(full: FastViTHD, photograph: Tensor) -> None:
    wanted = full(photograph)
    for block in (full.stages[3].blocks[0], full.stages[4].blocks[1]):
        attention = block.token_mixer
        scale, attention.scale = attention.scale, 0.0  # every position alike
        moved = change(full, photograph, wanted)
        attention.scale = scale
        assert moved > 1e-3


@torch.inference_mode()
def test_squeeze_excite_gates_differ(full: FastViTHD, photograph: Tensor) -> None:
    gates: list[Tensor] = []
    handle = full.final_conv.se.fc2.register_forward_hook(lambda _m, _i, y: gates.append(y.sigmoid()))
    full(photograph)
    handle.remove()
    assert gates[0].std() > 0.1
    assert 0.2 < gates[0].mean() < 0.8
