"""Golden checkpoints as tensors by name, and ways to write them as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """For every test of this folder."""


@pytest.fixture
def llava(golden: Callable[[str], Tensors]) -> Tensors:
    return golden("llava_tiny")


@pytest.fixture
def timm(golden: Callable[[str], Tensors]) -> Tensors:
    return golden("timm_tiny")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(tensors, config={…}, name="model.safetensors")`: a folder in that layout."""

    def to_folder(
        tensors: Mapping[str, Any], *, config: Any = None, name: str = "model.safetensors", folder: str = "checkpoint"
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        if config is not None:
            (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if name.endswith(".safetensors"):
            save_file({n: t.contiguous() for n, t in tensors.items()}, path / name)
        else:
            torch.save(dict(tensors), path / name)
        return path

    return to_folder


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[[list[Tensors]], Path]:
    """One safetensors shard per dict, and their index."""

    def to_folder(shards: list[Tensors]) -> Path:
        path = tmp_path / "sharded"
        path.mkdir(exist_ok=True)
        weight_map = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file({n: t.contiguous() for n, t in shard.items()}, path / name)
            weight_map |= dict.fromkeys(shard, name)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return to_folder
