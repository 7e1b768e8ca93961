"""A cell's process that acts: it answers as the real one does, without a model, and misbehaves where it is told to.

python acting_worker.py '{"openvino fp32": "abort"}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from fvexport.benchmarks.sweep.messages import (
    ArtifactRequest,
    Describe,
    File,
    Load,
    Make,
    Ready,
    TakeWindow,
    Weights,
    WindowTaken,
)
from fvexport.benchmarks.sweep.result import Cell, Parity
from fvexport.benchmarks.sweep.worker import Server, main

SPEED = {"onnxruntime-cpu": 2.0, "openvino": 4.0, "eager": 1.0}


class Acting(Server):
    """What `acts` says of a cell: what happens as it loads, or in its third window with ` later` behind it."""

    def __init__(self, acts: dict[str, str]) -> None:
        super().__init__()
        self.acts, self.windows = acts, 0
        self.cell: Cell | None = None

    def load(self, job: Load) -> Ready:
        self.cell = job.cell
        act(self.acts.get(self.cell.series, ""))
        return Ready(
            computes="acting", device="cpu", timer="wall", load_s=0.1, first_ms=9.0, call_ms=8.0, peak_host_mb=20.0,
            parity=Parity("pass", sqnr_db=100.0, cosine=1.0, cosine_min=1.0, rel_l2=1e-5), tokens=1,
        )  # fmt: skip

    def window(self, job: TakeWindow) -> WindowTaken:
        assert self.cell is not None
        self.windows += 1
        todo = self.acts.get(self.cell.series, "")
        if self.windows == 3 and todo.endswith(" later"):
            act(todo.removesuffix(" later"))
        if todo == "drift":  # no two windows agree
            times = [float(self.windows**2)] * 3
        else:
            times = [self.cell.pixels / 1e3 / SPEED.get(self.cell.backend, 1.5)] * 3
        if todo == "slow":
            time.sleep(0.05)
        return WindowTaken(
            times_ms=tuple(times), parts_ms=(), run_host_mb=10.0 + self.windows, gpu_mb=None, energy_j=None
        )

    def describe(self, job: Describe) -> Weights:
        return Weights(checkpoint="seeded:0", variant="tiny", sha256="0123456789abcdef")

    def make(self, job: Make) -> File:
        path = job.request.path
        if isinstance(job.request, ArtifactRequest):
            todo, tried = self.acts.get(f"make {job.request.precision}", ""), Path(path + ".tried")
            if todo == "memory once":
                todo = "" if tried.exists() else "memory"
                tried.touch()
            act(todo)
            Path(path).mkdir(parents=True, exist_ok=True)
        return File(path=path, seconds=1.0, mb=1.0)


def act(what: str) -> None:
    """Does it, if it is anything."""
    if what == "abort":
        os.write(2, b"the heap is corrupt\n")
        os.abort()
    elif what == "exit":
        sys.exit(7)  # caught and answered: only the process's own end is silent
    elif what == "vanish":
        os._exit(7)
    elif what == "killed":
        os.kill(os.getpid(), 9)
    elif what == "hang":
        time.sleep(1000)
    elif what == "eat":
        held = []
        while True:
            held.append(bytearray(b"x") * (16 << 20))
            time.sleep(0.01)  # so that its parent looks before the machine has no memory left
    elif what == "memory":
        raise MemoryError("8 GB wanted")
    elif what == "raise":
        raise RuntimeError("no such operator\nat line 3")
    elif what == "chatty":
        os.write(1, b"a library prints to stdout\n")
    elif what == "slow load":
        time.sleep(0.6)


if __name__ == "__main__":
    main(Acting(json.loads(sys.argv[1])))
