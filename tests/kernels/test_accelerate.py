"""The accelerated model where no kernel runs, against the fused eager one; the interpreter has it in `interpreted/`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration.fp16 import Fp16Plan, fit_fp16
from fvexport.core.errors import ConfigError, UnavailableError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.float32 import InFloat32
from fvexport.encoder.reparameterize import reparameterize
from fvexport.kernels.accelerate import accelerate
from fvexport.kernels.cuda_graph import cuda_graph
from fvexport.kernels.dispatch import OPS, SWITCH

MODULE = importlib.import_module("fvexport.kernels.accelerate")  # the package has a function of that name


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 128, 64), (3, 3, 64, 192)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-13), (torch.float16, 1e-2)])
def test_same_features(fused: FastViTHD, shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        found = accelerate(copy.deepcopy(fused).to(dtype))(x)
        wanted = copy.deepcopy(fused).double()(x.double())
    assert found.shape == wanted.shape and found.dtype == dtype and found.is_contiguous()
    assert relative(found, wanted) < bound


def test_from_the_train_form(fused: FastViTHD) -> None:
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(accelerate(load_checkpoint(variant="tiny").encoder)(x), accelerate(fused)(x))


def test_levels_instead_of_floats() -> None:
    model = reparameterize(load_checkpoint(variant="tiny").encoder, uint8_input=True)
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert relative(accelerate(model)(x), model(x)) < 2e-6


def test_its_input_is_left_alone(fused: FastViTHD) -> None:
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    strides = {name: value.stride() for name, value in fused.named_parameters()}
    accelerate(fused).half()
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert strides == {name: value.stride() for name, value in fused.named_parameters()}


def test_cast_and_loaded_weights_count(fused: FastViTHD) -> None:
    """LayerNorm's correction needs the sums of qkv's weight as it is stored, in float32."""
    cast, loaded = accelerate(fused).half(), accelerate(fused)
    (block,) = [m for m in cast.modules() if hasattr(m, "sums")][:1]
    assert block.sums.dtype == torch.float32
    torch.testing.assert_close(block.sums, block.qkv.weight.double().sum(1).float(), rtol=0, atol=0)
    other = accelerate(reparameterize(load_checkpoint(variant="tiny", seed=1).encoder))
    loaded.load_state_dict(other.state_dict())
    pairs = zip(loaded.modules(), other.modules(), strict=True)
    assert all(torch.equal(a.sums, b.sums) for a, b in pairs if hasattr(a, "sums"))
    assert torch.equal(loaded.first.taps, other.first.taps)
    assert cast.first.taps.dtype == torch.float16 and torch.equal(
        cast.first.taps[:, :27], cast.first.conv.weight.flatten(1)
    )


ISLANDS = (
    "stem.1", "stem.2", "stages.0.blocks.0.token_mixer", "stages.1.downsample", "stages.1.blocks.0.token_mixer",
    "stages.2.blocks.1.mlp", "stages.3.pos_emb", "stages.3.blocks.0.token_mixer", "stages.4.blocks.0.mlp", "final_conv",
)  # fmt: skip


@pytest.mark.parametrize("islands", [ISLANDS, ISLANDS[3:6], ()])
def test_parts_in_float32_and_a_scaled_stream(fused: FastViTHD, islands: tuple[str, ...]) -> None:
    """What an FP16 artifact's model is: LayerNorm's eps is scaled, and some parts run in float32."""
    fitted = fit_fp16(fused, Fp16Plan((0, -2, 0, -6, -3), islands, {}, 8.0))
    x = torch.rand(1, 3, 128, 64)
    with torch.inference_mode():
        wanted = fused.double()(x.double())
        fused.float()
        assert relative(accelerate(fitted)(x), wanted) < 1e-5
        half = accelerate(copy.deepcopy(fitted).half())
        found, own = half(x.half()), copy.deepcopy(fitted).half()(x.half())
    assert len([m for m in half.modules() if isinstance(m, InFloat32)]) == len(islands)
    assert relative(found, wanted) < 2 * relative(own, wanted)


def test_quantized_models_are_refused(fused: FastViTHD) -> None:
    class Quantized(nn.Conv2d):
        pass

    model = copy.deepcopy(fused)
    model.stages[0].blocks[0].mlp.fc1 = Quantized(8, 32, 1).eval()
    with pytest.raises(ConfigError, match="before quantization; found a Quantized"):
        accelerate(model)


def test_training_mode_is_refused(fused: FastViTHD) -> None:
    with pytest.raises(ConfigError, match=r"call model.eval\(\) first"):
        accelerate(copy.deepcopy(fused).train())


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.rand(1, 3, 100, 64), "not a multiple of 64"),
        (torch.rand(3, 64, 64), r"must be \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "takes floating point"),
        (torch.rand(1, 3, 64, 64).half(), "computes in torch.float32"),
    ],
)
def test_pixels_are_checked_as_ever(fused: FastViTHD, x: Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        accelerate(fused)(x)


def test_which_kernels_may_run(fused: FastViTHD, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operator is told to use its kernel exactly where it is allowed and the table says so."""
    seen: set[str] = set()

    def watch(name: str) -> Callable[..., Tensor]:
        own = getattr(MODULE, name)

        def call(*args: object, kernel: bool = True, **kwargs: object) -> Tensor:
            if kernel:
                seen.add(name)
            return own(*args, kernel=kernel, **kwargs)

        return call

    for name in ("attention", "norm_linear", "linear_residual", "linear_gelu", "mlp", "depthwise", "stem"):
        monkeypatch.setattr(MODULE, name, watch(name))
    half, x = copy.deepcopy(fused).half(), torch.rand(1, 3, 64, 64).half()

    def used(model: FastViTHD, x: Tensor, **kwargs: object) -> set[str]:
        seen.clear()
        with torch.inference_mode():
            accelerate(model, **kwargs)(x)  # type: ignore[arg-type]
        return set(seen)

    assert used(half, x) == {
        "attention", "norm_linear", "linear_residual", "linear_gelu", "mlp", "depthwise", "stem",
    }  # fmt: skip
    assert used(half, x, kernels=()) == set()
    assert used(half, x, kernels=("mlp",)) == {"mlp"}
    assert used(half, x, kernels=("linear",)) == {"linear_residual", "linear_gelu"}
    assert used(fused, x.float()) == {"depthwise"}  # float32 products are PyTorch's
    monkeypatch.setenv(SWITCH, "attention,mlp")
    assert used(half, x) == {"attention", "mlp"}
    assert used(half, x, kernels=OPS) == {
        "attention",
        "norm_linear",
        "linear_residual",
        "linear_gelu",
        "mlp",
        "depthwise",
        "stem",
    }
    with pytest.raises(ConfigError, match="accelerate names no kernel or mode 'flash'"):
        accelerate(fused, kernels=("flash",))


def test_exports_with_one_node_for_each_operator(fused: FastViTHD) -> None:
    half = accelerate(copy.deepcopy(fused).half())
    x = torch.rand(1, 3, 64, 64).half()
    with torch.no_grad():
        program = torch.export.export(half, (x,))
        called = [str(n.target).split(".")[1] for n in program.graph.nodes if "fvexport" in str(n.target)]
        assert called.count("attention") == called.count("norm_linear") == 2
        assert (
            called.count("stem") == 1
            and called.count("mlp") == 6
            and called.count("depthwise") == 1 + 4 + 4 + 2 + 6 + 1
        )
        assert relative(program.module()(x), half(x)) < 1e-6


def test_without_tf32(fused: FastViTHD) -> None:
    model, seen = accelerate(fused), []
    for part in (model.first, model.body[-1]):
        part.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64))
    assert seen == [False, False] and torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_graph_without_a_gpu(fused: FastViTHD) -> None:
    with pytest.raises(UnavailableError, match="needs an NVIDIA GPU"):
        cuda_graph(accelerate(fused), (1, 3, 64, 64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_a_gpu(fused: FastViTHD, dtype: torch.dtype) -> None:
    """Kernels and graph: at most twice as far from float64 as the fused eager model in that dtype."""
    x = torch.rand(2, 3, 128, 128, device="cuda", dtype=dtype)
    eager = copy.deepcopy(fused).to("cuda", dtype)
    graph = cuda_graph(accelerate(eager), tuple(x.shape))
    with torch.inference_mode():
        wanted = copy.deepcopy(fused).to("cuda", torch.float64)(x.double())
        first = graph(x)
        assert relative(first, wanted) <= 2 * relative(eager(x), wanted)
        kept = first.clone()
        graph(torch.zeros_like(x))
        assert torch.equal(first, kept)  # the caller's to keep
    with pytest.raises(ConfigError, match="this CUDA graph takes"):
        graph(x[:1])
