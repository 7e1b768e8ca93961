"""Signals end a command with one line, the exit code 128 + signal, no scratch and no child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

COMMAND = """
import sys, time
from pathlib import Path
import click
from fvexport.__main__ import main
from fvexport.benchmarks.sweep.worker_process import Worker
from fvexport.cli.main import cli
from fvexport.core.output_path import scratch_beside

@cli.command("work")
@click.argument("out", type=Path)
@click.argument("how")
def work(out, how):
    worker = Worker(out.with_name("log"), 1, None, [sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with scratch_beside(out) as scratch:
            scratch.write_text("half")
            print(worker.pid, flush=True)
            if how == "import":
                sys.path.insert(0, str(out.parent))
                import slow
            elif how == "destructor":
                class Slow:
                    def __del__(self):
                        time.sleep(600)
                Slow()
            else:
                time.sleep(600)
    finally:
        worker.end()

main()
"""
SLOW_MODULE = (
    "import time\nfor _ in range(600):\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass\n"
)
START = 'trap "" HUP; exec "$@"'
SIGNALS = {signal.SIGINT: "interrupted\n", signal.SIGTERM: "terminated\n", signal.SIGHUP: "hung up\n"}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "how"), [*((number, "call") for number in SIGNALS), (15, "import"), (2, "destructor")]
)
def test_a_signal_ends_a_command(tmp_path: Path, number: int, how: str) -> None:
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "work", str(tmp_path / "out"), how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert len(list(tmp_path.glob(".out.writing-*"))) == 1
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, SIGNALS[signal.Signals(number)])
    assert not list(tmp_path.glob(".out*"))
    ends = time.monotonic() + 10
    while alive(worker) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not alive(worker)


def test_nohup(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["sh", "-c", START, "sh", sys.executable, "-c", COMMAND, "work", str(tmp_path / "out"), "call"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "terminated\n"


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", ["imports", "end"])
def test_before_a_command_works_and_after_it(number: int, moment: str) -> None:
    wait = "print('ready', flush=True); import time; time.sleep(600)"
    code = {
        "imports": f"import fvexport.__main__ as m; m.end_on_signals(); {wait}",
        "end": "import atexit, fvexport.__main__ as m\n@atexit.register\ndef wait():\n"
        "    print('ready', flush=True)\n    import time\n    time.sleep(600)\nm.main()",
    }[moment]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, SIGNALS[signal.Signals(number)])
