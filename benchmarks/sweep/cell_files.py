"""What cells need and who makes it: a process that ends before anything is timed, and remembers nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from ...core.verdict.sections import FiguresSection
from ...export.backend_table import get_backend
from ...export.precision import QUANTIZED
from ..peers.table import get_peer
from .messages import (
    A,
    AnyRequest,
    ArtifactRequest,
    Describe,
    File,
    Job,
    Make,
    PeerRequest,
    ReferenceRequest,
    TorchRequest,
    Weights,
    WeightSource,
)
from .result import Cell
from .worker_process import Ask, Worker, WorkerError

if TYPE_CHECKING:
    from ...export.engines.engine_options import Flavour

MAKE_PATIENCE = 4
"""A file may take so many times the timeout of one step: a calibration runs the model many times."""


class Files:
    """Everything made for a sweep, in its folder.

    Args:
        out: the sweep's folder.
        weights: the checkpoint.
        start: starts a process with that name in its log.
        ask: sends it a job.
        cpus: that it keeps to.
    """

    def __init__(
        self, out: Path, weights: WeightSource, start: Callable[[str], Worker], ask: Ask, cpus: tuple[int, ...]
    ) -> None:
        self.out, self.weights, self.start, self.ask, self.cpus = out, weights, start, ask, cpus
        self.worker: Worker | None = None
        self.failed: dict[AnyRequest, WorkerError] = {}

    def describe(self) -> Weights:
        """The identity of the weights; raises WorkerError."""
        return self._answer(Describe(weights=self.weights, cpus=self.cpus), 0)

    def reference(self, cell: Cell, reserve: float) -> str:
        """Pixels and features to compare with, at the cell's resolution; raises WorkerError."""
        path = self.out / "reference" / f"{_place(cell)}-values.npz"
        if not path.is_file():
            self._make(ReferenceRequest(path=str(path), height=cell.height, width=cell.width), reserve)
        return str(path)

    def file(self, cell: Cell, reserve: float) -> File:
        """What the cell runs; raises WorkerError where it cannot be made, or not before the budget ends."""
        if cell.form in ("train", "fused") or (cell.kind == "peer" and get_peer(cell.backend).file is None):
            return File()
        name = f"{_place(cell)}-b{cell.batch}"
        if cell.kind == "peer":
            return self._make(
                PeerRequest(
                    path=str(self.out / "peers" / name), height=cell.height, width=cell.width, name=cell.backend,
                    batch=cell.batch, samples=cell.samples or 0,
                ),
                reserve,
            )  # fmt: skip
        row = get_backend(cell.backend)
        target = row.quant_target if cell.precision in QUANTIZED else None
        name += f"-{cell.precision}" + (f"-{target}-s{cell.samples}" if target else "")
        engine = cast("Flavour", cell.backend) if row.engine else None
        path = self.out / "artifacts" / (f"{name}-{engine}" if engine else name)
        made = self._make(
            ArtifactRequest(
                path=str(path), height=cell.height, width=cell.width, batch=cell.batch,
                precision=cell.precision, target=target, engine=engine, samples=cell.samples or 0,
            ),
            reserve,
        )  # fmt: skip
        return msgspec.structs.replace(made, mb=sum(file.stat().st_size for file in path.iterdir()) / 1e6)

    def torch_figures(self, cell: Cell, file: File, reserve: float) -> FiguresSection | None:
        """What PyTorch itself loses in the cell's precision, or None if that is not known; raises WorkerError.

        Of an artifact it is what the exported module loses; of others what the fused model loses. How another tool's
        quantizers would do in PyTorch is not known.
        """
        if cell.kind == "ttft" or file.torch is not None or cell.precision in QUANTIZED:
            return file.torch
        path, precision = self.out / "reference" / f"{_place(cell)}-{cell.precision}.json", cell.precision
        request = TorchRequest(path=str(path), height=cell.height, width=cell.width, precision=precision)
        return self._make(request, reserve).torch

    def end(self) -> None:
        """Ends the process, if one is left."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def _make(self, request: AnyRequest, reserve: float) -> File:
        """A file that could not be made is not tried again for the next cell that needs it."""
        if request in self.failed:
            raise self.failed[request]
        try:
            return self._answer(Make(request=request, weights=self.weights, cpus=self.cpus), reserve)
        except WorkerError as error:
            if error.status == "skipped":
                raise
            failed = WorkerError(error.status, f"its file could not be made: {error.reason}")
            if error.status != "oom":  # with fewer cells waiting beside it there may be room
                self.failed[request] = failed
            raise failed from None

    def _answer(self, job: Job[A], reserve: float) -> A:
        if self.worker is None:
            self.worker = self.start("making")
        try:
            return self.ask(self.worker, job, MAKE_PATIENCE, reserve)
        except BaseException:
            self.end()
            raise


def _place(cell: Cell) -> str:
    """What the names of all files for a cell begin with."""
    return f"{cell.variant}-{cell.weights}-{cell.height}x{cell.width}"
