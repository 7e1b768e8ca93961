"""Libraries are told to send nothing before they are imported, unless the user wants otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fvexport.core.telemetry import SWITCHES, set_switches, stop_onnxruntime


@pytest.mark.parametrize("before", [None, "0"])
def test_switches(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    called: list[bool] = []
    for name in SWITCHES:
        monkeypatch.setenv(name, before or "")
        if before is None:
            monkeypatch.delenv(name)
    set_switches()
    wanted = SWITCHES if before is None else dict.fromkeys(SWITCHES, "0")
    assert {name: os.environ[name] for name in SWITCHES} == wanted
    stop_onnxruntime(SimpleNamespace(disable_telemetry_events=lambda: called.append(True)))
    assert called == ([True] if before is None else [])


def test_importing_the_package_is_enough() -> None:
    code = "import fvexport, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    left_out = {*SWITCHES, "DO_NOT_TRACK", "DISABLE_TELEMETRY"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
