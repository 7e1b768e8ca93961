"""The table of layers: every layer of the model stands in it once, and what must stay float does."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import nn

from fvexport.calibration.policy import QUANT_TARGETS, ROWS, SCHEMES, Policy, row_of
from fvexport.core.errors import ConfigError
from fvexport.encoder.config import VARIANTS
from fvexport.encoder.fastvithd import Attention, ConvFFN, FastViTHD, SqueezeExcite


@pytest.fixture(scope="module", params=list(VARIANTS))
def modules(request: pytest.FixtureRequest) -> dict[str, nn.Module]:
    import torch

    with torch.device("meta"):
        return dict(FastViTHD(VARIANTS[request.param], form="fused").named_modules())


def test_each_layer_has_one_row(modules: dict[str, nn.Module]) -> None:
    layers = [name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)]
    for name in layers:
        assert [row.kind for row in ROWS if row.matches(name)] == [row_of(name).kind], name
    assert {row_of(name).kind for name in layers} == {row.kind for row in ROWS}, "a row that matches nothing"


@pytest.mark.parametrize("target", QUANT_TARGETS)
def test_what_is_quantized(modules: dict[str, nn.Module], target: str) -> None:
    """The pointwise layers of each ConvFFN and the products of each attention; outputs where onnxruntime needs them."""
    policy = Policy(target)
    ffn = {f"{name}.{fc}" for name, m in modules.items() if isinstance(m, ConvFFN) for fc in ("fc1", "fc2")}
    products = {f"{name}.{p}" for name, m in modules.items() if isinstance(m, Attention) for p in ("qkv", "proj")}
    assert {name for name in modules if policy.quantizes(name)} == ffn | products
    outputs = {name for name in modules if policy.quantizes_output(name)}
    assert outputs == (ffn if target == "onnxruntime-cpu" else set())


@pytest.mark.parametrize("target", QUANT_TARGETS)
def test_never(modules: dict[str, nn.Module], target: str) -> None:
    """GELU, softmax (attention as a whole), LayerNorm, squeeze-excite, depthwise and grouped convolutions."""
    inside = {
        f"{name}.{part}" for name, m in modules.items() if isinstance(m, SqueezeExcite) for part in ("fc1", "fc2")
    }
    assert inside
    for name, module in modules.items():
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1
        if name in inside or grouped or not isinstance(module, nn.Conv2d | nn.Linear):
            assert not Policy(target).quantizes(name) and not Policy(target).quantizes_output(name), name
        if not isinstance(module, nn.Conv2d | nn.Linear):
            assert row_of(name) is None, name


def test_kept_in_float() -> None:
    name = "stages.0.blocks.0.mlp.fc1"
    policy = Policy("onnxruntime-cpu", keep=frozenset({name}))
    assert not policy.quantizes(name) and not policy.quantizes_output(name)
    assert policy.quantizes("stages.0.blocks.0.mlp.fc2")


def test_names_of_other_modules() -> None:
    """Names that only look alike match no row."""
    for name in ("", "mlp.fc1", "stages.0.blocks.0.mlp.fc1.weight", "stages.3.blocks.0.token_mixer", "xstem.2"):
        assert row_of(name) is None, name


def test_schemes() -> None:
    assert set(SCHEMES) == set(QUANT_TARGETS)
    assert Policy("tensorrt").scheme.symmetric and Policy("tensorrt").scheme.float_precision == "fp16"
    assert not Policy("openvino").scheme.symmetric


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tensorrtx", ["'tensorrtx'", "did you mean 'tensorrt'?"]),
        ("onnxruntime", ["did you mean 'onnxruntime-cpu'?"]),
        ("vino", ["did you mean 'openvino'?"]),
        ("zzz", ["known are tensorrt, onnxruntime-cpu, openvino"]),
    ],
)
def test_unknown_targets(name: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy(name)  # type: ignore[arg-type]
    assert all(part in str(caught.value) for part in parts)


def test_fp8_is_for_tensorrt() -> None:
    assert Policy("tensorrt", "fp8").fmt == "fp8"
    for target in ("onnxruntime-cpu", "openvino"):
        with pytest.raises(ConfigError, match=f"FP8 runs on TensorRT alone.*{target}.*--int8"):
            Policy(target, "fp8")


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_a_reduced_range_is_for_cpus(fmt: Literal["int8", "fp8"]) -> None:
    with pytest.raises(ConfigError, match=r"--reduce-range is for INT8 on CPUs.*found --target tensorrt"):
        Policy("tensorrt", fmt, reduce_range=True)
    assert Policy("openvino", reduce_range=True).reduce_range
