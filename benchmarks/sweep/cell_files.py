"""What cells need and who makes it: a process that ends before anything is timed, and remembers nothing itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...export.backend_table import get_backend
from ...export.precision import QUANTIZED
from ..peers.table import get_peer
from .plan import Weights
from .result import Cell
from .worker_process import Worker, WorkerError

MAKE_PATIENCE = 4
"""A file may take so many times the timeout of one step: a calibration runs the model many times."""


@dataclass(frozen=True)
class File:
    """What a cell runs: a file or folder, the seconds it took to make, its size; and PyTorch's figures beside it."""

    path: str | None
    seconds: float | None
    mb: float | None
    torch: dict[str, Any] | None = None


class Files:
    """Everything made for a sweep, in its folder.

    Args:
        out: the sweep's folder.
        weights: the arguments of `load_checkpoint`.
        start: starts a process with that name in its log.
        ask: hands it a job, with a factor on its timeout, and the seconds of the budget that it must leave.
        cpus: that it keeps to.
    """

    def __init__(
        self, out: Path, weights: dict[str, Any], start: Callable[[str], Worker],
        ask: Callable[[Worker, dict[str, Any], float, float], dict[str, Any]], cpus: list[int],
    ) -> None:  # fmt: skip
        self.out, self.weights, self.start, self.ask, self.cpus = out, weights, start, ask, cpus
        self.worker: Worker | None = None
        self.failed: dict[str, WorkerError] = {}

    def describe(self) -> Weights:
        """The identity of the weights; raises WorkerError."""
        found = self._make("describe", 0)
        return Weights(found["checkpoint"], found["variant"], found["sha256"])

    def reference(self, cell: Cell, reserve: float) -> str:
        """Pixels and features to compare with, at the cell's resolution; raises WorkerError."""
        path = self.out / "reference" / f"{cell.variant}-{cell.weights}-{cell.height}x{cell.width}-values.npz"
        if not path.is_file():
            self._once("reference", reserve, path=str(path), height=cell.height, width=cell.width)
        return str(path)

    def file(self, cell: Cell, reserve: float) -> File:
        """What the cell runs; raises WorkerError where it cannot be made, or not before the budget ends."""
        size = {"height": cell.height, "width": cell.width, "batch": cell.batch, "samples": cell.samples or 0}
        name = f"{cell.variant}-{cell.weights}-{cell.height}x{cell.width}-b{cell.batch}"
        if cell.kind == "peer":
            if get_peer(cell.backend).file is None:
                return File(None, None, None)
            path = self.out / "peers" / name
            made = self._once("peer", reserve, path=str(path), name=cell.backend, **size)
            return File(made["file"], made["seconds"], made["mb"])
        if cell.form in ("train", "fused"):
            return File(None, None, None)
        row = get_backend(cell.backend)
        target = row.quant_target if cell.precision in QUANTIZED else None
        name += f"-{cell.precision}" + (f"-{target}-s{cell.samples}" if target else "")
        engine = cell.backend if row.engine else None
        path = self.out / "artifacts" / (f"{name}-{engine}" if engine else name)
        asked = {"precision": cell.precision, "target": target, "engine": engine}
        made = self._once("artifact", reserve, path=str(path), **asked, **size)
        files = sum(file.stat().st_size for file in path.iterdir())
        return File(str(path), made["seconds"], files / 1e6, made.get("torch"))

    def torch_figures(self, cell: Cell, file: File, reserve: float) -> dict[str, Any] | None:
        """What PyTorch itself loses in the cell's precision, or None if that is not known; raises WorkerError.

        Of an artifact it is what the exported module loses; of others what the fused model loses. How another tool's
        quantizers would do in PyTorch is not known.
        """
        if cell.kind == "ttft" or file.torch is not None or cell.precision in QUANTIZED:
            return file.torch
        name = f"{cell.variant}-{cell.weights}-{cell.height}x{cell.width}-{cell.precision}.json"
        path, size = self.out / "reference" / name, {"height": cell.height, "width": cell.width}
        made: dict[str, Any] | None = self._once(
            "torch", reserve, path=str(path), precision=cell.precision, **size
        ).get("torch")
        return made

    def end(self) -> None:
        """Ends the process, if one is left."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def _once(self, what: str, reserve: float, **arguments: Any) -> dict[str, Any]:
        """A file that could not be made is not tried again for the next cell that needs it."""
        known = json.dumps([what, arguments])
        if known in self.failed:
            raise self.failed[known]
        try:
            return self._make(what, reserve, **arguments)
        except WorkerError as error:
            if error.status == "skipped":
                raise
            failed = WorkerError(error.status, f"its file could not be made: {error.reason}")
            if error.status != "oom":  # with fewer cells waiting beside it there may be room
                self.failed[known] = failed
            raise failed from None

    def _make(self, what: str, reserve: float, **arguments: Any) -> dict[str, Any]:
        if self.worker is None:
            self.worker = self.start("making")
        job = {"do": "make", "what": what, "weights": self.weights, "arguments": arguments, "cpus": self.cpus}
        try:
            return self.ask(self.worker, job, MAKE_PATIENCE, reserve)
        except BaseException:
            self.end()
            raise
