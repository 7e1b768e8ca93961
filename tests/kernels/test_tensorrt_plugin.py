"""The attention kernel as TensorRT gets it: PTX that assembles, and its launch through TensorRT's real bindings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fvexport.core.errors import UnavailableError
from fvexport.kernels import language, tensorrt_plugin
from fvexport.kernels.aot import ARCHS, assemble
from fvexport.kernels.attention import attention_kernel
from fvexport.kernels.tensorrt_plugin import PLUGIN, attention_ptx, register_attention, without_scratch

pytestmark = pytest.mark.skipif(
    not language.INSTALLED or language.INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)


@pytest.mark.parametrize("arch", ARCHS)
def test_ptx_assembles_and_takes_four_arguments(arch: str) -> None:
    kernel = attention_ptx(torch.float16, arch, tokens=1024, heads=24)
    registers, _, spills = assemble(kernel.ptx, int(arch[3:]))
    assert registers <= 255 and spills == 0
    entry = re.search(rf"\.visible \.entry {kernel.name}\((.*?)\n\)", kernel.ptx, re.S)
    assert entry is not None
    kinds = [re.search(r"\.(u\d+)", line)[1] for line in entry[1].strip().splitlines()]  # type: ignore[index]
    assert kinds == ["u64", "u32", "u32", "u64"]  # input, integers, output: what TensorRT passes, in that order
    assert attention_kernel.arg_names[:4] == ["qkv_ptr", "n", "heads", "out_ptr"]
    assert kernel.threads == int(re.search(r"\.reqntid (\d+)", kernel.ptx)[1])  # type: ignore[index]
    assert kernel.shared <= 48 * 1024 and kernel.queries in (64, 128)


def test_scratch_that_is_used_is_not_struck() -> None:
    parameters = ",\n\t".join(f".param .u64 {name}" for name in "abcde")
    ptx = f".visible .entry k(\n\t{parameters}\n)\n{{"
    assert without_scratch(ptx + " }").count(".param") == 4
    with pytest.raises(UnavailableError, match="scratch"):
        without_scratch(ptx + " ld.param.u64 %rd1, [e]; }")


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match=r"TensorRT 10\.9"):
        register_attention("sm_90")


@pytest.fixture(scope="module")
def bindings(tensorrt: Any) -> Any:
    trtp = pytest.importorskip("tensorrt.plugin", reason="no TensorRT here")
    register_attention("sm_90")
    return trtp


@pytest.fixture
def expressions(bindings: Any) -> Iterator[Any]:
    """A builder of size expressions that writes them down; TensorRT's own exists only while it builds."""
    import tensorrt as trt
    from tensorrt.plugin import _tensor

    class Expression(trt.IDimensionExpr):  # type: ignore[misc]
        text: Any

        @classmethod
        def of(cls, text: Any) -> Expression:
            made = cls.__new__(cls)
            made.text = text
            return made

        def is_constant(self) -> bool:
            return isinstance(self.text, int)

        def get_constant_value(self) -> Any:
            return self.text

    class Builder:
        def constant(self, value: int) -> Expression:
            return Expression.of(value)

        def operation(self, op: Any, a: Expression, b: Expression) -> Expression:
            folded = {"SUM": lambda x, y: x + y, "FLOOR_DIV": lambda x, y: x // y, "CEIL_DIV": lambda x, y: -(-x // y)}
            if a.is_constant() and b.is_constant():
                return Expression.of(folded[op.name](a.text, b.text))
            return a if op.name == "SUM" and b.text == 0 else Expression.of((op.name, a.text, b.text))

    before = _tensor.SymIntExpr._exprBuilder
    _tensor.SymIntExpr._exprBuilder = Builder()
    yield Expression.of
    _tensor.SymIntExpr._exprBuilder = before


def described(trtp: Any, expression: Any, dtype: Any, sizes: tuple[Any, ...]) -> Any:
    desc = trtp.TensorDesc()
    desc.dtype = dtype
    desc.shape_expr = trtp.ShapeExprs(len(sizes))
    for axis, size in enumerate(sizes):
        desc.shape_expr[axis] = trtp.ShapeExpr(expression(size))
    return desc


def plain(expressions: Any) -> list[Any]:
    return [each._expr.text for each in expressions]


def test_registration(bindings: Any) -> None:
    import tensorrt as trt
    from tensorrt.plugin import _lib

    register_attention("sm_90")  # once more does no harm
    found = trt.get_plugin_registry().get_creator("Attention", "1", "fvexport")
    assert found is not None and found.name == "Attention" and found.plugin_namespace == "fvexport"
    definition = _lib.QDP_REGISTRY[PLUGIN]
    assert definition.input_tensor_names == ["qkv"] and definition.input_attrs == {} and definition.num_outputs == 1
    plugin = found.create_plugin(
        "Attention", "fvexport", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )  # fmt: skip
    for dtype in (trt.float16, trt.bfloat16, trt.float32):
        assert plugin.get_output_data_types([dtype], [3]) == [dtype]


@pytest.mark.parametrize(("name", "tokens"), [("float16", 1024), ("bfloat16", 64), ("float32", 15)])
def test_launch(bindings: Any, expressions: Any, name: str, tokens: int) -> None:
    """Grid, block and arguments as expressions of sizes that are known only at run time."""
    import tensorrt as trt
    from tensorrt.plugin import _lib

    definition = _lib.QDP_REGISTRY[PLUGIN]
    qkv = described(bindings, expressions, getattr(trt, name), ("batch", "tokens", 3 * 768))
    out = definition.register_func(qkv)
    assert plain(out.shape_expr) == ["batch", "tokens", 768] and out.dtype == qkv.dtype
    qkv.shape = bindings.Shape((1, tokens, 3 * 768))
    entry, ptx, launch, arguments = definition.aot_impl_func(qkv, (out,), 0)
    expected = attention_ptx(getattr(torch, name), "sm_90", tokens=tokens, heads=24)
    assert (entry, ptx) == (expected.name, expected.ptx)
    assert plain([launch.grid_x, launch.grid_y, launch.grid_z]) == [
        ("CEIL_DIV", "tokens", expected.queries),
        24,
        "batch",
    ]
    assert plain([launch.block_x, launch.block_y, launch.block_z]) == [expected.threads, 1, 1]
    assert plain([launch.shared_mem]) == [expected.shared]
    assert plain(arguments) == ["tokens", 24] and all(type(a) is bindings.SymInt32 for a in arguments)


def test_the_architecture_is_named_or_found(bindings: Any) -> None:
    with pytest.raises(UnavailableError, match="named like sm_90"):
        register_attention("hopper")
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="name one, such as sm_90"):
            register_attention()
    assert tensorrt_plugin._chosen["arch"] == "sm_90"
