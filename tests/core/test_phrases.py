"""Phrases of messages."""

from __future__ import annotations

import pytest

from fvexport.core.phrases import did_you_mean, first_few, signal_name


@pytest.mark.parametrize(
    ("name", "sentence", "expected"),
    [
        ("onxn", False, "did you mean 'onnx'?"),
        ("onxn", True, "Did you mean 'onnx'?"),
        ("zzz", False, "known are onnx, trt"),
        ("zzz", True, "Known are onnx, trt."),
        (7, False, "known are onnx, trt"),
    ],
)
def test_the_nearest_name_is_suggested(name: object, sentence: bool, expected: str) -> None:
    assert did_you_mean(name, ("onnx", "trt"), sentence=sentence) == expected


def test_how_near_a_suggestion_must_be() -> None:
    assert did_you_mean("cpu", ["onnxruntime-cpu"]) == "known are onnxruntime-cpu"
    assert did_you_mean("cpu", ["onnxruntime-cpu"], cutoff=0.3) == "did you mean 'onnxruntime-cpu'?"


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (12, "0, 1, 2 and 9 more")]
)
def test_the_first_few(count: int, expected: str) -> None:
    assert first_few(iter(range(count))) == expected
    assert first_few(range(count), limit=20) == ", ".join(map(str, range(count)))


def test_signal_names() -> None:
    assert [signal_name(number) for number in (9, 15, 99)] == ["SIGKILL", "SIGTERM", "signal 99"]
