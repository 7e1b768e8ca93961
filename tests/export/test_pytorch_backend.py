"""The backends that run the model itself: eager, torch.compile, and our own kernels."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fvexport.core.errors import ArtifactError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.preprocess import Preprocessor
from fvexport.export import backend_table
from fvexport.export.artifact import Artifact
from fvexport.export.backend_table import get_backend, why_absent
from fvexport.export.parity import check_parity
from fvexport.export.parity_backends import ParityPyTorch
from fvexport.export.runtime import Encoder, OnnxRuntimeBackend, PyTorchBackend, TensorBackend

FP16_BOUND = 5e-3 if torch.cuda.is_available() else 1e-5
"""Between two ways of computing an FP16 model, which a CPU computes in float32."""

Export = Callable[..., Artifact]
Distance = Callable[[Any, Any], float]


@pytest.fixture(scope="module")
def pixels(photographs: dict[str, Path]) -> np.ndarray:
    return Preprocessor(128, 128)([photographs["astronaut"], photographs["coffee"]])


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"batch": None}, 1e-5),
        ({"batch": None, "projector": True}, 1e-5),
        ({"batch": None, "precision": "fp16"}, 5e-3),
        ({"batch": None, "precision": "bf16"}, 5e-2),
    ],
)
def test_same_as_float64(
    exported: Export, tiny: Checkpoint, pixels: np.ndarray, distance: Distance, options: dict[str, Any], bound: float
) -> None:
    found = PyTorchBackend(exported(**options)).run(pixels)
    with torch.inference_mode():
        wanted = load_checkpoint(variant="tiny").encoder.double()(torch.from_numpy(pixels).double())
        if "projector" in options:
            wanted = load_checkpoint(variant="tiny").connector.double()(wanted)
    assert found.dtype == np.float32
    assert distance(found, wanted) < bound


def test_levels_instead_of_floats(exported: Export, photographs: dict[str, Path], distance: Distance) -> None:
    levels = Preprocessor(128, 128).pixels(photographs["astronaut"])[None]
    artifact = exported(input="uint8")
    assert distance(PyTorchBackend(artifact).run(levels), OnnxRuntimeBackend(artifact).run(levels)) < 1e-5


def test_tensors_in_and_out(exported: Export, pixels: np.ndarray) -> None:
    encoder = Encoder(exported(), backend="eager", checkpoint=load_checkpoint(variant="tiny"))
    assert isinstance(encoder.backend, TensorBackend)
    levels = np.rint(pixels * 255).astype(np.uint8)
    found = encoder.run_tensor(torch.from_numpy(levels))  # a file with batch 1, run twice
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.cpu().numpy(), encoder.run(levels), atol=1e-6)
    assert encoder.run_tensor(torch.from_numpy(levels[:0])).shape == (0, 4, 256)
    through_numpy = Encoder(exported())
    assert not isinstance(through_numpy.backend, TensorBackend)
    torch.testing.assert_close(through_numpy.run_tensor(torch.from_numpy(levels)), found.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_parity_of_each_precision(exported: Export, precision: str) -> None:
    verdict = check_parity(exported(precision=precision), backend="eager", layers=True)
    assert verdict.passed, verdict.reason
    assert verdict.backend.startswith("eager, computing PyTorch, fused form")
    assert [layer.name for layer in verdict.layers][-1] == "final_conv"


def test_other_weights_than_the_artifacts(exported: Export) -> None:
    with pytest.raises(ArtifactError, match="made from other weights"):
        Encoder(exported(), backend="eager", checkpoint=str(Path(__file__).parents[1] / "data/golden/llava_tiny"))


def test_quantized_files_are_refused(made: Callable[[str], Any]) -> None:
    with pytest.raises(UnavailableError, match=r"eager runs fp32, fp16, bf16, fp8; .* is int8"):
        PyTorchBackend(made("onnxruntime-cpu").artifact)


@pytest.mark.parametrize("asked", [{"taps": ["stem.0"]}, {"emulate_half": True}])
@pytest.mark.skipif(why_absent(get_backend("torch-compile")) is not None, reason="no C++ compiler")
def test_what_compiled_code_cannot_do(exported: Export, asked: dict[str, Any]) -> None:
    with pytest.raises(UnavailableError, match="take --backend eager"):
        ParityPyTorch(exported(), "torch-compile", **asked)


@pytest.mark.skipif(why_absent(get_backend("torch-compile")) is not None, reason="no C++ compiler")
@pytest.mark.long
def test_compiled(exported: Export, pixels: np.ndarray, distance: Distance) -> None:
    artifact = exported(batch=None)
    backend = PyTorchBackend(artifact, "torch-compile", threads=1)
    assert distance(backend.run(pixels[:1]), PyTorchBackend(artifact).run(pixels[:1])) < 1e-5
    assert backend.computes.endswith("torch.compile")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `triton` run where there is no GPU: its operators compute in PyTorch then, without a CUDA graph."""
    monkeypatch.setattr("fvexport.export.runtime.pytorch_backend.require", lambda row: None)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("options", "bound"),
    [({}, 1e-5), ({"projector": True}, 1e-5), ({"precision": "fp16"}, FP16_BOUND), ({"precision": "bf16"}, 5e-2)],
)
def test_kernels(
    exported: Export, pixels: np.ndarray, distance: Distance, options: dict[str, Any], bound: float
) -> None:
    artifact = exported(batch=None, **options)
    backend = PyTorchBackend(artifact, "triton")
    assert backend.computes.endswith("Triton kernels") and isinstance(backend, TensorBackend)
    assert distance(backend.run(pixels), PyTorchBackend(artifact).run(pixels)) < bound
    assert torch.equal(backend.launch(torch.from_numpy(pixels)), backend.run_tensor(torch.from_numpy(pixels)))


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("asked", [{"taps": ["stem.0"]}, {"emulate_half": True}])
def test_what_kernels_cannot_do(exported: Export, asked: dict[str, Any]) -> None:
    with pytest.raises(UnavailableError, match=r"triton shows no inner tensors .*take --backend eager"):
        ParityPyTorch(exported(), "triton", **asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_need_a_gpu(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    row = get_backend("triton")
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: False)
    if importlib.util.find_spec("triton") is not None:
        assert why_absent(row) == "no NVIDIA GPU found"
        monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: True)
        assert "has no CUDA" in str(why_absent(row))
    with pytest.raises(UnavailableError, match=r"backend triton cannot run here: .*pip install .fvexport\[triton\]"):
        Encoder(exported(), backend="triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_absent(row) == "triton is not installed"


@pytest.mark.parametrize(("capability", "reason"), [((7, 5), "the GPU is of compute capability 7.5"), ((8, 0), None)])
def test_kernels_need_ampere(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str | None) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = why_absent(get_backend("triton"))
    assert found == reason or (reason is not None and found is not None and found.startswith(reason))


@pytest.mark.gpu
def test_kernels_on_a_gpu(exported: Export, pixels: np.ndarray, distance: Distance) -> None:
    artifact = exported(batch=None, precision="fp16")
    backend = PyTorchBackend(artifact, "triton")
    first = backend.run_tensor(torch.from_numpy(pixels))
    kept = first.clone()
    backend.run_tensor(torch.from_numpy(pixels[:1]))  # another graph
    backend.run_tensor(torch.from_numpy(pixels * 0))
    assert torch.equal(first, kept)
    assert torch.equal(first, backend.launch(torch.from_numpy(pixels)))
    assert distance(first.cpu(), PyTorchBackend(artifact).run(pixels)) < 5e-3


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert backend_table.why_absent(get_backend("torch-compile")) == "no C++ compiler found"


def flags(backend: PyTorchBackend, pixels: np.ndarray) -> tuple[bool, bool]:
    """(TF32 allowed, cuDNN's algorithms tried) while the model runs."""
    seen = []
    hook = backend._model.encoder.register_forward_hook(
        lambda *_: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    backend.run(pixels[:1])
    hook.remove()
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before == (True, False)
    return seen[-1]


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("target", ["eager", "triton"])
def test_float32_is_not_tf32(exported: Export, pixels: np.ndarray, target: str) -> None:
    assert flags(PyTorchBackend(exported(), target), pixels) == (False, False)


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["eager", "triton"])
def test_float32_is_not_tf32_on_a_gpu(exported: Export, pixels: np.ndarray, distance: Distance, target: str) -> None:
    artifact = exported(batch=None)
    backend = PyTorchBackend(artifact, target)
    assert flags(backend, pixels) == (False, True)
    with torch.inference_mode():
        wanted = load_checkpoint(variant="tiny").encoder.double()(torch.from_numpy(pixels).double())
    assert distance(backend.run(pixels), wanted) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pixels_are_copied_once(exported: Export, pixels: np.ndarray, precision: str) -> None:
    """Device, dtype and layout change together."""

    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "copy" in str(func) or "clone" in str(func)
            return func(*args, **(kwargs or {}))

    backend = PyTorchBackend(exported(batch=None, precision=precision))
    with Copies() as copies:
        x = backend._prepare(torch.from_numpy(pixels))
    assert copies.count == 1 and x.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_are_given_back(exported: Export, pixels: np.ndarray, threads: int | None) -> None:
    before = torch.get_num_threads()
    PyTorchBackend(exported(), threads=threads).run(pixels[:1])
    assert torch.get_num_threads() == before
