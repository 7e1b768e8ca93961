"""Models that overflow in FP16 as they are and not as fitted: in PyTorch, and in the exported file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration.fp16 import fit_fp16, plan_fp16
from fvexport.encoder.fastvithd import Attention, FastViTHD
from fvexport.export.export_options import ExportOptions
from fvexport.export.parity_backends import EagerReference
from fvexport.export.runtime import EagerBackend
from fvexport.export.runtime.emulate_half import with_rounding
from fvexport.export.runtime.onnxruntime_backend import EXTERNAL_FOLDER
from fvexport.export.simplification import simplified, write_graph
from fvexport.export.tracing import ExportModule, trace

ort = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[FastViTHD], None]
FP16_MAX = 65504.0
BLOCK = "stages.3.blocks.0"


@pytest.fixture(scope="module")
def tiny(fused_tiny: FastViTHD) -> FastViTHD:
    """Fused, in float32."""
    return fused_tiny


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, 128, 128), np.float32)


@contextmanager
def observed(model: FastViTHD, amax: dict[str, float]) -> Iterator[None]:
    """Takes the largest absolute input and output of every module, and attention scores."""

    def see(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = {name: output, f"{name}:in": inputs[0]}
        if isinstance(module, Attention):
            q, k, _ = (t.unflatten(-1, (-1, module.head_dim)) for t in module.qkv(inputs[0]).chunk(3, -1))
            values[f"{name}:scores"] = torch.einsum("bqhd,bkhd->bhqk", q, k)
        amax.update((tap, max(amax.get(tap, 0.0), float(value.abs().max()))) for tap, value in values.items())

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: see(name, m, i, o))
        for name, module in model.named_modules()
    ]
    yield
    for handle in handles:
        handle.remove()


def ranges(model: FastViTHD, pixels: np.ndarray) -> dict[str, float]:
    amax: dict[str, float] = {}
    with observed(model, amax):
        EagerBackend(model).run(pixels)
    return amax


def enlarged(model: FastViTHD, change: Change) -> FastViTHD:
    model = copy.deepcopy(model)
    with torch.no_grad():
        change(model)
    return model


def grow_attention_stream(model: FastViTHD, factor: float = 2.0**17) -> None:
    """The same function, with stage 4's stream larger by `factor`."""
    stage, block = model.stages[3], model.stages[3].blocks[0]
    for part in (stage.pos_emb.reparam_conv, block.token_mixer.proj, block.mlp.fc2):
        part.weight *= factor
        part.bias *= factor
    block.norm.eps *= factor**2
    for reader in (block.mlp.conv, model.stages[4].downsample.proj[0].reparam_conv):
        reader.weight /= factor


def grow_mixer_stream(model: FastViTHD, factor: float = 2.0**17) -> None:
    """The same in stage 3, whose stream starts at its first mixer; weights come near FP16's end too."""
    first, second = model.stages[2].blocks
    for part in (first.token_mixer.reparam_conv, first.mlp.fc2, second.mlp.fc2):
        part.weight *= factor
        part.bias *= factor
    second.token_mixer.reparam_conv.bias *= factor
    for reader in (first.mlp.conv, second.mlp.conv, model.stages[3].downsample.proj[0].reparam_conv):
        reader.weight /= factor


def grow_hidden(model: FastViTHD) -> None:
    """fc1's outputs pass FP16's end, and fc2 takes them back to where they were."""
    mlp = model.stages[4].blocks[0].mlp
    mlp.fc1.weight *= 1e6
    mlp.fc2.weight /= 1e6


def grow_scores(model: FastViTHD) -> None:
    """Every key moves the same way: scores pass FP16's end, and the softmax is what it was."""
    bias = model.stages[3].blocks[0].token_mixer.qkv.bias  # (3C,)
    bias[len(bias) // 3 : 2 * len(bias) // 3] += 2e4


def grow_embedding(stage: int) -> Change:
    """What the embedding hands to its stage passes FP16's end; the stage's first convolution takes it back."""

    def change(model: FastViTHD) -> None:
        part = model.stages[stage]
        part.downsample.proj[1].reparam_conv.weight *= 1e6
        part.downsample.proj[1].reparam_conv.bias *= 1e6
        reader = part.pos_emb if stage >= 3 else part.blocks[0].token_mixer
        reader.reparam_conv.weight /= 1e6

    return change


def grow_stem(model: FastViTHD) -> None:
    """Two borders in a row: stem.1 hands on to stem.2, that to the first mixer."""
    for i in (1, 2):
        model.stem[i].reparam_conv.bias += 3e5
    model.stages[0].blocks[0].token_mixer.reparam_conv.weight /= 1e6


def grow_last(model: FastViTHD) -> None:
    """The last convolution passes FP16's end, and its gate brings that back."""
    model.final_conv.reparam_conv.weight *= 2e5
    model.final_conv.se.fc1.weight /= 2e5
    model.final_conv.se.fc2.bias -= 11


CASES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "attention stream": (grow_attention_stream, ()),
    "mixer stream": (grow_mixer_stream, ()),
    "hidden": (grow_hidden, ("stages.4.blocks.0.mlp",)),
    "scores": (grow_scores, (f"{BLOCK}.token_mixer",)),
    "embedding 2": (grow_embedding(1), ("stages.1.downsample", "stages.1.blocks.0.token_mixer")),
    "embedding 4": (grow_embedding(3), ("stages.3.downsample", "stages.3.pos_emb")),
    "stem": (grow_stem, ("stem.1", "stem.2", "stages.0.blocks.0.token_mixer")),
    "last": (grow_last, ("final_conv",)),
}


def exported(model: FastViTHD, folder: Path) -> onnx.ModelProto:
    """The file of this very model: traced, simplified under our rules, written."""
    options = ExportOptions(precision="fp16", height=128, width=128, batch=2)
    graph, words = simplified(trace(ExportModule(copy.deepcopy(model), None, options), options), options, model.config)
    assert words.kept_unsimplified is None
    write_graph(graph, folder)
    onnx.checker.check_model(str(folder / "encoder.onnx"), full_check=True)
    return onnx.load(str(folder / "encoder.onnx"), load_external_data=False)


def run(proto: onnx.ModelProto, folder: Path, pixels: np.ndarray) -> np.ndarray:
    """As a GPU stores it."""
    settings = ort.SessionOptions()
    settings.add_session_config_entry(EXTERNAL_FOLDER, str(folder))
    source = with_rounding(proto, "fp16").SerializeToString()
    session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixels})[0]


def cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of the worst token."""
    a, b = (torch.from_numpy(v).double() for v in (found, wanted))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).min())


@pytest.mark.parametrize("case", CASES)
def test_overflow_is_mended(tiny: FastViTHD, pixels: np.ndarray, tmp_path: Path, case: str) -> None:
    change, parts = CASES[case]
    model = enlarged(tiny, change)
    wanted = EagerBackend(model).run(pixels)
    if case == "scores":  # PyTorch's attention never stores them, the file's does
        naive = run(exported(model, tmp_path), tmp_path, pixels)
    else:
        naive = EagerReference(model, emulate_half=torch.float16).run(pixels)
    assert not np.isfinite(naive).all()
    plan = plan_fp16(model, ranges(model, pixels))
    assert plan.float32 == parts
    assert any(plan.exponents) == (case.endswith("stream"))
    assert max(plan.peaks.values()) > FP16_MAX
    fitted = fit_fp16(model, plan)
    np.testing.assert_allclose(EagerBackend(fitted).run(pixels), wanted, rtol=1e-5, atol=1e-6)
    stored = EagerReference(fitted, emulate_half=torch.float16).run(pixels)
    real = EagerBackend(copy.deepcopy(fitted).half()).run(pixels)
    proto = exported(fitted, tmp_path)
    for found in (stored, real, run(proto, tmp_path, pixels)):
        assert np.isfinite(found).all()
        assert cosine(found, wanted) >= 0.9999
    check_graph(proto, parts)


def check_graph(proto: onnx.ModelProto, parts: tuple[str, ...]) -> None:
    """Weights are float32 in these parts alone, and each run of parts has one cast in and one out."""
    weights = {t.name: t.data_type for t in proto.graph.initializer if t.name.endswith((".weight", ".bias"))}
    wide = {name for name, kind in weights.items() if kind == onnx.TensorProto.FLOAT}
    assert {next(p for p in parts if name.startswith(f"{p}.module.")) for name in wide} == set(parts)
    assert all(name in wide for name in weights if name.startswith(tuple(f"{p}." for p in parts)))
    casts = [n for n in proto.graph.node if n.op_type == "Cast" and n.input[0] != "pixel_values"]
    kinds = [n.attribute[0].i for n in casts if "image_features" not in n.output]
    assert kinds == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16] * bool(parts)
    names = {out for node in proto.graph.node for out in node.output}
    assert {"stages.3.pos_emb", "stages.1.downsample", BLOCK, "final_conv"} <= names
