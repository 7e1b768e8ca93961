"""One `Encoder` for many: threads get their own answers, pickles open the artifact again, forks are refused."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fvexport.core.errors import ArtifactError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.export.artifact import Artifact
from fvexport.export.parity_backends import EagerReference, parity_backend
from fvexport.export.runtime import (
    ArtifactTower,
    Encoder,
    OnnxRuntimeBackend,
    pickling,
    pytorch_backend,
    tensorrt_backend,
)

Export = Callable[..., Artifact]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 3, 128, 128), np.uint8)
ON_CPUS = ["onnxruntime-cpu", "openvino", "eager"]


def opened(artifact: Artifact, backend: str, tiny: Checkpoint, **options: Any) -> Encoder:
    if backend == "openvino":
        pytest.importorskip("openvino")
    return Encoder(artifact, backend, checkpoint=tiny if backend == "eager" else None, **options)


def in_threads(call: Callable[[int], Any], threads: int, calls: int) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, range(calls)))


# --- threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"input": "uint8", "batch": 2}, {"batch": None, "dynamic_res": True}], ids=str)
@pytest.mark.parametrize("backend", ON_CPUS)
def test_threads_get_their_own_answers(
    exported: Export, tiny: Checkpoint, backend: str, options: dict[str, Any]
) -> None:
    encoder = opened(exported(**options), backend, tiny, threads=1)
    alone = [encoder.run(image) for image in IMAGES]
    bound = 1e-4 * np.abs(alone).max()
    assert min(np.abs(a - b).max() for i, a in enumerate(alone) for b in alone[:i]) > 10 * bound
    calls = 60 if backend == "eager" or options else 250
    for index, found in enumerate(in_threads(lambda i: encoder.run(IMAGES[i % 6]), 4, calls)):
        assert np.abs(found - alone[index % 6]).max() < bound


def test_inner_tensors_are_those_of_the_calling_thread(static: Artifact, tiny: Checkpoint) -> None:
    eager = EagerReference(tiny.encoder)
    inputs = [image.astype(np.float32) / 255 for image in IMAGES]
    wanted = [eager.run(x) for x in inputs]
    last = [name for name, _ in tiny.encoder.named_blocks()][-1]

    def look(index: int) -> list[np.ndarray]:
        seen: list[np.ndarray] = []
        eager.run_taps(inputs[index % 6], lambda name, y: seen.append(y) if name == last else None)
        return seen

    alone = [look(i)[0] for i in range(6)]
    for index, found in enumerate(in_threads(look, 3, 12)):
        assert len(found) == 1
        np.testing.assert_allclose(found[0], alone[index % 6], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(eager.run(inputs[0]), wanted[0], rtol=1e-4, atol=1e-5)


class Buffer:
    """A GPU tensor of an engine, with time between its steps in which another thread can come."""

    def __init__(self, shape: Any = None) -> None:
        self.value: Any = shape

    def copy_(self, other: Any) -> None:
        self.value = other
        time.sleep(0.0005)

    def clone(self) -> Any:
        time.sleep(0.0005)
        return SimpleNamespace(value=self.value, record_stream=lambda _stream: None)


def test_an_engine_serves_one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers of TensorRT's backend, on a stand-in for the GPU: results are those of the caller's pixels."""
    stream = SimpleNamespace(wait_stream=lambda _other: None)
    monkeypatch.setattr(tensorrt_backend.torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(tensorrt_backend.torch.cuda, "stream", lambda _stream: nullcontext())
    backend = object.__new__(tensorrt_backend.TensorRTBackend)
    backend._pid, backend._lock, backend._stream, backend.device = os.getpid(), threading.Lock(), stream, "gpu"
    backend.profile = SimpleNamespace(check=lambda *_: None)
    shape = SimpleNamespace(pixels=Buffer(), features=Buffer())
    backend._shapes = {(1, 3, 64, 64): shape}
    monkeypatch.setattr(backend, "_execute", lambda s: s.features.copy_(s.pixels.value))

    def call(index: int) -> Any:
        return backend.run_tensor(SimpleNamespace(shape=(1, 3, 64, 64), to=lambda _device: index)).value

    assert in_threads(call, 4, 100) == list(range(100))


def test_a_turn_on_a_gpu_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    event = SimpleNamespace(record=lambda _stream: steps.append("ended"))
    stream = SimpleNamespace(wait_event=lambda _event: steps.append("waited"))
    monkeypatch.setattr(pytorch_backend.torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(pytorch_backend.torch.cuda, "current_stream", lambda _device: stream)
    turn = pytorch_backend._Turn(torch.device("cuda", 0))

    def call(_index: int) -> None:
        with turn:
            steps.append("ran")
            time.sleep(0.0005)

    in_threads(call, 4, 40)
    assert steps == ["waited", "ran", "ended"] * 40
    with pytest.raises(ValueError, match="stop"), turn:
        raise ValueError("stop")
    call(0)  # the lock was released


# --- pickles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("backend", ON_CPUS)
def test_copies_open_the_artifact_again(
    static: Artifact, tiny: Checkpoint, backend: str, again: Callable[[Encoder], Encoder]
) -> None:
    encoder = opened(static, backend, tiny, threads=1)
    copied = again(encoder)
    assert copied.backend is not encoder.backend and copied.backend.name == backend
    assert copied._recipe.arguments.keys() == encoder._recipe.arguments.keys()
    assert copied._recipe.arguments["threads"] == 1
    np.testing.assert_allclose(copied.run(IMAGES[0]), encoder.run(IMAGES[0]), rtol=1e-4, atol=1e-5)


def test_copies_keep_their_options(dynamic: Artifact, tiny: Checkpoint, tmp_path: Path) -> None:
    encoder = pickle.loads(pickle.dumps(Encoder(dynamic, resolution=(64, 192), threads=2)))
    assert (encoder.preprocessor.height, encoder.preprocessor.width) == (64, 192)
    assert encoder.backend.session.get_session_options().intra_op_num_threads == 2
    tower = pickle.loads(pickle.dumps(ArtifactTower(dynamic, None, resolution=(64, 128))))
    assert tower.resolution == (64, 128) and tower.encode(torch.zeros(1, 3, 64, 128)).shape == (1, 2, 256)
    backend = parity_backend(dynamic, "onnxruntime-cpu", taps=["final_conv"])
    assert isinstance(backend, OnnxRuntimeBackend)
    assert copy.deepcopy(backend).taps == ("final_conv",)
    assert copy.deepcopy(Encoder(dynamic, "eager", checkpoint=tiny))._recipe.arguments["checkpoint"] is tiny


def test_relative_paths_and_another_current_directory(
    static: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(static.path.parent)
    encoder, artifact = Encoder(static.path.name), Artifact.open(static.path.name)
    pickled = pickle.dumps((encoder, artifact))
    monkeypatch.chdir(tmp_path)
    for copied in (pickle.loads(pickled)[0], pickle.loads(pickle.dumps(encoder))):
        np.testing.assert_array_equal(copied.run(IMAGES[0]), encoder.run(IMAGES[0]))
    assert pickle.loads(pickled)[1].model_path.is_file()


def test_an_artifact_that_is_gone_or_another_one(
    static: Artifact, copied: Callable[[Artifact], Path], exported: Export, tmp_path: Path
) -> None:
    folder = copied(static)
    pickled = pickle.dumps(Encoder(folder))
    # A verdict or an engine that is added changes the manifest, but no feature.
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"created": "', '"created": "later than '))
    assert pickle.loads(pickled).run(IMAGES[0]).shape == (1, 4, 256)
    folder.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"no artifact at .*, which this Encoder was made of; move it back"):
        pickle.loads(pickled)
    shutil.copytree(exported(input="uint8", batch=2).path, folder)
    with pytest.raises(ArtifactError, match="was replaced after this Encoder was made of it; make another Encoder"):
        pickle.loads(pickled)


# --- forks -------------------------------------------------------------------------------------


def forked(work: Callable[[], str]) -> str:
    """What `work` returns in a forked process, or the error that it raises; stopped after a minute."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            told = work()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return told or "it hung"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestForks:
    @pytest.mark.parametrize("backend", ON_CPUS)
    def test_the_parents_encoder_is_refused(self, static: Artifact, tiny: Checkpoint, backend: str) -> None:
        encoder = opened(static, backend, tiny)
        encoder.run(IMAGES[0])
        image = np.moveaxis(IMAGES[0, 0], 0, 2)
        uses: list[Callable[[], Any]] = [
            lambda: encoder(image),
            lambda: encoder.run(IMAGES[0]),
            lambda: encoder.run_tensor(torch.from_numpy(IMAGES[0])),
            lambda: encoder.backend.run(IMAGES[0].astype(np.float32)),
        ]
        for use in uses:
            told = forked(use)
            assert told.startswith("UnavailableError: this "), told
            assert "was made before the process forked" in told and "multiprocessing's 'spawn'" in told
        encoder.run(IMAGES[0])  # the parent goes on

    @pytest.mark.parametrize("backend", ON_CPUS)
    def test_a_worker_can_make_its_own(self, static: Artifact, tiny: Checkpoint, backend: str) -> None:
        """Of a pickle too. PyTorch has one thread in these tests, and so leaves none behind."""
        encoder = opened(static, backend, tiny)
        wanted = encoder.run(IMAGES[0])
        told = forked(lambda: str(np.abs(copy.deepcopy(encoder).run(IMAGES[0]) - wanted).max() < 1e-4))
        assert told == "True"

    def test_torch_would_hang(self, static: Artifact, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pickling, "_torch_pid", None)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        opened(static, "eager", tiny)
        told = forked(lambda: str(opened(static, "eager", tiny)))
        assert told.startswith("UnavailableError: PyTorch computed in this process's parent before the fork"), told
        assert isinstance(opened(static, "eager", tiny).backend, pytorch_backend.PyTorchBackend)

    def test_a_pool_is_told_what_its_worker_cannot_open(self, static: Artifact, tmp_path: Path) -> None:
        """`Pool` waits forever for a task that its worker cannot read."""
        folder = tmp_path / "a"
        shutil.copytree(static.path, folder)
        encoder = Encoder(folder)
        folder.rename(tmp_path / "moved")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            for use in (encoder, encoder.run, encoder.run_tensor):
                with pytest.raises(ArtifactError, match=r"no artifact at .*, which this Encoder was made of"):
                    pool.map_async(use, [IMAGES[0]]).get(timeout=20)


def test_errors_are_one_kind(static: Artifact) -> None:
    encoder = Encoder(static)
    encoder._pid = -1
    with pytest.raises(UnavailableError, match="this Encoder was made before the process forked"):
        encoder([])
