"""Engines behind `Encoder`: refused where they cannot run, and on a GPU the same model, whatever the shape."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from fvexport.core.errors import ArtifactError, ConfigError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export import backend_table
from fvexport.export.artifact import Artifact
from fvexport.export.backend_table import BACKENDS, get_backend, require, why_absent
from fvexport.export.engine_export import export_trt
from fvexport.export.engines import binding
from fvexport.export.engines.api import Api
from fvexport.export.engines.engine_options import Profile
from fvexport.export.engines.engine_section import Gpu
from fvexport.export.parity import check_parity
from fvexport.export.parity_backends import parity_backend
from fvexport.export.runtime import Encoder, TensorRTBackend
from fvexport.export.runtime import encoder as encoder_module
from fvexport.export.runtime import tensorrt_backend as module

Onnx = Callable[..., Artifact]


def test_an_artifact_without_an_engine(onnx_artifact: Onnx) -> None:
    for target in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(ArtifactError, match=r"holds no engine: `fvexport trt --artifact .*` builds"):
            Encoder(onnx_artifact(), backend=target)


def test_inner_tensors(built) -> None:
    with pytest.raises(UnavailableError, match="tensorrt-rtx shows no inner tensors"):
        parity_backend(built(precision="fp16").artifact, "tensorrt-rtx", taps=["stem.0"])
    assert [t.name for t in BACKENDS if not t.taps] == ["torch-compile", "triton", "tensorrt", "tensorrt-rtx"]


def test_without_a_gpu(built) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UnavailableError, match="backend tensorrt-rtx cannot run here: no NVIDIA GPU found"):
        Encoder(built(precision="fp16").artifact, backend="tensorrt-rtx")


@pytest.fixture
def gpu_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the point where TensorRT itself is asked, as if a GPU were there."""
    monkeypatch.setattr(module, "require", lambda row: None)
    monkeypatch.setattr(
        module, "current_gpu", lambda: Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", driver="13.0")
    )


def test_a_plan_that_was_changed(built, tmp_path: Path, gpu_there: None) -> None:
    out = Path(shutil.copytree(built(precision="fp16").artifact.path, tmp_path / "out"))
    plan = bytearray((out / "encoder.plan").read_bytes())
    plan[len(plan) // 2] ^= 1
    (out / "encoder.plan").write_bytes(plan)
    with pytest.raises(ArtifactError, match=r"plan was changed after it was built \(SHA-256 differs\): build it"):
        TensorRTBackend(Artifact.open(out), "tensorrt-rtx")


def test_another_version_and_another_flavour(built, tensorrt, gpu_there: None) -> None:
    artifact = built(precision="fp16").artifact
    with pytest.raises(ArtifactError, match="holds an engine of tensorrt-rtx, not of tensorrt"):
        TensorRTBackend(artifact, "tensorrt")
    assert artifact.manifest.engine is not None
    older = replace(artifact.manifest.engine, version="1.2.0")
    other = Artifact(artifact.path, artifact.manifest.replace(engine=older))
    with pytest.raises(ArtifactError, match=r"TensorRT-RTX 1\.2\.0, .*here is TensorRT-RTX \d.*fvexport trt --force"):
        TensorRTBackend(other, "tensorrt-rtx")


def test_the_library_has_the_last_word(built, gpu_there: None) -> None:
    """All checks passed, and TensorRT itself finds no device: its reason is told."""
    if torch.cuda.is_available():
        pytest.skip("it would load")
    with pytest.raises(ArtifactError, match=r"TensorRT refuses .*encoder\.plan: .*; build it again"):
        TensorRTBackend(built(precision="fp16").artifact, "tensorrt-rtx")


class Recorded:
    """A backend that takes 2 to 3 images at once and returns their sums."""

    name, computes, stores = "recorded", "sums", None
    profile = Profile(batch=(2, 2, 3), height=(128,) * 3, width=(128,) * 3)

    def __init__(self) -> None:
        self.counts: list[int] = []

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        self.counts.append(len(pixel_values))
        return np.broadcast_to(pixel_values.sum((1, 2, 3), keepdims=True)[..., 0], (len(pixel_values), 4, 256)).copy()

    def run_tensor(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run(pixel_values.numpy()))


@pytest.mark.parametrize(("images", "calls"), [(1, [2]), (2, [2]), (3, [3]), (4, [3, 2]), (7, [3, 3, 2])])
def test_images_are_cut_to_what_the_engine_takes(
    onnx_artifact: Onnx, images: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Recorded()
    monkeypatch.setattr(encoder_module, "make_backend", lambda *_, **__: backend)
    encoder = Encoder(onnx_artifact(batch=None, dynamic_res=True), backend="tensorrt")
    pixels = np.random.default_rng(0).integers(0, 255, (images, 3, 128, 128), np.uint8)
    wanted = (pixels.astype(np.float32) / 255).sum((1, 2, 3))
    np.testing.assert_allclose(encoder.run(pixels)[:, 0, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(encoder.run_tensor(torch.from_numpy(pixels))[:, 0, 0], wanted, rtol=1e-5)
    assert backend.counts == calls * 2


class FakeEngine:
    """An engine of one fixed output, and the configuration that its context was made with."""

    def __init__(self) -> None:
        self.made_with: list[Any] = []

    def create_runtime_config(self) -> Any:
        return SimpleNamespace()

    def create_execution_context(self, runtime_config: Any = None) -> Any:
        self.made_with.append(runtime_config)
        return SimpleNamespace(
            set_input_shape=lambda name, size: True, get_tensor_shape=lambda name: (1, 4, 8),
            set_tensor_address=lambda name, address: True,
        )  # fmt: skip


def test_rtx_compiles_a_shapes_kernels_before_they_are_captured(tensorrt_rtx: Any, tensorrt: Any) -> None:
    """A CUDA graph would keep the kernels for any shape, which the first runs use by default."""
    found = {}
    for flavour, trt in (("tensorrt-rtx", tensorrt_rtx), ("tensorrt", tensorrt)):
        backend = TensorRTBackend.__new__(TensorRTBackend)
        backend._api = Api(trt, flavour, trt.__version__)
        backend._engine, backend._shapes, backend.device = FakeEngine(), {}, torch.device("cpu")
        backend._dtypes = dict.fromkeys(("pixel_values", "image_features"), torch.float32)
        assert backend._prepare((1, 3, 128, 128)).features.shape == (1, 4, 8)
        (found[flavour],) = backend._engine.made_with
    assert found["tensorrt"] is None
    eager = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    assert found["tensorrt-rtx"].dynamic_shapes_kernel_specialization_strategy == eager
    assert hasattr(tensorrt_rtx.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")


def test_targets_of_tensorrt_know_which_gpus_they_run_on(
    tensorrt_rtx: Any, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(backend_table, "rtx_devices", lambda: ["one"])
    find_spec = importlib.util.find_spec
    plugin = "onnxruntime_ep_nv_tensorrt_rtx"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == plugin else find_spec(name))

    def reasons(capability: str) -> dict[str, str | None]:
        monkeypatch.setattr(
            binding, "current_gpu", lambda: Gpu(name="a GPU", compute_capability=capability, driver="13.0")
        )
        return {t.name: why_absent(t) for t in BACKENDS if "tensorrt" in t.name}

    assert set(reasons("8.9").values()) == {None}
    hopper = reasons("9.0")
    assert hopper["tensorrt"] is None and hopper["onnxruntime-tensorrt"] is None
    for name in ("tensorrt-rtx", "onnxruntime-tensorrt-rtx"):
        assert str(hopper[name]).startswith(
            "TensorRT-RTX does not run on compute capability 9.0, only on 8.0, 8.6, 8.9"
        )
    volta = reasons("7.0")
    assert "needs compute capability 7.5 or later" in str(volta["tensorrt"])
    assert volta["onnxruntime-tensorrt"] == volta["tensorrt"] and "full" not in str(volta["tensorrt-rtx"])
    with pytest.raises(UnavailableError, match=r"only on 8\.0, .*; take another --backend$"):
        require(get_backend("tensorrt-rtx"))


def test_targets_of_tensorrt_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"tensorrt", "tensorrt_rtx", "onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in found else None)
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: False)
    names = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt-rtx")
    assert {why_absent(get_backend(name)) for name in names} == {"no NVIDIA GPU found"}
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_absent(get_backend("tensorrt")) == "torch is built without CUDA, or finds no GPU"
    monkeypatch.setattr(backend_table, "rtx_devices", list)
    assert "1.24 is the first" in str(why_absent(get_backend("onnxruntime-tensorrt-rtx")))
    found.clear()
    assert why_absent(get_backend("tensorrt-rtx")) == "tensorrt_rtx is not installed"


@pytest.mark.gpu
class TestOnAGpu:
    """Built with what the machine has, run, and compared with PyTorch."""

    @pytest.fixture
    def target(self) -> str:
        for name in ("tensorrt", "tensorrt-rtx"):
            if why_absent(get_backend(name)) is None:
                return name
        pytest.skip("no TensorRT that can run")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
    def test_parity(self, onnx_artifact: Onnx, tiny: Checkpoint, tmp_path: Path, target: str, precision: str) -> None:
        if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
            pytest.skip("no FP8 here")
        report = export_trt(out=tmp_path / "out", artifact=onnx_artifact(precision=precision))
        assert report.verdict is not None and report.verdict.passed
        assert report.verdict.backend.startswith(target)

    def test_graphs_and_buffers(self, onnx_artifact: Onnx, tmp_path: Path, target: str) -> None:
        artifact = export_trt(out=tmp_path / "out", artifact=onnx_artifact(), parity=False).artifact
        with_graph, without = TensorRTBackend(artifact, target), TensorRTBackend(artifact, target, cuda_graph=False)
        pixels = torch.rand((4, 1, 3, 128, 128), device="cuda")
        kept = [with_graph.run_tensor(x) for x in pixels]
        for x, found in zip(pixels, kept, strict=True):  # each result is the caller's to keep
            torch.testing.assert_close(found, without.run_tensor(x))
            np.testing.assert_array_equal(with_graph.run(x.cpu().numpy()), found.float().cpu().numpy())

    def test_several_resolutions_in_one_engine(self, onnx_artifact: Onnx, tmp_path: Path, target: str) -> None:
        source = onnx_artifact(batch=None, dynamic_res=True)
        spans = ((64, 128, 256), (64, 128, 320))
        artifact = export_trt(out=tmp_path / "out", artifact=source, batch=(1, 1, 2), resolutions=spans).artifact
        assert check_parity(artifact, backend=target).passed
        backend = TensorRTBackend(artifact, target)
        first = {size: backend.run(np.full((1, 3, *size), 0.5, np.float32)) for size in ((64, 64), (256, 320))}
        for size, features in first.items():
            np.testing.assert_array_equal(backend.run(np.full((1, 3, *size), 0.5, np.float32)), features)
        with pytest.raises(ConfigError, match="the engine takes height 64 to 256; found 320"):
            backend.run(np.zeros((1, 3, 320, 64), np.float32))
