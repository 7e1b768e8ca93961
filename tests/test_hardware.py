"""What is known of the processor, against what runtimes do on it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fvexport.core import hardware


def test_saturation_is_as_measured(saturates: bool) -> None:
    if sys.platform != "linux":
        pytest.skip("the processor's features are read on Linux alone")
    assert hardware.products_saturate() == saturates


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", ["avx2"], True),
        ("x86_64", ["avx2", "avx512f"], True),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("AMD64", ["avx2", "avx512f", "avx512_vnni"], False),
        ("aarch64", ["asimd"], False),
    ],
)
def test_which_processors_saturate(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: list[str], expected: bool
) -> None:
    def cpu() -> dict[str, Any]:
        return {"features": features}

    monkeypatch.setattr(hardware, "cpu", cpu)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
    assert hardware.products_saturate() is expected
