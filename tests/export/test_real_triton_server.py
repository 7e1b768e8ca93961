"""Model repositories, loaded and queried through a real tritonserver.

The wheel of nvidia-pytriton carries one, without the onnxruntime backend: a few lines of Python in the server's own
Python backend stand in for that (`onnxruntime_backend.py`). So the server itself reads config.pbtxt, makes the
instances, checks requests and batches them. Without the wheel these tests are skipped:

    pip install --no-deps --target pytriton nvidia-pytriton && PYTHONPATH=pytriton pytest …
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvexport.export.artifact import Artifact
from fvexport.export.server_options import ServerOptions
from fvexport.export.triton_server import write_repository

pytest.importorskip("onnxruntime")
_spec = importlib.util.find_spec("pytriton")
PACKAGE = Path(next(iter(_spec.submodule_search_locations))) if _spec and _spec.submodule_search_locations else None
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
if PACKAGE is None or not (PACKAGE / "tritonserver/python_backend_stubs" / PYTHON).is_dir():
    pytest.skip("no tritonserver: the package nvidia-pytriton is missing", allow_module_level=True)
START_S = 60.0


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    """The server's Python backend, and ours in the place of its onnxruntime backend."""
    assert PACKAGE is not None
    folder = tmp_path / "backends"
    shutil.copytree(PACKAGE / "tritonserver/backends", folder)
    stub = shutil.copy(
        PACKAGE / "tritonserver/python_backend_stubs" / PYTHON / "triton_python_backend_stub", folder / "python"
    )
    Path(stub).chmod(Path(stub).stat().st_mode | stat.S_IXUSR)
    (folder / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), folder / "onnxruntime")
    (folder / "onnxruntime" / "model.py").write_text(  # the stub's Python is isolated: it ignores PYTHONPATH
        f"import sys\nsys.path += {[entry for entry in sys.path if entry]}\n"
        "from onnxruntime_backend import TritonPythonModel\n"
    )
    return folder


@contextmanager
def server(repository: Path, backends: Path, log: Path) -> Iterator[Callable[[str, Any], Any]]:
    """`server(…)` as `ask`: `ask(path)` gets JSON of the running server, `ask(path, data)` posts some."""
    assert PACKAGE is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = PACKAGE / "tritonserver/bin/tritonserver"
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"LD_LIBRARY_PATH": str(PACKAGE.parent / "nvidia_pytriton.libs")}
    command = [
        program, f"--model-repository={repository}", f"--backend-directory={backends}", f"--http-port={port}",
        "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false",
    ]  # fmt: skip

    def ask(path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/{path}", body, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")

    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            ends = time.monotonic() + START_S
            while True:
                try:
                    ask("health/ready")
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < ends, log.read_text()[-3000:]
                    time.sleep(0.2)
            yield ask
        finally:
            process.kill()


def infer(ask: Callable[..., Any], model: str, pixels: np.ndarray) -> np.ndarray:
    entry = {"name": "pixel_values", "shape": list(pixels.shape), "datatype": "FP32", "data": pixels.ravel().tolist()}
    (output,) = ask(f"models/{model}/infer", {"inputs": [entry]})["outputs"]
    assert output["name"] == "image_features" and output["datatype"] == "FP32"
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_it_loads_and_answers(static: Artifact, dynamic: Artifact, backends: Path, tmp_path: Path) -> None:
    from fvexport.export.runtime import Encoder

    repository = tmp_path / "models"
    options = ServerOptions(kind="cpu", instances=2, intra_op_threads=1)
    write_repository(static, repository, name="fixed", server=options)
    write_repository(dynamic, repository, name="free", server=options)
    pixels = np.random.default_rng(0).random((3, 3, 64, 128), np.float32)
    with server(repository, backends, tmp_path / "log") as ask:
        config = ask("models/free/config")
        assert config["instance_group"][0]["count"] == 2 and config["instance_group"][0]["kind"] == "KIND_CPU"
        assert config["max_batch_size"] == 8 and config["input"][0]["dims"] == [3, -1, -1]
        assert config["parameters"]["intra_op_thread_count"]["string_value"] == "1"
        told = json.loads(config["parameters"]["fvexport.preprocessing"]["string_value"])
        assert told == dynamic.manifest.preprocessor.to_dict()
        wanted = Encoder(dynamic, "onnxruntime-cpu", resolution=(64, 128), threads=1).run(pixels)
        np.testing.assert_allclose(infer(ask, "free", pixels), wanted, atol=1e-5)
        one = np.random.default_rng(1).random((1, 3, 128, 128), np.float32)
        wanted = Encoder(static, "onnxruntime-cpu", threads=1).run(one)
        np.testing.assert_allclose(infer(ask, "fixed", one), wanted, atol=1e-5)
        with pytest.raises(urllib.error.HTTPError):  # the server itself refuses another shape
            infer(ask, "fixed", pixels)
