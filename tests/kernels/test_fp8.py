"""FP8 operators where no kernel runs, and models quantized for FP8; the interpreter has both in `interpreted/`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration.qdq import QuantizedConv, QuantizedLinear, quantize
from fvexport.core.errors import ConfigError
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.float32 import InFloat32
from fvexport.kernels import policy, scaled_mm
from fvexport.kernels.accelerate import accelerate
from fvexport.kernels.attention import attention, attention_reference
from fvexport.kernels.dispatch import DEFAULTS
from fvexport.kernels.fp8 import FP8, End, fp8_reference
from fvexport.kernels.fp8_layers import Fp8Product, count_fp8_layers
from fvexport.kernels.linear_fp8 import linear_fp8, linear_fp8_reference
from fvexport.kernels.norm_fp8 import norm_fp8, norm_fp8_reference
from fvexport.kernels.quantize_fp8 import quantize_fp8, quantize_fp8_reference

Quantized = Callable[..., FastViTHD]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def tensors(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, weight = (torch.randn(2, 5, 32) * 50).to(FP8), (torch.randn(12, 32) * 50).to(FP8)
    return x, weight, torch.rand(12) * 1e-4 + 1e-5, torch.randn(12).to(dtype)


# --- operators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.0123, 64.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounds_as_the_quantized_model_does(scale: float, dtype: torch.dtype) -> None:
    """`calibration.qdq` computes what ONNX's QuantizeLinear is defined to compute."""
    x = torch.cat([torch.linspace(-600, 600, 999), torch.tensor([0.0, 1e-3, torch.inf, torch.nan])]).to(dtype) * scale
    wanted = quantize(x, torch.tensor(scale, dtype=torch.float64).to(dtype), torch.tensor(0.0).to(FP8))
    found = fp8_reference(x, float(torch.tensor(scale).to(dtype)))
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("kernel", [True, "linear_fp8", "scaled_mm", False, None])
@pytest.mark.parametrize("end", [End(), End(gelu=True, out_scale=0.01), End(residual=torch.ones(2, 5, 12).half())])
def test_pytorch_where_no_kernel_runs(kernel: Any, end: End) -> None:
    found = linear_fp8(*tensors(), end, kernel=kernel)
    wanted = linear_fp8_reference(*tensors(), end)
    assert found.dtype == (torch.float16 if end.out_scale is None else FP8) and found.is_contiguous()
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=0)


def test_the_reference_is_the_product_of_what_the_numbers_stand_for() -> None:
    x, weight, scale, bias = tensors(torch.float64)
    wanted = torch.nn.functional.linear(x.double(), weight.double() * scale.double()[:, None], bias)
    assert relative(linear_fp8_reference(x, weight, scale.double(), bias), wanted) < 1e-12


def test_other_operators() -> None:
    x = torch.randn(3, 4, 16).half()
    gain, shift = torch.randn(16).half(), torch.randn(16).half()
    pairs = (
        (quantize_fp8(x, 0.01), quantize_fp8_reference(x, 0.01)),
        (quantize_fp8(x, 0.01, gelu=True, kernel=None), quantize_fp8_reference(x, 0.01, True)),
        (norm_fp8(x, gain, shift, 0.02), norm_fp8_reference(x, gain, shift, 0.02)),
        (norm_fp8(x, None, None, 0.02, kernel=None), norm_fp8_reference(x, None, None, 0.02)),
        (attention(torch.randn(2, 5, 192), 2, out_scale=0.01), attention_reference),
    )
    for found, wanted in pairs[:-1]:
        assert isinstance(wanted, Tensor) and torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
    assert pairs[-1][0].dtype == FP8 and pairs[-1][0].shape == (2, 5, 64)


def test_empty_batches_stay_empty() -> None:
    x, weight, scale, bias = tensors()
    assert linear_fp8(x[:0], weight, scale, bias).shape == (0, 5, 12)
    assert quantize_fp8(torch.empty(0, 7), 0.1).shape == (0, 7)
    assert norm_fp8(torch.empty(0, 7), None, None, 0.1).shape == (0, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, w, s, b: (x.half(), w, s, b), "x and weight in float8_e4m3fn; found float16, float8_e4m3fn"),
        (lambda x, w, s, b: (x, w, s[:3], b), "one float32 scale per output"),
        (lambda x, w, s, b: (x, w, s.half(), b), "one float32 scale per output"),
        (lambda x, w, s, b: (x, w[:, :5], s, b), r"takes x \(..., K\)"),
        (lambda x, w, s, b: (x, w, s, b, End(residual=torch.ones(2, 5, 12))), "one floating dtype; found float16, flo"),
        (lambda x, w, s, b: (x, w, s, b, End(residual=torch.ones(2, 5, 3).half())), r"residual \(..., N\); found"),
        (lambda x, w, s, b: (x, w, s, b, End(out_scale=0.0)), "positive, finite scale; found 0.0"),
        (lambda x, w, s, b: (x, w, s, b.requires_grad_()), "has no gradient"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable[..., tuple[Any, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=f"linear_fp8.*{words}"):
        linear_fp8(*change(*tensors()))


def test_refusals_of_the_others() -> None:
    x = torch.randn(3, 16)
    for call in (
        lambda: quantize_fp8(x, -1.0), lambda: quantize_fp8(x.int(), 1.0), lambda: norm_fp8(x, x, None, 1.0),
        lambda: norm_fp8(x, x[0].half(), None, 1.0), lambda: norm_fp8(x, None, None, float("nan")),
        lambda: attention(torch.randn(1, 3, 96), 1, out_scale=float("inf")),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"takes .*found"):
            call()


def test_registration() -> None:
    """PyTorch's own check of the schemas and of the fake implementations, with sizes as symbols too."""
    x, weight, scale, bias = tensors()
    ops = torch.ops.fvexport
    half = torch.randn(3, 16).half()
    both = ("test_schema", "test_faketensor")
    fake = both[1:]  # PyTorch's check of a schema multiplies the inputs, which FP8 has no multiplication for
    for checks, op, args in (
        (fake, ops.linear_fp8, (x, weight, scale, bias, None, True, 0.1, False, 0)),
        (fake, ops.linear_fp8, (x, weight, scale, bias, torch.ones(2, 5, 12).half(), False, None, False, 0)),
        (both, ops.quantize_fp8, (half, 0.1, False, 0)),
        (both, ops.norm_fp8, (half, half[0], None, 0.1, 1e-5, 0)),
        (both, ops.attention, (torch.randn(2, 5, 192), 2, 0.1, 0)),
    ):
        torch.library.opcheck(op.default, args, test_utils=checks)


# --- cuBLAS ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [End(), End(gelu=True, out_scale=0.02), End(residual=torch.ones(2, 16, 32).bfloat16())])
def test_scaled_mm_computes_the_same(end: End) -> None:
    """`torch._scaled_mm` runs on a CPU too, with the same arguments."""
    torch.manual_seed(0)
    x, weight = (torch.randn(2, 16, 64) * 50).to(FP8), (torch.randn(32, 64) * 50).to(FP8)
    scale, bias = torch.rand(32) * 1e-4 + 1e-5, torch.randn(32).bfloat16()
    found = scaled_mm.launch_scaled_mm(x, weight, scale, bias, end)
    wanted = linear_fp8_reference(x, weight, scale, bias, end)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert relative(found.float(), wanted.float()) < 1e-2  # bfloat16's rounding, before what follows too


def test_where_scaled_mm_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    class There:
        def __init__(self, *shape: int, dtype: torch.dtype = FP8, device: str = "cuda:0") -> None:
            self.shape, self.dtype, self.device = shape, dtype, torch.device(device)

    def fits(dtype: torch.dtype, capability: tuple[int, int], n: int = 32) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return scaled_mm.scaled_mm_fits(There(5, 64), There(n, 64), There(n, dtype=dtype))  # type: ignore[arg-type]

    assert fits(torch.float16, (9, 0)) and fits(torch.bfloat16, (9, 0)) and fits(torch.bfloat16, (8, 9))
    assert not fits(torch.float16, (8, 9)) and not fits(torch.float32, (9, 0)) and not fits(torch.bfloat16, (9, 0), 24)
    assert not scaled_mm.scaled_mm_fits(*tensors()[:2], tensors()[3])  # on the CPU


# --- the model ---------------------------------------------------------------------------------


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplies every quantized layer in FP8: the tiny model has no ConvFFN of 384 channels."""
    monkeypatch.setattr(policy, "ROWS", tuple(replace(row, min_channels=0) for row in policy.ROWS))


def pixels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 128, 64)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_same_function_as_the_quantized_model(
    quantized: Quantized, shape: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    """Up to the scales, which are float32. A sum at the middle of two FP8 numbers may go either way; none does here."""
    model, x = quantized().to(dtype), pixels(*shape).to(dtype)
    found = accelerate(model, precision="fp8")
    assert count_fp8_layers(found) == count_fp8_layers(model) == 16
    with torch.inference_mode():
        assert relative(found(x), model(x)) < bound


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(quantized: Quantized, fused: FastViTHD, dtype: torch.dtype) -> None:
    """Against the float model: about as far as the quantized one is in float32. No FP8 number or scale is rounded."""
    found = accelerate(quantized(), precision="fp8").to(dtype)
    x = pixels(2, 3, 64, 64)
    products = [m for m in found.modules() if isinstance(m, Fp8Product)]
    assert {(m.weight.dtype, m.scale.dtype, m.bias.dtype) for m in products} == {(FP8, torch.float32, dtype)}
    with torch.inference_mode():
        wanted = fused(x)
        features = found(x.to(dtype))
        assert features.dtype == dtype and relative(features, wanted) < 1.41 * relative(quantized()(x), wanted)


def test_narrow_layers_stay_in_float(quantized: Quantized, fused: FastViTHD) -> None:
    """With their FP8 weights and inputs that are not rounded: nearer to the float model."""
    found, x = accelerate(quantized(), precision="fp8"), pixels(2, 3, 64, 64)
    assert count_fp8_layers(found) == 4  # qkv and proj, twice
    with torch.inference_mode():
        wanted = fused(x)
        assert 1e-3 < relative(found(x), wanted) < relative(quantized()(x), wanted)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(
    "keep",
    [
        ("stages.2.blocks.0.mlp.fc1", "stages.3.blocks.0.token_mixer.qkv"),
        ("stages.2.blocks.0.mlp.fc2", "stages.3.blocks.0.token_mixer.proj"),
        ("stages.4.blocks.0.mlp.fc1", "stages.4.blocks.0.mlp.fc2"),
        ("stages.4.blocks.0.token_mixer.qkv", "stages.4.blocks.0.token_mixer.proj"),
    ],
)
def test_layers_that_a_bound_keeps_in_float(quantized: Quantized, keep: tuple[str, ...]) -> None:
    """Their neighbours are quantized all the same; LayerNorm's affine goes into a float qkv."""
    model, x = quantized(keep), pixels(1, 3, 64, 64)
    found = accelerate(model, precision="fp8")
    assert count_fp8_layers(found) == 14
    with torch.inference_mode():
        assert relative(found(x), model(x)) < 1e-3  # one value more that rounds otherwise


@pytest.mark.usefixtures("everywhere")
def test_parts_in_float32(quantized: Quantized) -> None:
    """Inside an FP16 model's float32 parts the quantized layers stay as they are."""
    model, x = quantized(), pixels(1, 3, 64, 64)
    for name in ("stages.2.blocks.1.mlp", "stages.4.blocks.0.token_mixer"):
        model.set_submodule(name, InFloat32(model.get_submodule(name)))
    found = accelerate(model, precision="fp8")
    assert count_fp8_layers(found) == 16 and sum(isinstance(m, Fp8Product) for m in found.modules()) == 12
    with torch.inference_mode():
        assert relative(found(x), model(x)) < 1e-5


@pytest.mark.usefixtures("everywhere")
def test_state_dict_brings_the_scales(quantized: Quantized) -> None:
    model, x = quantized(), pixels(1, 3, 64, 64)
    found, other = accelerate(model, precision="fp8"), accelerate(model, precision="fp8")
    for module in other.modules():
        if isinstance(module, Fp8Product):
            module.in_scale *= 2
            module.scale.mul_(2)
    with torch.inference_mode():
        assert not torch.equal(found(x), other(x))
        other.load_state_dict(found.state_dict())
        assert torch.equal(found(x), other(x))


def test_its_input_is_left_alone(quantized: Quantized) -> None:
    model = quantized()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accelerate(model, precision="fp8").half()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name].float(), value.float()) for name, value in before.items())


@pytest.mark.usefixtures("everywhere")
def test_exports_with_one_node_for_each_operator(quantized: Quantized) -> None:
    found, x = accelerate(quantized(), precision="fp8"), pixels(1, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(found, (x,))
    called = [str(n.target).split(".")[1] for n in program.graph.nodes if "fvexport" in str(n.target)]
    # Without a half dtype no kernel is chosen, and only those operators that PyTorch has no part of are nodes.
    assert called.count("linear_fp8") == called.count("norm_fp8") == 0 and called.count("depthwise") > 0
    depthwise = {name for name in DEFAULTS if name.startswith("depthwise")}
    for kernels, count in ((DEFAULTS, 0), (DEFAULTS - depthwise, 6)):  # the 7x7 before fc1 writes FP8 itself, or not
        half = accelerate(quantized(), precision="fp8", kernels=kernels).half()
        with torch.no_grad():
            program = torch.export.export(half, (x.half(),))
        called = [str(n.target).split(".")[1] for n in program.graph.nodes if "fvexport" in str(n.target)]
        assert called.count("linear_fp8") == 16 and called.count("norm_fp8") == 2 and called.count("attention") == 2
        assert called.count("quantize_fp8") == count


# --- refusals ----------------------------------------------------------------------------------


def test_a_quantized_model_needs_its_precision(quantized: Quantized) -> None:
    with pytest.raises(ConfigError, match="before quantization; found a QuantizedConv: precision='fp8' multiplies it"):
        accelerate(quantized())


def test_fp8_needs_a_quantized_model(fused: FastViTHD) -> None:
    with pytest.raises(ConfigError, match=r"takes a model with FP8 layers, and found none; calibration\.quantize"):
        accelerate(fused, precision="fp8")


def test_int8_is_refused(quantized: Quantized) -> None:
    for precision in (None, "fp8"):
        with pytest.raises(ConfigError, match=r"found none|before quantization; found a Quantized"):
            accelerate(quantized(fmt="int8"), precision=precision)  # type: ignore[arg-type]


def test_unknown_precision(fused: FastViTHD) -> None:
    with pytest.raises(ConfigError, match="unknown precision 'int4'"):
        accelerate(fused, precision="int4")  # type: ignore[arg-type]


def test_a_quantized_output_is_refused(quantized: Quantized) -> None:
    model = quantized()
    layer = model.get_submodule("stages.2.blocks.0.mlp.fc1")
    assert isinstance(layer, QuantizedConv)
    layer.output_quantizer = copy.deepcopy(layer.input_quantizer)
    with pytest.raises(ConfigError, match="quantized output have no kernel"):
        accelerate(model, precision="fp8")


def test_layers_are_calibrations(quantized: Quantized) -> None:
    kinds = {type(m) for m in quantized().modules()}
    assert {QuantizedConv, QuantizedLinear} <= kinds and nn.LayerNorm in kinds
