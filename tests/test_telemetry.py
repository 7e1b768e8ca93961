"""Libraries are told to send nothing before they are imported, unless the user wants otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SWITCHES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")


@pytest.mark.parametrize(("before", "off"), [({}, True), (dict.fromkeys(SWITCHES, "0"), False)])
def test_importing_the_package_is_enough(before: dict[str, str], off: bool) -> None:
    code = (
        "import os, fvexport, huggingface_hub.constants as c; "
        f"print(c.HF_HUB_DISABLE_TELEMETRY, *(os.environ[n] for n in {SWITCHES}))"
    )
    left_out = {*SWITCHES, "DO_NOT_TRACK", "DISABLE_TELEMETRY"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out} | before
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ([str(off)] + ["1" if off else "0"] * 2)
