"""The operators where no kernel runs: PyTorch's result, the same refusals, one node in a graph."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvexport.core.errors import ConfigError
from fvexport.kernels import dispatch
from fvexport.kernels.attention import attention, attention_reference
from fvexport.kernels.depthwise import KERNELS as DEPTHWISE
from fvexport.kernels.depthwise import Filters, depthwise, depthwise_reference
from fvexport.kernels.depthwise_rows import float_taps
from fvexport.kernels.dispatch import (
    DEFAULTS,
    MODES,
    OPS,
    SWITCH,
    Modes,
    exists,
    gelu_form,
    has_fp8,
    modes_for,
    runs,
    switched_on,
)
from fvexport.kernels.linear_gelu import linear_gelu, linear_gelu_reference
from fvexport.kernels.linear_residual import linear_residual, linear_residual_reference
from fvexport.kernels.mlp import mlp, mlp_reference
from fvexport.kernels.norm_linear import norm_linear, norm_linear_reference
from fvexport.kernels.products import KERNELS

Op = Callable[..., Tensor]

CASES: dict[str, tuple[Op, Op, list[tuple[int, ...]]]] = {
    "attention": (lambda *t, **k: attention(*t, 2, **k), lambda *t: attention_reference(*t, 2), [(2, 5, 192)]),
    "norm_linear": (norm_linear, norm_linear_reference, [(2, 5, 12), (8, 12), (8,)]),
    "linear_residual": (linear_residual, linear_residual_reference, [(2, 5, 12), (8, 12), (8,), (2, 5, 8), (8,)]),
    "linear_gelu": (linear_gelu, linear_gelu_reference, [(2, 5, 12), (8, 12), (8,)]),
    "mlp": (mlp, mlp_reference, [(2, 5, 12), (24, 12), (24,), (12, 24), (12,), (2, 5, 12)]),
    "depthwise": (
        lambda *t, **k: depthwise(*t, 2, True, **k), lambda *t: depthwise_reference(*t, 2, True),
        [(2, 5, 7, 12), (3, 3, 24), (24,)],
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", CASES)


def inputs(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape in CASES[name][2]]


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [True, False])
def test_pytorch_where_no_kernel_runs(name: str, dtype: torch.dtype, kernel: bool) -> None:
    op, reference, _ = CASES[name]
    tensors = inputs(name, dtype)
    assert not runs(OPS[0], *tensors)
    torch.testing.assert_close(op(*tensors, kernel=kernel), reference(*tensors), rtol=0, atol=0)


@each
def test_zero_batch(name: str) -> None:
    op, _, shapes = CASES[name]
    tensors = inputs(name)
    none = [t[:0] if len(shape) > 2 and shape[0] == 2 else t for t, shape in zip(tensors, shapes, strict=True)]
    assert op(*none).shape == (0, *op(*tensors).shape[1:])


@each
def test_mixed_dtypes_are_refused(name: str) -> None:
    op, _, _ = CASES[name]
    for odd in range(len(inputs(name))):
        tensors = inputs(name, torch.float16)
        if len(tensors) > 1:
            tensors[odd] = tensors[odd].float()
        else:
            tensors[odd] = tensors[odd].int()
        with pytest.raises(ConfigError, match=f"{name} takes tensors of one floating dtype; found .*(float32|int32)"):
            op(*tensors)


@each
def test_wrong_shapes_are_refused(name: str) -> None:
    op, _, _ = CASES[name]
    for odd in range(len(inputs(name))):
        tensors = inputs(name)
        tensors[odd] = torch.randn(3)
        with pytest.raises(ConfigError, match=f"{name} takes .*found"):
            op(*tensors)


@each
@pytest.mark.parametrize("kernel", [True, False])
def test_no_gradient(name: str, kernel: bool) -> None:
    op, _, _ = CASES[name]
    for odd in range(len(inputs(name))):
        tensors = inputs(name)
        tensors[odd].requires_grad_()
        with pytest.raises(ConfigError, match=f"{name} has no gradient; call it under torch.inference_mode"):
            op(*tensors, kernel=kernel)
        with torch.no_grad():
            op(*tensors, kernel=kernel)


@each
def test_one_node_in_an_exported_graph(name: str) -> None:
    op, _, _ = CASES[name]
    tensors = inputs(name)

    class Model(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return op(*args)

    with torch.no_grad():
        program = torch.export.export(Model(), tuple(tensors))
        called = [str(n.target) for n in program.graph.nodes if n.op == "call_function" and "fvexport" in str(n.target)]
        assert called == [f"fvexport.{name}.default"]
        torch.testing.assert_close(program.module()(*tensors), op(*tensors))


@each
def test_fake_tensors_have_the_real_shape(name: str) -> None:
    """As torch.compile sees the op: shape, dtype and strides without computing."""
    op, _, _ = CASES[name]
    tensors = inputs(name, torch.float16)
    fake = op(*(t.to("meta") for t in tensors))
    real = op(*tensors)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("name", ["attention", "norm_linear", "linear_gelu", "linear_residual", "depthwise"])
def test_registration(name: str) -> None:
    """PyTorch's own check of the schema and of the fake implementation, with sizes as symbols too."""
    extra: dict[str, tuple[Any, ...]] = {
        "attention": (2, None, 0),
        "norm_linear": (torch.randn(8), 1e-5, "cublas", 0),
        "linear_gelu": ("split_k", 0),
        "linear_residual": ("linear_tma", 0),
        "depthwise": (2, True, 0, torch.randn(2, 3, 3, 12), "depthwise_pairs", None),
    }
    torch.library.opcheck(
        getattr(torch.ops.fvexport, name).default, (*inputs(name), *extra.get(name, ())),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # fmt: skip


def test_kernels_of_depthwise() -> None:
    """By name; taps have to be the weight's by output of a channel, in float32."""
    x, weight, bias = inputs("depthwise", torch.float16)
    wanted, taps = depthwise_reference(x, weight, bias, 2, True), float_taps(weight, 12)
    assert taps.shape == (2, 3, 3, 12) and torch.equal(taps[1], weight[:, :, 1::2].float())
    for kernel in DEPTHWISE:
        assert torch.equal(depthwise(x, Filters(weight, taps), bias, 2, True, kernel=kernel), wanted)
    found = depthwise(x, weight, bias, 2, True, out_scale=1 / 64)
    assert torch.equal(found.float(), (wanted.float() * 64).clamp(-448, 448).to(torch.float8_e4m3fn).float())
    fake = depthwise(x.to("meta"), weight.to("meta"), bias.to("meta"), 2, True, out_scale=1 / 64)
    assert (fake.dtype, fake.shape) == (torch.float8_e4m3fn, found.shape)
    with pytest.raises(ConfigError, match="depthwise has no kernel 'mlp'; it has depthwise, depthwise_rows"):
        depthwise(x, weight, bias, kernel="mlp")
    for odd in (taps.half(), taps[:1]):
        with pytest.raises(ConfigError, match=r"depthwise takes taps \(2, 3, 3, 12\) in float32; found"):
            depthwise(x, Filters(weight, odd), bias)


@pytest.mark.parametrize(
    ("value", "on"),
    [
        ("", DEFAULTS), ("1", DEFAULTS), ("0", ()), ("all", (*OPS, *MODES)), ("attention", ("attention",)),
        (" mlp, depthwise ", ("mlp", "depthwise")), ("-mlp", DEFAULTS - {"mlp"}), ("+mlp, -pdl", DEFAULTS - {"pdl"}),
    ],
)  # fmt: skip
def test_switch(value: str, on: tuple[str, ...]) -> None:
    assert switched_on(value) == frozenset(on)


def test_switch_with_and_without_signs() -> None:
    with pytest.raises(ConfigError, match="give all of them a sign, or none"):
        switched_on("mlp,-pdl")


@pytest.mark.parametrize(("value", "words"), [("atention", "did you mean 'attention'?"), ("2", "known are 0, 1")])
def test_switch_mistyped(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, value)
    with pytest.raises(ConfigError, match=SWITCH) as caught:
        attention(*inputs("attention"), 2)
    assert words in str(caught.value)


def test_what_a_gpu_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guards, seen on tensors that only say where they are."""

    class There:
        def __init__(self, dtype: torch.dtype = torch.float16, device: str = "cuda:0", numel: int = 1) -> None:
            self.dtype, self.device, self.numel = dtype, torch.device(device), lambda: numel

    monkeypatch.setattr(dispatch.language, "INSTALLED", True)
    monkeypatch.setattr(dispatch, "_capability", lambda device: (8, 6))
    assert runs("mlp", There(), There())  # type: ignore[arg-type]
    for other in (There(torch.float64), There(numel=0), There(device="cpu"), There(device="meta")):
        assert not runs("mlp", other)  # type: ignore[arg-type]
    assert not runs("mlp", There(), There(device="cuda:1"))  # type: ignore[arg-type]
    fp8 = There(torch.float8_e4m3fn)
    assert not runs("linear_fp8", fp8) and not runs("attention", There(), fp8=True)  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch, "_capability", lambda device: (8, 9))
    assert runs("linear_fp8", fp8) and runs("attention", There(), fp8=True)  # type: ignore[arg-type]
    assert not runs("linear", fp8)  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch, "_capability", lambda device: (7, 5))
    assert not runs("mlp", There())  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch, "_capability", lambda device: (12, 0))
    for value, op in (("attention", "attention"), ("-mlp", "attention"), ("+attention,-mlp", "depthwise")):
        monkeypatch.setenv(SWITCH, value)
        assert not runs("mlp", There()) and runs(op, There())  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch.language, "INSTALLED", False)
    assert not runs("attention", There())  # type: ignore[arg-type]


def test_what_a_kernel_needs() -> None:
    assert exists("linear_tma", (9, 0), torch.float16) and exists("linear_tma", (12, 0), torch.bfloat16)
    assert not exists("linear_tma", (8, 9), torch.float16) and not exists("linear_tma", (9, 0), torch.float32)
    assert exists("split_k", (8, 0), torch.float16) and not exists("split_k", (8, 0), torch.float32)
    assert exists("cublas", (8, 0), torch.float32) and not exists("cublas", (7, 5), torch.float16)
    assert not exists("linear", (8, 0), torch.float64)


def test_kernel_of_a_product() -> None:
    args = inputs("linear_gelu")
    with pytest.raises(ConfigError, match="no kernel 'mlp' computes products; known are linear, linear_tma, split_k"):
        linear_gelu(*args, kernel="mlp")
    for kernel in KERNELS:
        torch.testing.assert_close(linear_gelu(*args, kernel=kernel), linear_gelu_reference(*args), rtol=0, atol=0)


def test_modes_of_an_architecture() -> None:
    """Programmatic dependent launch came with compute capability 9.0."""
    assert modes_for("sm_89") == Modes.FAST_GELU and modes_for("sm_120") == modes_for("sm_90") == 3
    assert modes_for("sm_90", ("pdl", "mlp")) == Modes.PDL and modes_for("sm_90", ()) == 0
    assert [has_fp8(arch) for arch in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_form_of_gelu() -> None:
    """float32 keeps erf whatever is asked for."""
    assert gelu_form(False, torch.float16, Modes.FAST_GELU) == 0
    assert gelu_form(True, torch.float16, Modes.PDL) == gelu_form(True, torch.float32, Modes.FAST_GELU) == 1
    assert gelu_form(True, torch.bfloat16, Modes.FAST_GELU | Modes.PDL) == 2


def test_everything_imports_without_triton() -> None:
    """As on macOS and Windows, where there is none; and the operators compute."""
    code = """
import sys
sys.modules["triton"] = None
import importlib, pkgutil, torch
import fvexport.kernels as kernels
for module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"fvexport.kernels.{module.name}")
from fvexport.kernels.language import INSTALLED
from fvexport.kernels.attention import attention
assert not INSTALLED and attention(torch.randn(1, 3, 96), 1).shape == (1, 3, 32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
