"""`Encoder`: images of any kind in, features out, equal to the eager model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fvexport.core import hardware
from fvexport.core.errors import ArtifactError, ConfigError, ImageError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.float32 import InFloat32
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export.artifact import Artifact
from fvexport.export.parity_backends import EagerReference, ParityOnnxRuntime
from fvexport.export.runtime import EagerBackend, Encoder, OnnxRuntimeBackend

Export = Callable[..., Artifact]
Distance = Callable[[Any, Any], float]


@pytest.fixture(scope="module")
def files(photographs: dict[str, Path]) -> list[Path]:
    return [photographs["astronaut"], photographs["coffee"], photographs["astronaut"]]


@pytest.fixture(scope="module")
def wanted(tiny: Checkpoint, files: list[Path]) -> np.ndarray:
    with torch.inference_mode():
        return tiny.encoder(torch.from_numpy(Preprocessor(128, 128)(files))).numpy()


@pytest.mark.parametrize(
    "options", [{}, {"batch": 2}, {"batch": None}, {"batch": None, "dynamic_res": True}, {"input": "uint8", "batch": 2}]
)
def test_any_number_of_images(
    exported: Export, files: list[Path], wanted: np.ndarray, distance: Distance, options: dict[str, Any]
) -> None:
    encoder = Encoder(exported(**options))
    assert encoder.shape == (4, 256)
    for count in (1, 2, 3):
        found = encoder(files[:count])
        assert found.dtype == np.float32
        assert distance(found, wanted[:count]) < 1e-5
    assert encoder.run(np.zeros((0, 3, 128, 128), np.uint8)).shape == (0, 4, 256)


def test_any_kind_of_image(static: Artifact, files: list[Path], wanted: np.ndarray, distance: Distance) -> None:
    encoder = Encoder(static.path)
    image = Image.open(files[0]).convert("RGB")
    for one in (files[0], str(files[0]), image, np.asarray(image)):
        assert distance(encoder(one), wanted[:1]) < 1e-5
    assert distance(encoder((image, str(files[1]))), wanted[:2]) < 1e-5


@pytest.mark.parametrize("batch", [1, None])
def test_no_image_and_no_usable_image(exported: Export, tmp_path: Path, batch: int | None) -> None:
    encoder = Encoder(exported(batch=batch))
    (tmp_path / "text.jpg").write_text("not a picture")
    assert encoder([]).shape == (0, 4, 256)
    for images in (tmp_path / "text.jpg", tmp_path / "absent.jpg"):
        with pytest.raises(ImageError):
            encoder(images)


def test_other_resolutions(dynamic: Artifact, tiny: Checkpoint, files: list[Path], distance: Distance) -> None:
    encoder = Encoder(dynamic, resolution=(192, 64))
    assert encoder.shape == (3, 256)
    with torch.inference_mode():
        eager = tiny.encoder(torch.from_numpy(Preprocessor(192, 64)(files)))
    assert distance(encoder(files), eager) < 1e-5
    for refused in ((100, 64), (0, 0), (64, 99968)):
        with pytest.raises(ConfigError):
            Encoder(dynamic, resolution=refused)


def test_resolution_of_a_static_file(static: Artifact) -> None:
    assert Encoder(static, resolution=(128, 128)).shape == (4, 256)
    with pytest.raises(ConfigError, match=r"takes 128x128 alone; export with --dynamic-res"):
        Encoder(static, resolution=(256, 256))


def test_projected_features(exported: Export, tiny: Checkpoint, files: list[Path], distance: Distance) -> None:
    encoder = Encoder(exported(projector=True))
    assert encoder.shape == (4, 64)
    assert tiny.connector is not None
    with torch.inference_mode():
        eager = tiny.connector(tiny.encoder(torch.from_numpy(Preprocessor(128, 128)(files[:1]))))
    assert distance(encoder(files[0]), eager) < 1e-5


def test_backend_names(static: Artifact) -> None:
    with pytest.raises(UnavailableError, match="did you mean 'onnxruntime-cpu'"):
        Encoder(static, backend="onnxruntime_cpu")


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino", "eager"])
def test_threads(static: Artifact, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """What is asked for; by default a container's quota, and without one the runtime's own choice."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setattr(hardware, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def taken(quota: float | None, **options: Any) -> object:
        monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
        found = Encoder(static, backend, checkpoint=tiny if backend == "eager" else None, **options).backend
        if isinstance(found, OnnxRuntimeBackend):
            return found.session.get_session_options().intra_op_num_threads
        if backend == "openvino":
            return found.settings.get("INFERENCE_NUM_THREADS")
        return found.threads

    choice = 0 if backend == "onnxruntime-cpu" else None
    assert [taken(quota) for quota in (None, 0.5, 2.0, 4.0)] == [choice, 1, 2, choice]
    assert [taken(quota, threads=3) for quota in (None, 0.5)] == [3, 3]
    for count in (0, -1, 10**6):
        with pytest.raises(ConfigError, match=r"threads must be from 1 to 1024 \(found "):
            taken(None, threads=count)


def test_file_that_onnxruntime_refuses(static: Artifact, copied: Callable[[Artifact], Path]) -> None:
    folder = copied(static)
    data = folder / "encoder.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    for artifact in (Artifact(folder, static.manifest),):  # opened before it was damaged
        with pytest.raises(ArtifactError, match="onnxruntime refuses"):
            OnnxRuntimeBackend(artifact)


def test_unknown_tap(static: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"no tensor 'stages\.9'"):
        ParityOnnxRuntime(static, taps=["stages.9"])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_eager_in_half_precision(tiny: Checkpoint, distance: Distance, half: torch.dtype) -> None:
    """Rounding what is stored stands for real half precision: about as far from float32, and close to it."""
    fused = reparameterize(tiny.encoder)
    before = {k: v.clone() for k, v in fused.state_dict().items()}
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    exact, rounded = EagerBackend(fused).run(pixels), EagerReference(fused, emulate_half=half).run(pixels)
    assert all(torch.equal(v, before[k]) for k, v in fused.state_dict().items())
    real = EagerBackend(reparameterize(tiny.encoder).to(half)).run(pixels)
    loss = distance(real, exact)
    assert loss / 2 < distance(rounded, exact) < 2 * loss
    assert torch.equal(torch.from_numpy(rounded).to(half).float(), torch.from_numpy(rounded))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_float32_inside_half_precision(tiny: Checkpoint, distance: Distance, half: torch.dtype) -> None:
    """Nothing is rounded inside an `InFloat32`, weights included; what it takes and returns is."""
    model = reparameterize(tiny.encoder)
    model.stages[3].blocks[0].mlp = part = InFloat32(model.stages[3].blocks[0].mlp)
    seen: dict[str, torch.Tensor] = {}
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    backend = EagerReference(model, emulate_half=half)  # runs a copy
    inner = backend.encoder.stages[3].blocks[0].mlp
    inner.register_forward_hook(lambda _m, i, o: seen.update({"in": i[0].clone(), "out": o.clone()}))
    inner.module.fc1.register_forward_hook(lambda _m, _i, o: seen.update(hidden=o.clone()))
    inner.module.register_forward_hook(lambda _m, _i, o: seen.update(result=o.clone()))
    backend.run(pixels)
    with torch.inference_mode():
        assert torch.equal(seen["result"], part.module(seen["in"]))
        assert torch.equal(seen["hidden"], part.module.fc1(part.module.conv(seen["in"])))
    assert torch.equal(seen["out"], seen["result"].to(half).float())
    for name, rounded in {"in": True, "hidden": False, "result": False, "out": True}.items():
        assert torch.equal(seen[name], seen[name].to(half).float()) == rounded


def test_eager_taps(tiny: Checkpoint) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    backend = EagerReference(tiny.encoder)
    pixels = np.zeros((2, 3, 64, 128), np.float32)
    features = backend.run_taps(pixels, lambda name, y: seen.__setitem__(name, y.shape))
    assert list(seen) == [name for name, _ in tiny.encoder.named_blocks()]
    assert seen["stages.1.blocks.0"] == (2, 16, 8, 16)
    seen.clear()
    np.testing.assert_array_equal(backend.run(pixels), features)
    assert not seen  # the hooks are gone
