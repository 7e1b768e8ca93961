"""Half precision in float32: each stored value rounded, as PyTorch does it step by step, overflow included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export.artifact import Artifact
from fvexport.export.parity_backends import EagerReference, ParityOnnxRuntime
from fvexport.export.runtime import EagerBackend, OnnxRuntimeBackend
from fvexport.export.runtime.emulate_half import with_rounding

ort = pytest.importorskip("onnxruntime")

HALVES: dict[str, tuple[int, Any, torch.dtype]] = {
    "fp16": (TensorProto.FLOAT16, np.float16, torch.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, torch.bfloat16),
}
Distance = Callable[[Any, Any], float]


def graph(precision: str, weight: np.ndarray, *, half_io: bool = False) -> onnx.ModelProto:
    """y = transpose(relu(x * w + w) @ w), in a half type, between casts or with half inputs and outputs."""
    kind, _, dtype = HALVES[precision]
    raw = torch.from_numpy(weight).to(dtype).view(torch.int16).numpy().tobytes()
    nodes = [
        helper.make_node("Mul", ["h", "w"], ["a"]), helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]), helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[1, 0]),
    ]  # fmt: skip
    names = ("h", "e") if half_io else ("x", "y")
    if not half_io:
        nodes = [helper.make_node("Cast", ["x"], ["h"], to=kind), *nodes]
        nodes.append(helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT))
    size = list(weight.shape)
    tensor_specs = [helper.make_tensor_value_info(n, kind if half_io else TensorProto.FLOAT, size) for n in names]
    tensor = helper.make_tensor("w", kind, size, raw, raw=True)
    made = helper.make_graph(nodes, "g", tensor_specs[:1], tensor_specs[1:], [tensor])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def step_by_step(precision: str, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """PyTorch: computed in float32, stored in the half type after every operator."""
    dtype = HALVES[precision][2]

    def stored(t: torch.Tensor) -> torch.Tensor:
        return t.to(dtype).float()

    w, h = stored(torch.from_numpy(weight)), stored(torch.from_numpy(x))
    c = stored(torch.relu(stored(stored(h * w) + w)))
    return stored(c @ w).T.numpy()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["fp16", "bf16"]), st.booleans(), st.integers(1, 5), st.integers(0, 2**31))
def test_equals_pytorch_step_by_step(precision: str, half_io: bool, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few enough bits that the products of the matrices are exact, in whatever order they are summed.
    weight, x = (rng.integers(-64, 64, (size, size)).astype(np.float32) / 16 for _ in "ab")
    model = graph(precision, weight, half_io=half_io)
    before = model.SerializeToString()
    x += rng.uniform(-0.01, 0.01, x.shape).astype(np.float32) * (not half_io)
    found = run(with_rounding(model, precision), x)
    wanted = step_by_step(precision, weight, x)
    np.testing.assert_allclose(found, wanted, rtol=2 * float(torch.finfo(HALVES[precision][2]).eps), atol=0.05)
    assert np.mean(found == wanted) > 0.9 or size < 4
    assert found.dtype == np.float32
    assert model.SerializeToString() == before


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("half_io", [False, True], ids=["cast", "io=model"])
def test_input_is_rounded_too(precision: str, half_io: bool) -> None:
    """A file that takes half precision sees rounded pixels, so must what stands for it."""
    # Where the input is not rounded to 1 first, the product rounds to more than 3.
    weight, x = np.full((1, 1), 3, np.float32), np.full((1, 1), 1, np.float32)
    x += 0.45 * float(torch.finfo(HALVES[precision][2]).eps)
    model = graph(precision, weight, half_io=half_io)
    for node in model.graph.node:  # y = relu(x * 3 - 3) * 3
        if node.op_type == "Add":
            node.op_type = "Sub"
    found = run(with_rounding(model, precision), x)
    assert found.item() == 0.0


def test_overflow_is_seen() -> None:
    weight = np.full((2, 2), 300, np.float32)
    x = np.full((2, 2), 300, np.float32)
    assert np.isinf(run(with_rounding(graph("fp16", weight), "fp16"), x)).all()
    found = run(with_rounding(graph("bf16", weight), "bf16"), x)
    assert np.isfinite(found).all()
    exact = ((x * weight + weight) @ weight).T
    assert 0 < np.abs(found / exact - 1).max() < 2 * 2**-8


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_real_graph(exported: Callable[..., Artifact], tiny: Checkpoint, distance: Distance, precision: str) -> None:
    """The rounded file is as far from float64 as PyTorch is in that precision, and its values are of the half type."""
    artifact, dtype = exported(precision=precision), HALVES[precision][2]
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    fused = reparameterize(tiny.encoder)
    exact = EagerBackend(reparameterize(tiny.encoder).double()).run(pixels)
    backend = ParityOnnxRuntime(artifact, emulate_half=True, taps=["stages.2.blocks.1", "final_conv"])
    found, inner = backend.run_taps(pixels)
    loss = distance(EagerReference(fused, emulate_half=dtype).run(pixels), exact)
    assert loss / 2 < distance(found, exact) < 2 * loss
    for value in (found, *inner.values()):
        assert np.array_equal(torch.from_numpy(value).to(dtype).float().numpy(), value)
    assert "rounded" in backend.computes


def test_one_precision_is_not_the_other(exported: Callable[..., Artifact], distance: Distance) -> None:
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    native = OnnxRuntimeBackend(exported(precision="fp16"))
    rounded = ParityOnnxRuntime(exported(precision="fp16"), emulate_half=True)
    assert native.computes == "natively"
    assert 1e-5 < distance(rounded.run(pixels), native.run(pixels)) < 1e-2
    assert "rounded to bfloat16" in OnnxRuntimeBackend(exported(precision="bf16")).computes
    assert ParityOnnxRuntime(exported(), emulate_half=True).computes == "natively"  # float32 has nothing to round
