"""The bytes-and-operations model against the modules themselves, PyTorch's counter, and the exported graph."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fvexport.core.errors import ConfigError
from fvexport.core.gpus import GPUS, Gpu, get_gpu
from fvexport.encoder import VARIANTS, FastViTHD, FastViTHDConfig
from fvexport.export.artifact import Artifact
from fvexport.export.operators import Block, Operator, operators, source_of
from fvexport.export.roofline import FUSIONS, MLP_MAX_DIM, kernels_of, mlp_break_even, roofline, work_of

LAYERS = (nn.Conv2d, nn.Linear, nn.GELU, nn.LayerNorm)
FAST = Gpu("fast", 1e9, 1e9, 1000)
"""A GPU whose floor is its memory's alone."""


def counted(config: FastViTHDConfig, height: int, width: int, *, attention: bool) -> float:
    """GMAC of the fused model by PyTorch's counter, which sees attention's products only where they are spelled out."""

    def plain(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    def views(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        return q + k + v

    with torch.device("meta"):
        model = FastViTHD(config, form="fused").eval()
    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
        patch.setattr(nn.functional, "scaled_dot_product_attention", plain if attention else views)
        model(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2e9


def every_operator(config: FastViTHDConfig, height: int, width: int) -> Iterator[tuple[str, Block, Operator]]:
    """(module name, block, operator), the blocks of a stage one by one."""
    for block in operators(config, height, width):
        names = [f"{block.name}.{i}" for i in range(block.count)] if block.name.endswith(".blocks") else [block.name]
        for name in names:
            for op in block.operators:
                yield f"{name}.{op.name}", block, op


@pytest.mark.parametrize(("variant", "size"), [("tiny", (128, 192)), ("fastvithd", (256, 256))])
def test_every_layer_is_the_modules(variant: str, size: tuple[int, int]) -> None:
    """Each layer that runs stands there under its name, reads and writes as much, and has as many weights."""
    config, seen = VARIANTS[variant], {}
    with torch.device("meta"):
        model = FastViTHD(config, form="fused").eval()
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(lambda _m, x, y, name=name: seen.__setitem__(name, (x[0].numel(), y.numel())))
    model(torch.empty(1, 3, *size, device="meta"))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    found = {name: (block, op) for name, block, op in every_operator(config, *size) if name in layers}
    assert found.keys() == seen.keys() == layers.keys()
    for name, (block, op) in found.items():
        sizes = {other.name: other.size for other in block.operators} | {"x": block.input_size}
        module = layers[name]
        assert (sizes[source_of(op.inputs[0])], op.size) == seen[name], name
        assert op.weights == sum(p.numel() for p in module.parameters()), name
        assert op.grouped == (isinstance(module, nn.Conv2d) and module.groups > 1), name
        assert op.pointwise == isinstance(module, nn.GELU), name
    assert sum(op.weights for _, _, op in every_operator(config, *size)) == sum(p.numel() for p in model.parameters())


@given(st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=8, deadline=None)
def test_operations_are_those_that_pytorch_counts(rows: int, columns: int) -> None:
    config, size = VARIANTS["tiny"], (64 * rows, 64 * columns)
    (floor,) = roofline(config, [size], FAST).floors
    assert floor.gmacs == pytest.approx(counted(config, *size, attention=False), rel=1e-9)
    assert floor.gmacs + floor.attention_gmacs == pytest.approx(counted(config, *size, attention=True), rel=1e-9)


def test_the_released_encoder() -> None:
    """About 235 GMAC at 1024 and 14.8 at 256 in its layers; 243.4 with attention's own products."""
    config = VARIANTS["fastvithd"]
    small, large = roofline(config, [(256, 256), (1024, 1024)], get_gpu("h100")).floors
    assert small.gmacs == pytest.approx(counted(config, 256, 256, attention=False), rel=1e-9)
    assert large.gmacs == pytest.approx(counted(config, 1024, 1024, attention=False), rel=1e-9)
    assert large.gmacs + large.attention_gmacs == pytest.approx(counted(config, 1024, 1024, attention=True), rel=1e-9)
    assert small.gmacs == pytest.approx(14.8, abs=0.05)
    assert large.gmacs == pytest.approx(235, rel=0.01)
    assert sum(b.count * b.gmacs for b in large.blocks) == pytest.approx(large.gmacs + large.attention_gmacs)


def test_operators_are_the_exported_graphs(static: Artifact) -> None:
    """One operator per node of the graph that computes something."""
    from collections import Counter

    import onnx

    graph = onnx.load(static.model_path, load_external_data=False).graph
    nodes = Counter(n.op_type for n in graph.node)
    kinds = {"Conv": 0, "MatMul": 0, "Gelu": 0, "LayerNormalization": 0, "Softmax": 0, "ReduceMean": 0, "Relu": 0,
             "Sigmoid": 0, "Mul": 0, "Add": 0}  # fmt: skip
    for name, _, op in every_operator(VARIANTS["tiny"], 128, 128):
        last = name.rpartition(".")[2]
        kind = {"act": "Gelu", "norm": "LayerNormalization", "softmax": "Softmax", "mean": "ReduceMean",
                "relu": "Relu", "sigmoid": "Sigmoid", "gate": "Mul", "residual": "Add"}.get(last)  # fmt: skip
        if kind is None:
            linear = op.product or last in ("qkv", "proj")
            kind = "MatMul" if linear else "Conv"
            kinds["Add"] += linear and not op.product  # the bias of a linear layer is a node of its own
        kinds[kind] += 1
    assert {kind: nodes[kind] for kind in kinds} == kinds


def by_hand(block: Block, groups: list[list[str]], width: int) -> int:
    """Bytes of one image in FP16, each kernel's inputs, outputs and weights counted by hand."""
    ops = {op.name: op for op in block.operators}
    total = 0
    for group in groups:
        reads = {i for name in group for i in ops[name].inputs if i not in group}
        outside = {i for name, op in ops.items() if name not in group for i in op.inputs}
        writes = [n for n in group if n in outside or n == block.operators[-1].name]
        total += sum(block.input_size if r == "x" else ops[r].size for r in reads)
        total += sum(ops[n].size for n in writes) + sum(ops[n].weights for n in group)
    return width * total


def test_bytes_of_a_repmixer_block() -> None:
    """Formulas on paper: C channels at P positions, MLP ratio 4."""
    block = next(b for b in operators(FastViTHDConfig(), 512, 512) if b.name == "stages.2.blocks")
    c, p = 384, 32 * 32
    weights = 10 * c + 50 * c + 8 * c * c + 5 * c
    unfused = work_of(block, (), FAST, "fp16", 1)
    # 3x3: 1 + 1; 7x7: 1 + 1; fc1: 1 + 4; GELU: 4 + 4; fc2: 4 + 1; residual: 2 + 1.
    assert unfused.kernels == 6 and unfused.bytes == 2 * (25 * c * p + weights)
    fused = work_of(block, FUSIONS, FAST, "fp16", 1)
    # One depthwise kernel: reads x, writes both results; one MLP: reads both, writes one.
    assert fused.kernels == 2 and fused.bytes == 2 * (6 * c * p + weights)
    assert work_of(block, FUSIONS, FAST, "fp16", 3).bytes == 2 * (3 * 6 * c * p + weights)
    assert work_of(block, FUSIONS, FAST, "fp32", 1).bytes == 2 * fused.bytes
    assert unfused.us == pytest.approx(unfused.bytes / 1e12 * 1e6)


def test_bytes_of_an_attention_block() -> None:
    block = next(b for b in operators(FastViTHDConfig(), 1024, 1024) if b.name == "stages.3.blocks")
    c, n = 768, 32 * 32
    scores, weights = 24 * n * n, 3 * c * c + 3 * c + c * c + c + 50 * c + 8 * c * c + 5 * c
    # norm 2; qkv 1 + 3; q k 2; v 1, result 1; proj 2; residual 3; 7x7 2; fc1 5; GELU 8; fc2 5; residual 3.
    assert work_of(block, (), FAST, "fp16", 1).bytes == 2 * (38 * c * n + 4 * scores + weights)
    names = [[op.name for op in kernel] for kernel in kernels_of(block, FUSIONS)]
    attention = [f"token_mixer.{name}" for name in ("scores", "softmax", "values")]
    assert names == [
        ["norm", "token_mixer.qkv"], attention, ["token_mixer.proj", "token_mixer.residual"], ["mlp.conv"],
        ["mlp.fc1", "mlp.act"], ["mlp.fc2", "mlp.residual"],
    ]  # fmt: skip
    # norm + qkv 4; attention 4; proj + residual 3; 7x7 2; fc1 + GELU 5; fc2 + residual 6.
    assert work_of(block, FUSIONS, FAST, "fp16", 1).bytes == 2 * (24 * c * n + weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fusions_add_up_and_never_cost(variant: str) -> None:
    for gpu in GPUS:
        for batch in (1, 8):
            report = roofline(VARIANTS[variant], [(256, 256), (1024, 512)], gpu, batch=batch)
            for floor in report.floors:
                assert all(r.bytes > 0 and r.kernels > 0 and r.us >= -1e-9 for r in floor.removals)
                assert floor.unfused.us - floor.fused.us == pytest.approx(sum(r.us for r in floor.removals))
                assert floor.unfused.bytes - floor.fused.bytes == sum(r.bytes for r in floor.removals)
                assert floor.unfused.kernels - floor.fused.kernels == sum(r.kernels for r in floor.removals)
                assert {r.fusion for r in floor.removals} == {fusion.name for fusion in FUSIONS}
                # No floor under what the multiply-adds and the smallest possible bytes take by themselves.
                assert floor.fused.us >= 2e3 * batch * floor.attention_gmacs / gpu.tflops


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_where_a_fused_mlp_ends_to_win(gpu: Gpu) -> None:
    """On either side of the channels named, what the fusion removes from the floor of a large image."""
    edge = mlp_break_even(4, gpu, "fp16")

    def removed(dim: int) -> float:
        n = 1 << 26  # so many positions that weights do not count
        size = dim * n
        block = Block(
            "b", 1, 0, dim, size,
            (
                Operator("mlp.conv", ("x",), size),
                Operator("mlp.fc1", ("mlp.conv",), 4 * size, 4 * dim * size, 4 * dim * (dim + 1)),
                Operator("mlp.act", ("mlp.fc1",), 4 * size, pointwise=True),
                Operator("mlp.fc2", ("mlp.act",), size, 4 * dim * size, dim * (4 * dim + 1)),
                Operator("mlp.residual", ("mlp.fc2", "x"), size),
            ),
        )  # fmt: skip
        everywhere = [*FUSIONS[:4], type(FUSIONS[4])("mlp", FUSIONS[4].groups)]
        before, after = (work_of(block, f, gpu, "fp16", 1) for f in (FUSIONS[:4], everywhere))
        assert after.kernels == before.kernels - 1
        return (before.us - after.us) / before.us

    assert removed(math.floor(edge * 0.98)) > 1e-4
    assert removed(math.ceil(edge * 1.02)) == pytest.approx(0, abs=1e-9)


def test_a_fused_mlp_has_room_where_its_rows_fit() -> None:
    blocks = {b.name: b for b in operators(FastViTHDConfig(), 256, 256)}
    for name, block in blocks.items():
        if name.endswith(".blocks"):
            fused = any({"mlp.fc1", "mlp.fc2"} <= {op.name for op in k} for k in kernels_of(block, FUSIONS))
            assert fused == (block.dim <= MLP_MAX_DIM), name


def test_what_bounds_a_kernel() -> None:
    """Peak rates decide: with slow memory it is memory, with slow cores the cores."""
    config, sizes = VARIANTS["fastvithd"], [(512, 512)]
    for gpu, bound in (
        (Gpu("memory", 1e6, 1e6, 1), "memory"),
        (Gpu("tensor", 1, 1e6, 1e6), "tensor_cores"),
        (Gpu("cuda", 1e6, 1e-3, 1e6), "cuda_cores"),
    ):
        (floor,) = roofline(config, sizes, gpu).floors
        assert floor.fused.bound == bound
    total = roofline(config, sizes, Gpu("tensor", 1, None, 1e6)).floors[0].fused
    assert total.us_by["cuda_cores"] == 0
    grouped = sum(b.count * op.macs for b in operators(config, 512, 512) for op in b.operators if op.grouped)
    floor = roofline(config, sizes, Gpu("tensor", 1e-3, None, 1e9)).floors[0]
    assert floor.fused.us_by["tensor_cores"] == pytest.approx(
        2 * (1e9 * (floor.gmacs + floor.attention_gmacs) - grouped) / 1e9 * 1e6, rel=1e-6
    )


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        get_gpu("h1000")
    with pytest.raises(ConfigError, match="bandwidth of a GPU must be positive"):
        Gpu("none", 1, 1, 0)
    config = VARIANTS["tiny"]
    with pytest.raises(ConfigError, match="multiple of 64"):
        roofline(config, [(100, 64)], FAST)
    with pytest.raises(ConfigError, match="batch"):
        roofline(config, [(64, 64)], FAST, batch=0)
    with pytest.raises(ConfigError, match="precision"):
        roofline(config, [(64, 64)], FAST, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--fp32-tflops"):
        roofline(config, [(64, 64)], Gpu("half known", 1, None, 1), precision="fp32")


def test_plain_data() -> None:
    report = roofline(VARIANTS["tiny"], [(64, 64), (128, 64)], get_gpu("l4"), batch=2)
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [floor["resolution"] for floor in data["floors"]] == [[64, 64], [128, 64]]
    assert data["floors"][0]["blocks"][0]["fused"].keys() == {"kernels", "bytes", "us", "us_by", "bound"}
