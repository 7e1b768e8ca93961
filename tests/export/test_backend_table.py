"""The table of backends against the machine it describes."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fvexport.core import hardware
from fvexport.core.errors import UnavailableError
from fvexport.export import backend_table
from fvexport.export.backend_table import BACKENDS, get_backend, require, why_absent
from fvexport.export.engines.binding import current_gpu


def test_names_are_unique_and_found() -> None:
    assert len({t.name for t in BACKENDS}) == len(BACKENDS)
    assert all(get_backend(t.name) is t for t in BACKENDS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnxruntime", "did you mean 'onnxruntime-cpu'?"),
        ("onnxruntime-gpu", "did you mean 'onnxruntime-c"),
        ("open-vino", "did you mean 'openvino'?"),
        ("zzz", "known are onnxruntime-cpu, onnxruntime-cuda, openvino, eager, torch-compile, triton"),
    ],
)
def test_unknown_name(name: str, words: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        get_backend(name)
    assert words in str(caught.value)


def test_the_cpu_is_always_there() -> None:
    assert why_absent(get_backend("onnxruntime-cpu")) is None
    require(get_backend("onnxruntime-cpu"))


def test_missing_module_names_the_command() -> None:
    row = dataclasses.replace(get_backend("onnxruntime-cpu"), module="no_such_runtime", install="pip install it")
    assert why_absent(row) == "no_such_runtime is not installed"
    with pytest.raises(UnavailableError, match=r"cannot run here: no_such_runtime is not installed; `pip install it`"):
        require(row)


def test_missing_provider_and_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    cuda = get_backend("onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert why_absent(cuda) == "this onnxruntime has no CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: False)
    with pytest.raises(UnavailableError, match="no NVIDIA GPU found; take another --backend"):
        require(cuda)
    monkeypatch.setattr(backend_table, "has_cuda_gpu", lambda: True)
    assert why_absent(cuda) is None


def test_openvino_missing_and_without_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    row = get_backend("openvino")
    assert why_absent(row) is None
    monkeypatch.setattr(openvino.Core, "available_devices", ["GPU"])
    assert why_absent(row) == "this openvino has no CPU device"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r'openvino is not installed; `pip install "fvexport\[openvino\]"`'):
        require(row)


def test_openvino_is_imported_in_silence(tmp_path: Path) -> None:
    """No event is sent: openvino_telemetry, which also leaves files in the home folder, is not loaded."""
    pytest.importorskip("openvino")
    code = """
import sys
from fvexport.export.backend_table import import_openvino
import_openvino().Core()
assert not [name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"]
import openvino_telemetry  # there for others
"""
    where = os.environ | {"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["libm.so.6", "no-such-library.so"])
def test_a_driver_without_functions_is_none(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers bring a stub of the driver's name."""
    load = ctypes.CDLL
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: load(library))
    assert hardware.cuda_driver() is None and hardware.cuda_version() is None
    assert not backend_table.has_cuda_gpu() and current_gpu() is None
