"""The table of targets against the machine it describes."""

from __future__ import annotations

import dataclasses

import onnxruntime
import pytest

from fvexport.errors import UnavailableError
from fvexport.export import targets
from fvexport.export.targets import TARGETS, get_target, require, why_absent


def test_names_are_unique_and_found() -> None:
    assert len({t.name for t in TARGETS}) == len(TARGETS)
    assert all(get_target(t.name) is t for t in TARGETS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnxruntime", "did you mean 'onnxruntime-cpu'?"),
        ("onnxruntime-gpu", "did you mean 'onnxruntime-c"),
        ("zzz", "known are onnxruntime-cpu, onnxruntime-cuda"),
    ],
)
def test_unknown_name(name: str, words: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        get_target(name)
    assert words in str(caught.value)


def test_the_cpu_is_always_there() -> None:
    assert why_absent(get_target("onnxruntime-cpu")) is None
    require(get_target("onnxruntime-cpu"))


def test_missing_module_names_the_command() -> None:
    row = dataclasses.replace(get_target("onnxruntime-cpu"), module="no_such_runtime", install="pip install it")
    assert why_absent(row) == "no_such_runtime is not installed"
    with pytest.raises(UnavailableError, match=r"cannot run here: no_such_runtime is not installed; `pip install it`"):
        require(row)


def test_missing_provider_and_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = get_target("onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert why_absent(cuda) == "this onnxruntime has no CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(targets, "_has_cuda_gpu", lambda: False)
    with pytest.raises(UnavailableError, match="no NVIDIA GPU found; `pip install onnxruntime-gpu"):
        require(cuda)
    monkeypatch.setattr(targets, "_has_cuda_gpu", lambda: True)
    assert why_absent(cuda) is None
