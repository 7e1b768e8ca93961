"""Q/DQ in eager mode, in the exported operators and in onnxruntime: one and the same, to the last value."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper
from torch import Tensor, nn

from fvexport.calibration.qdq import (
    FP8,
    FP8_MAX,
    MIN_SCALE,
    QuantizedConv,
    QuantizedLinear,
    Quantizer,
    dequantize,
    dequantize_channels,
    quantize,
)
from fvexport.export.tracing import quiet

ort = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")

STORED = {torch.int8: TensorProto.INT8, torch.uint8: TensorProto.UINT8, FP8: TensorProto.FLOAT8E4M3FN}
FLOATS = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
VALUES = 64


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Runs the operators as they are written, one by one."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


@cache
def operators(stored: torch.dtype, real: torch.dtype) -> ort.InferenceSession:
    """QuantizeLinear, then DequantizeLinear, with everything an input; FP8 comes out as float32 too."""
    kinds = {"x": FLOATS[real], "scale": FLOATS[real], "zero_float": TensorProto.FLOAT}
    q_as_float = helper.make_node("Cast", ["q"], ["q_float"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["zero_float"], ["zero"], to=STORED[stored]),
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
            q_as_float,
        ],
        "qdq",
        [helper.make_tensor_value_info(n, k, [VALUES] if n == "x" else []) for n, k in kinds.items()],
        [
            helper.make_tensor_value_info("q_float", TensorProto.FLOAT, [VALUES]),
            helper.make_tensor_value_info("y", FLOATS[real], [VALUES]),
        ],
    )
    return session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@st.composite
def cases(draw: Any, stored: torch.dtype, real: torch.dtype) -> tuple[np.ndarray, np.ndarray, int]:
    """Values (64,) from far below to far above what is held, half of them multiples of half a step; scale; zero."""
    half = real == torch.float16
    kind = np.float16 if half else np.float32
    # A power of two makes true ties; any other scale nearly ties.
    scale = draw(
        st.one_of(
            st.sampled_from([2.0**-14, 2.0**-6, 0.5, 1.0, 4.0]),
            st.floats(float(np.float32(MIN_SCALE)), 8.0, width=16 if half else 32),
        )
    )
    zero = draw(st.integers(*[torch.iinfo(stored).min, torch.iinfo(stored).max])) if stored == torch.uint8 else 0
    top = FP8_MAX if stored == FP8 else 128
    steps = draw(arrays.arrays(np.float32, VALUES // 2, elements=st.integers(-4 * top, 4 * top).map(lambda n: n / 2)))
    wide = st.floats(-60000, 60000, width=16) if half else st.floats(-1e9, 1e9, width=32)
    others = draw(arrays.arrays(np.float32, VALUES // 2, elements=st.one_of(st.floats(-2, 2, width=16), wide)))
    with np.errstate(over="ignore"):
        x = np.concatenate([steps * np.float32(scale), others]).astype(kind)
    return np.nan_to_num(x, posinf=60000, neginf=-60000), np.array(scale, kind), zero


@pytest.mark.parametrize("real", FLOATS, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_as_onnxruntime(stored: torch.dtype, real: torch.dtype) -> None:
    @settings(max_examples=40, deadline=None)
    @given(cases(stored, real))
    def check(case: tuple[np.ndarray, np.ndarray, int]) -> None:
        x, scale, zero = case
        feed = {"x": x, "scale": scale, "zero_float": np.array(zero, np.float32)}
        wanted_q, wanted = operators(stored, real).run(None, feed)
        zero_point = torch.tensor(zero).to(stored)
        q = quantize(torch.from_numpy(x), torch.from_numpy(scale), zero_point)
        assert q.dtype == stored
        np.testing.assert_array_equal(q.float().numpy(), wanted_q)
        y = dequantize(q, torch.from_numpy(scale), zero_point)
        assert y.dtype == real
        np.testing.assert_array_equal(y.numpy(), wanted)

    check()


@pytest.mark.parametrize(
    ("x", "stored", "zero", "wanted"),
    [
        ([0.5, 1.5, 2.5, -0.5, -1.5], torch.int8, 0, [0, 2, 2, 0, -2]),  # ties to even
        ([127.4, 127.5, 1e30, -128.5, -129, -1e30], torch.int8, 0, [127, 127, 127, -128, -128, -128]),
        ([0.5, 1.5, -3, 300], torch.uint8, 3, [3, 5, 0, 255]),  # rounded before the zero point is added
        ([17, 18, 19, 448, 449, 1e30, -1e30, 2**-10], FP8, 0, [16, 18, 20, 448, 448, 448, -448, 0]),
    ],
)
def test_by_hand(x: list[float], stored: torch.dtype, zero: int, wanted: list[float]) -> None:
    q = quantize(torch.tensor(x), torch.tensor(1.0), torch.tensor(zero).to(stored))
    assert q.float().tolist() == wanted


# --- modules: kept under casts, and the same in the file ------------------------------------------


def conv(stored: torch.dtype, *, leaving: bool = False) -> QuantizedConv:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 1, 1, generator=generator) * 40
    entry, end = Quantizer(0.02, 0, stored), Quantizer(0.5, 0, stored)
    if stored == torch.int8 and leaving:
        entry, end = Quantizer(0.013, 117, torch.uint8), Quantizer(0.7, 90, torch.uint8)
    scale = torch.rand(6, generator=generator) / 50 + 1e-3
    bias = torch.randn(6, generator=generator)
    return QuantizedConv(weight.to(stored), scale, bias, entry, end if leaving else None)


def linear(stored: torch.dtype, *, integer_bias: bool = False) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 7, generator=generator) * 40
    entry = Quantizer(0.013, 117, torch.uint8) if integer_bias else Quantizer(0.02, 0, stored)
    scale = torch.rand(7, generator=generator) / 50 + 1e-3
    return QuantizedLinear(
        weight.to(stored), scale, torch.randn(7, generator=generator), entry, integer_bias=integer_bias
    )


IMAGE = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3))
MODULES: dict[str, tuple[nn.Module, Tensor]] = {
    "uint8": (Quantizer(0.013, 117, torch.uint8), IMAGE),
    "int8": (Quantizer(0.01, 0, torch.int8), IMAGE),
    "fp8": (Quantizer(0.003, 0, FP8), IMAGE),
    "conv int8": (conv(torch.int8), IMAGE),
    "conv uint8 to uint8": (conv(torch.int8, leaving=True), IMAGE),
    "conv fp8": (conv(FP8), IMAGE),
    "linear int8": (linear(torch.int8), TOKENS),
    "linear int32 bias": (linear(torch.int8, integer_bias=True), TOKENS),
    "linear fp8": (linear(FP8), TOKENS),
}


def stored_values(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that are storage, whatever the module computes in."""
    eight = (torch.int8, torch.uint8, torch.int32, FP8)
    return {name: value for name, value in module.state_dict().items() if value.dtype in eight}


@pytest.mark.parametrize("name", MODULES)
def test_storage_is_kept(name: str) -> None:
    module = copy.deepcopy(MODULES[name][0])
    before = {k: v.clone() for k, v in stored_values(module).items()}
    assert before
    for change in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.float()):
        outer = nn.Sequential(module)
        module = change(outer)[0]
        after = stored_values(module)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[k].float(), v.float()) and after[k].dtype == v.dtype for k, v in before.items())
    assert {v.dtype for k, v in module.half().state_dict().items() if k not in before} == {torch.float16}
    on_meta = stored_values(copy.deepcopy(module).to("meta"))
    assert all(v.is_meta and v.dtype == before[k].dtype for k, v in on_meta.items())


@pytest.mark.parametrize("name", MODULES)
def test_copies_are_their_own(name: str) -> None:
    module, x = MODULES[name]
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    taken = {v.untyped_storage().data_ptr() for v in module.state_dict().values()}
    assert not taken & {v.untyped_storage().data_ptr() for v in twin.state_dict().values()}
    again = copy.deepcopy(module)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))


HALVES = ("fp8", "conv int8", "conv fp8", "linear int8")


@pytest.mark.parametrize(("name", "half"), [*((name, False) for name in MODULES), *((name, True) for name in HALVES)])
def test_the_file_computes_the_same(name: str, half: bool, tmp_path: Path) -> None:
    module, x = copy.deepcopy(MODULES[name][0]).eval(), MODULES[name][1]
    if half:
        module, x = module.half(), x.half()
    model = onnx_of(module, x, tmp_path)
    with torch.inference_mode():
        wanted = module(x)
    (found,) = session(model).run(None, {model.graph.input[0].name: x.numpy()})
    assert found.dtype == wanted.numpy().dtype
    tolerance = 2e-3 if half else 2e-6
    leaving = getattr(module, "output_quantizer", None)
    step = float(leaving.scale) if isinstance(leaving, Quantizer) else 0.0
    # Behind an output quantizer a sum near a tie may go either way: one step, rarely.
    differs = np.abs(found.astype(np.float64) - wanted.double().numpy())
    assert (differs <= tolerance * float(wanted.abs().max())).mean() >= (0.99 if step else 1.0)
    assert differs.max() <= max(step * 1.001, tolerance * float(wanted.abs().max()))
    check_operators(model, module, half=half)


def onnx_of(module: nn.Module, x: Tensor, folder: Path) -> onnx.ModelProto:
    with quiet():
        program = torch.onnx.export(module, (x,), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    program.save(str(folder / "m.onnx"))
    onnx.checker.check_model(str(folder / "m.onnx"), full_check=True)
    return onnx.load(str(folder / "m.onnx"))


def check_operators(model: onnx.ModelProto, module: nn.Module, *, half: bool) -> None:
    """Every stored value is an initializer of its own type, and reaches its product through one DequantizeLinear."""
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    ops = [n.op_type for n in model.graph.node]
    quantizers = sum(isinstance(part, Quantizer) for part in module.modules())
    product = isinstance(module, QuantizedConv | QuantizedLinear)
    integer_bias = isinstance(module, QuantizedLinear) and module.integer_bias
    assert ops.count("QuantizeLinear") == quantizers
    assert ops.count("DequantizeLinear") == quantizers + product + integer_bias
    assert "Cast" not in ops
    dequantizers = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert {kinds[n.input[1]] for n in dequantizers} == {TensorProto.FLOAT16 if half else TensorProto.FLOAT}
    if product:
        weights = [n for n in dequantizers if n.input[0] in kinds and "weight" in n.input[0]]
        assert [kinds[n.input[0]] for n in weights] == [STORED[module.weight.dtype]]
    if integer_bias:
        biases = [n for n in dequantizers if kinds.get(n.input[0]) == TensorProto.INT32]
        assert len(biases) == 1


def test_integer_bias_is_in_steps_of_the_product() -> None:
    module = linear(torch.int8, integer_bias=True)
    plain = linear(torch.int8)
    assert module.bias.dtype == torch.int32
    steps = module.input_quantizer.scale * module.weight_scale
    assert (module.bias * module.bias_scale - plain.bias).abs().max() <= 0.51 * steps.max()


def test_small_scales_are_raised() -> None:
    """A scale must be a number that FP16 holds."""
    assert float(Quantizer(0.0, 0, torch.int8).scale) == MIN_SCALE == torch.finfo(torch.float16).smallest_normal


@pytest.mark.parametrize("axis", [0, 1])
def test_channels(axis: int) -> None:
    q = torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4)
    scale = torch.tensor([1.0, 10.0, 100.0, 1000.0])[: q.shape[axis]]
    wanted = q.float() * (scale[:, None] if axis == 0 else scale)
    assert torch.equal(dequantize_channels(q, scale, torch.zeros_like(scale).to(torch.int8), axis=axis), wanted)
