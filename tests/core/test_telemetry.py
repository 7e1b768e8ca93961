"""Libraries are told to send nothing before they are imported, unless the user wants otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fvexport.core.telemetry import SWITCHES, is_off, set_switches


@pytest.mark.parametrize("before", [None, "0"])
def test_switches(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    for name in SWITCHES:
        monkeypatch.setenv(name, before or "")
        if before is None:
            monkeypatch.delenv(name)
    set_switches()
    wanted = SWITCHES if before is None else dict.fromkeys(SWITCHES, "0")
    assert {name: os.environ[name] for name in SWITCHES} == wanted
    assert all(is_off(name) == (before is None) for name in SWITCHES)


def test_importing_the_package_is_enough() -> None:
    code = "import fvexport, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    left_out = {*SWITCHES, "DO_NOT_TRACK", "DISABLE_TELEMETRY"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
