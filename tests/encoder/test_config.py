"""The architecture as data: derived sizes, refusals, and the way to JSON and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.core.errors import ConfigError
from fvexport.core.records import plain
from fvexport.encoder.config import MAX_SIDE, VARIANTS, ConnectorConfig, FastViTHDConfig, get_variant, variant_name

PUBLISHED_TOKENS = {256: 16, 512: 64, 768: 144, 1024: 256, 1536: 576, 2048: 1024}


def test_released_architecture() -> None:
    config = FastViTHDConfig()
    assert config.strides == (4, 8, 16, 32, 64)
    assert config.stride == 64
    assert config.out_channels == 3072
    assert config.se_channels == 192
    assert [config.num_heads(stage) for stage in (3, 4)] == [24, 48]
    assert {side: config.tokens(side, side) for side in PUBLISHED_TOKENS} == PUBLISHED_TOKENS
    assert config.tokens(512, 384) == 48
    assert config.stage_resolutions(512, 384) == ((128, 96), (64, 48), (32, 24), (16, 12), (8, 6))


@given(st.integers(1, MAX_SIDE // 64), st.integers(1, MAX_SIDE // 64))
def test_tokens_are_the_last_stage(rows: int, columns: int) -> None:
    config = FastViTHDConfig()
    height, width = config.stage_resolutions(64 * rows, 64 * columns)[-1]
    assert config.tokens(64 * rows, 64 * columns) == height * width == rows * columns


@given(st.integers(-100, MAX_SIDE + 200), st.integers(-100, MAX_SIDE + 200))
def test_resolution_is_accepted_or_refused(height: int, width: int) -> None:
    fits = all(64 <= side <= MAX_SIDE and side % 64 == 0 for side in (height, width))
    if fits:
        FastViTHDConfig().check_resolution(height, width)
    else:
        with pytest.raises(ConfigError, match=f"{height}x{width}"):
            FastViTHDConfig().check_resolution(height, width)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1000, 1000), "--res 1024"),
        ((500, 384), "--res 512x384"),
        ((65, 70), "--res 64"),
        ((8191, 8191), "--res 8192"),
        ((0, 0), "from 64 to 8192"),
        ((99999, 99999), "from 64 to 8192"),
        ((63, 64), "from 64 to 8192"),
    ],
)
def test_refused_resolution_names_the_mend(size: tuple[int, int], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FastViTHDConfig().check_resolution(*size)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depths": (1, 1, 1)}, "5 stages"),
        ({"dims": (8, 16)}, "5 stages"),
        ({"depths": (1, 1, 0, 1, 1)}, "positive"),
        ({"dims": (0, 0, 0, 0, 0)}, "positive"),
        ({"dims": (8, 16, 24, 64, 128)}, "multiple of the one before"),
        ({"dims": (8, 16, 16, 48, 96)}, "head_dim 32"),
        ({"head_dim": 0}, "positive"),
        ({"head_dim": -32}, "positive"),
        ({"mlp_ratio": 0}, "positive"),
        ({"se_ratio": 0}, "positive"),
    ],
)
def test_impossible_architectures(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FastViTHDConfig(**change)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_dict_round_trip(config: FastViTHDConfig) -> None:
    again = FastViTHDConfig.from_dict(json.loads(json.dumps(plain(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert VARIANTS[variant_name(again)] is config


def test_from_dict_refuses_other_keys() -> None:
    data = plain(FastViTHDConfig())
    with pytest.raises(ConfigError, match="window"):
        FastViTHDConfig.from_dict({**data, "window": 7})
    for key in data:
        with pytest.raises(ConfigError, match=f"{key} missing"):
            FastViTHDConfig.from_dict({k: v for k, v in data.items() if k != key})


def test_variant_names() -> None:
    assert get_variant("fastvithd") == FastViTHDConfig()
    assert variant_name(FastViTHDConfig(depths=(1, 1, 1, 1, 1))) == "custom"
    with pytest.raises(ConfigError, match="did you mean 'fastvithd'"):
        get_variant("fastvit_hd")
    with pytest.raises(ConfigError, match="known are fastvithd, tiny"):
        get_variant("xyzzy")


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp10x_gelu", 10)])
def test_connector_layers(kind: str, layers: int) -> None:
    assert ConnectorConfig(kind=kind).num_layers == layers
    assert ConnectorConfig("identity", 64, 64).num_layers == 0


@pytest.mark.parametrize(
    "kind", ["", "mlp", "mlpx_gelu", "mlp0x_gelu", "mlp-1x_gelu", "mlp2x_relu", "mlp²x_gelu", "MLP"]
)
def test_unknown_connectors(kind: str) -> None:
    with pytest.raises(ConfigError, match="unknown connector"):
        ConnectorConfig(kind=kind)


def test_identity_connector_keeps_the_width() -> None:
    with pytest.raises(ConfigError, match="3072 to 896"):
        ConnectorConfig("identity")


def test_config_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'torch', 'numpy', 'onnx', 'PIL'} & {*sys.modules}"
    code = f"import sys; import fvexport.encoder.config, fvexport.export.export_options; assert not {heavy}, {heavy}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
