"""What cells need before they run: the weights' identity, reference features, artifacts, peers' files.

Runs in a process of its own, which ends before anything is timed. Everything is made once and found again.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import cached_property
from pathlib import Path

import msgspec

from ...calibration.calibration_options import CalibrationOptions
from ...core.dtypes import torch_dtype
from ...core.errors import FvexportError
from ...core.input_file import read_json
from ...core.output_path import put_file, scratch_beside
from ...core.records import Record, parse, plain
from ...core.verdict.reference import Reference
from ...core.verdict.sections import FiguresSection
from ...encoder.checkpoint import Checkpoint
from ...encoder.preprocess import Preprocessor
from ...encoder.reparameterize import reparameterize
from ...export.artifact import Artifact
from ...export.export_options import ExportOptions
from ...export.onnx_export import export_onnx
from ...export.parity import photographs
from ...export.parity_backends import EagerReference
from ...export.parity_runs import tokens_of
from ...export.precision import QUANTIZED
from ...export.prepare import stored_type
from ...export.runtime.eager_backend import EagerBackend
from ..peers.table import get_peer, make_peer_file
from .messages import (
    AnyRequest,
    ArtifactRequest,
    File,
    PeerRequest,
    ReferenceRequest,
    Request,
    TorchRequest,
    Weights,
    WeightSource,
)
from .result import Amount


class Note(Record, frozen=True, kw_only=True):
    """What is written beside a file when it has been made: the seconds it took, and PyTorch's own figures."""

    seconds: Amount | msgspec.UnsetType = msgspec.UNSET
    torch: FiguresSection | None = None


class FileBuilder:
    """Makes files of one checkpoint, which is loaded when first needed."""

    def __init__(self, weights: WeightSource) -> None:
        self.weights = weights
        self._references: dict[tuple[int, int], Reference] = {}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return self.weights.load()

    def describe(self) -> Weights:
        """The identity of the weights."""
        info = self.checkpoint.info
        return Weights(checkpoint=info.source, variant=info.variant, sha256=info.sha256)

    def make(self, request: AnyRequest) -> File:
        """Makes a file, unless it is there."""
        match request:
            case ReferenceRequest():
                return self.reference(request)
            case TorchRequest():
                return self.torch(request)
            case ArtifactRequest():
                return self.artifact(request)
            case PeerRequest():
                return self.peer(request)

    def reference(self, request: ReferenceRequest) -> File:
        """Writes the held-out photographs and what the eager model makes of them, see `Reference`."""
        file = Path(request.path)
        if not file.is_file():
            self._reference(request).save(file)
        return File(path=request.path)

    def _reference(self, request: Request) -> Reference:
        height, width = request.height, request.width
        if (known := self._references.get((height, width))) is None:
            own = Preprocessor(height, width, self.checkpoint.info.preprocessing)
            images = list(photographs(None).values())
            values = own(images)
            seen = [tokens_of(own, image, self.checkpoint.encoder.config.stride) for image in images]
            eager = EagerBackend(self.checkpoint.encoder)
            known = self._references[height, width] = Reference.of(eager.run, values, seen)
        return known

    def torch(self, request: TorchRequest) -> File:
        """Writes PyTorch's own figures in a float precision, and returns them as `torch`."""
        path, precision = Path(request.path), request.precision
        if (note := _read_note(path)) is None or note.torch is None:
            fused = reparameterize(self.checkpoint.encoder)
            own = EagerReference(fused, emulate_half=None if precision == "fp32" else torch_dtype(precision))
            note = _write_note(path, Note(torch=self._figures(request, own)))
        return File(path=request.path, torch=note.torch)

    def artifact(self, request: ArtifactRequest) -> File:
        """Exports one artifact, with the engine that is asked for.

        Without its own parity: each cell is compared by itself, beside PyTorch's own figures, returned as `torch`.
        """
        folder, beside = Path(request.path), Path(request.path + ".json")
        note = _read_note(beside)
        if note is None or note.seconds is msgspec.UNSET or not self._is_ours(folder):
            note = _write_note(beside, self._exported(request, folder))
        assert note.seconds is not msgspec.UNSET
        return File(path=request.path, seconds=note.seconds, torch=note.torch)

    def _is_ours(self, folder: Path) -> bool:
        """Whether a whole artifact of these weights is there."""
        with contextlib.suppress(OSError, ValueError, FvexportError):
            return Artifact.open(folder).manifest.checkpoint.sha256 == self.checkpoint.info.sha256
        return False

    def _exported(self, request: ArtifactRequest, folder: Path) -> Note:
        quantized = request.precision in QUANTIZED
        start = time.perf_counter()
        options = ExportOptions(
            height=request.height, width=request.width, batch=request.batch, precision=request.precision,
            target=request.target if quantized else None,
        )  # fmt: skip
        report = export_onnx(
            self.checkpoint, folder, force=True, parity=False, options=options,
            calibration=CalibrationOptions(samples=request.samples) if quantized else None,
        )  # fmt: skip
        if request.engine is not None:
            from ...export.engine_export import export_trt
            from ...export.engines.engine_options import EngineOptions

            export_trt(artifact=folder, engine=EngineOptions(flavour=request.engine), parity=False)
        seconds = time.perf_counter() - start
        assert report.module is not None  # made anew, because of `force`
        own = EagerReference(report.module, emulate_half=stored_type(options))
        return Note(seconds=seconds, torch=self._figures(request, own))

    def _figures(self, request: Request, own: EagerReference) -> FiguresSection:
        return parse(self._reference(request).figures(own.run).to_dict(), FiguresSection)

    def peer(self, request: PeerRequest) -> File:
        """Makes a peer's file; the seconds are of all that leads to it."""
        peer, path = get_peer(request.name), Path(request.path)
        made = make_peer_file(
            peer, self.checkpoint, path, request.height, request.width, request.batch, request.samples
        )
        last = made[-1]
        return File(path=str(last.path), seconds=sum(m.seconds for m in made), mb=last.size / 1e6)


def _read_note(path: Path) -> Note | None:
    """None if there is none, or none that can be read."""
    try:
        return parse(read_json(path), Note)
    except (OSError, ValueError):
        return None


def _write_note(path: Path, note: Note) -> Note:
    with scratch_beside(path) as scratch:
        scratch.write_text(json.dumps(plain(note)) + "\n", encoding="utf-8")
        put_file(scratch, path)
    return note
