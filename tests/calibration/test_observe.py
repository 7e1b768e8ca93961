"""What is observed against plain hooks and all values, and models that are damaged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvexport.calibration import observe as observe_module
from fvexport.calibration.fp16 import plan_fp16
from fvexport.calibration.observe import observe_peaks
from fvexport.calibration.photos import CalibrationData, calibration_data
from fvexport.calibration.policy import QUANT_TARGETS, Policy
from fvexport.calibration.ranges_file import Stats
from fvexport.core.errors import ConfigError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.fastvithd import Attention, FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = Preprocessor(128, 128)
COUNT = 4


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# What is seen


def plain(model: FastViTHD, data: CalibrationData) -> dict[str, list[Tensor]]:
    """Every module's inputs and outputs as PyTorch's own hooks hand them over, and all attention scores."""
    seen: dict[str, list[Tensor]] = {}
    model = copy.deepcopy(model)

    def keep(name: str, x: Tensor) -> None:
        seen.setdefault(name, []).append(x.clone())

    def scores(name: str, attention: Attention, qkv: Tensor) -> None:
        heads = qkv.shape[-1] // 3 // attention.head_dim
        q, k, _ = qkv.view(1, -1, 3, heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        keep(f"{name}:scores", q @ k.transpose(-1, -2))

    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, args, y, name=name: (keep(f"{name}:in", args[0]), keep(name, y), None)[2]
        )
        if isinstance(module, Attention):
            module.qkv.register_forward_hook(lambda _m, _a, y, name=name, at=module: scores(name, at, y))
    with torch.inference_mode():
        for index in range(len(data)):
            model(torch.from_numpy(data.pixels(index, FRAME))[None].float() / 255)
    return seen


def test_extremes_are_those_of_plain_hooks(fused_tiny: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    seen = plain(fused_tiny, data)
    assert len(whole.amax) > 80
    for tap, value in whole.amax.items():
        assert value == pytest.approx(max(float(x.abs().max()) for x in seen[tap]), rel=1e-6), tap
    for tap, histogram in whole.histograms.items():
        axes = (0, 2, 3) if seen[tap][0].ndim == 4 else (0, 1)
        if len(histogram.low) == 1:
            axes = tuple(range(seen[tap][0].ndim))
        low, high = (torch.stack([f(x, axes) for x in seen[tap]]) for f in (torch.amin, torch.amax))
        # Not equal to the last bit: convolutions sum in another order on other numbers of threads.
        torch.testing.assert_close(histogram.low, low.amin(0).view(-1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(histogram.high, high.amax(0).view(-1), rtol=1e-5, atol=1e-6)


def test_samples_where_all_positions_are_taken(fused_tiny: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    """128 x 128 pixels have fewer positions than are sampled: means and covariances are those of all values."""
    seen = plain(fused_tiny, data)
    assert whole.key.rows == 4096
    for tap, moments in whole.moments.items():
        x = torch.cat([y.flatten(2).transpose(1, 2) if y.ndim == 4 else y for y in seen[tap]], 1)[0].double().numpy()
        assert moments.rows == len(x)
        np.testing.assert_allclose(moments.mean.double(), x.mean(0), rtol=1e-4, atol=1e-6)
        wanted = np.cov(x.T, bias=True)
        scale = np.sqrt(np.outer(wanted.diagonal(), wanted.diagonal()))
        assert (np.abs(moments.covariance.double().numpy() - wanted) <= 1e-3 * scale + 1e-12).all()
        assert whole.histograms[tap].counts.sum().item() == x.size


def test_fewer_positions_are_sampled(run: Callable[..., Stats], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of each picture, each of them once."""
    monkeypatch.setattr(observe_module, "ROWS_IN_ALL", 0)
    stats = run()
    assert stats.key.rows == 256
    for tap, moments in stats.moments.items():
        assert 0 < moments.rows <= COUNT * 256, tap
        assert stats.histograms[tap].counts.sum() == moments.rows * len(moments.mean)
    assert stats.moments["stages.0.blocks.0.mlp.fc1:in"].rows == COUNT * 256


def test_fp16_finds_every_tap(fused_tiny: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    assert not plan_fp16(fused_tiny, whole.amax).needed
    assert not plan_fp16(fused_tiny, observe_peaks(fused_tiny, data, FRAME)).needed


@pytest.mark.parametrize("target", QUANT_TARGETS)
def test_quantization_finds_every_tap(fused_tiny: FastViTHD, whole: Stats, target: str) -> None:
    policy = Policy(target)
    for name, module in fused_tiny.named_modules():
        if policy.quantizes(name):
            width = module.weight.shape[1]
            assert whole.moments[f"{name}:in"].mean.shape == (width,)
            channels = 1 if name.endswith("fc2") else width
            assert whole.histograms[f"{name}:in"].counts.shape[0] == channels
        if policy.quantizes_output(name):
            channels = 1 if name.endswith("fc1") else module.weight.shape[0]
            assert whole.histograms[name].counts.shape[0] == channels


def test_peaks_alone(fused_tiny: FastViTHD, data: CalibrationData, whole: Stats) -> None:
    """The same values, of fewer taps, in the order of running."""
    calls: list[tuple[str, int, int | None]] = []
    peaks = observe_peaks(fused_tiny, data, FRAME, progress=lambda *call: calls.append(call))
    assert peaks.keys() <= whole.amax.keys()
    assert peaks == pytest.approx({tap: whole.amax[tap] for tap in peaks}, rel=1e-5)
    assert calls == [("calibrate", done, COUNT) for done in range(COUNT + 1)]
    assert not hooks(fused_tiny)


def test_uint8_pixels(seeded_tiny: Checkpoint, data: CalibrationData, whole: Stats, run: Callable[..., Stats]) -> None:
    """A model that takes levels sees the same activations, and shares the cache."""
    fused = reparameterize(seeded_tiny.encoder, uint8_input=True)
    stats = run(model=fused)
    assert stats.key == whole.key
    for found in (stats.amax, observe_peaks(fused, data, FRAME)):
        for tap, value in found.items():
            assert value == pytest.approx(whole.amax[tap], rel=1e-3)


def test_only_the_fused_form(seeded_tiny: Checkpoint, run: Callable[..., Stats]) -> None:
    with pytest.raises(ConfigError, match=r"needs the fused form; call reparameterize"):
        run(model=seeded_tiny.encoder)


def test_memory_does_not_grow(
    fused_tiny: FastViTHD, data: CalibrationData, whole: Stats, run: Callable[..., Stats]
) -> None:
    def held(stats: Stats) -> int:
        tensors = [
            t for kept in (stats.histograms, stats.moments) for part in kept.values() for t in vars(part).values()
        ]
        return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))

    one = run(data=replace(data, pictures=data.pictures[:1], fingerprint="one"))
    assert held(one) == held(whole) > 1e5


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["stem.1.reparam_conv", "stages.1.blocks.0.mlp.fc1", "stages.3.blocks.0.token_mixer.qkv"]
)
def test_damaged_weights(
    fused_tiny: FastViTHD, data: CalibrationData, run: Callable[..., Stats], tmp_path: Path, name: str, value: float
) -> None:
    """The first module whose output is not finite is named, nothing is kept, and no hook stays."""
    broken = copy.deepcopy(fused_tiny)
    broken.get_submodule(name).bias.data[0] = value
    for call in (lambda: run(model=broken), lambda: observe_peaks(broken, data, FRAME)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert f"infinite or undefined at {name}:" in str(caught.value)
        assert "checkpoint is damaged" in str(caught.value)
        assert not hooks(broken)
    assert not (tmp_path / "cache").exists()


def test_ranges_are_observed_without_tf32(seeded_tiny: Checkpoint, tmp_path: Path) -> None:
    model, data = reparameterize(seeded_tiny.encoder), calibration_data(None, 1)
    seen: list[bool] = []
    model.final_conv.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    observe_module.observe(model, seeded_tiny.info, data, FRAME, cache=tmp_path)
    observe_peaks(model, data, FRAME)
    assert seen == [False, False] and torch.backends.cudnn.allow_tf32
