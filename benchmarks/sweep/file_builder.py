"""What cells need before they run: the weights' identity, reference features, artifacts, peers' files.

Runs in a process of its own, which ends before anything is timed. Everything is made once and found again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from ...calibration.calibration_options import CalibrationOptions
from ...core.dtypes import torch_dtype
from ...core.errors import FvexportError
from ...core.output_path import scratch_beside
from ...core.verdict.reference import Reference
from ...encoder.checkpoint import Checkpoint, load_checkpoint
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


class FileBuilder:
    """Makes files of one checkpoint, which is loaded at the first need.

    Args:
        weights: the arguments of `load_checkpoint`.
    """

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights
        self._references: dict[tuple[int, int], Reference] = {}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(**self.weights)

    def describe(self) -> dict[str, Any]:
        """What a cell has to know of its weights."""
        info = self.checkpoint.info
        return {"checkpoint": info.source, "variant": info.variant, "sha256": info.sha256, "notice": info.notice}

    def reference(self, path: str, height: int, width: int) -> dict[str, Any]:
        """Writes the held-out photographs and what the eager model makes of them, see `Reference`."""
        file = Path(path)
        if not file.is_file():
            self._reference(height, width).save(file)
        return {}

    def _reference(self, height: int, width: int) -> Reference:
        if (known := self._references.get((height, width))) is None:
            own = Preprocessor(height, width, self.checkpoint.info.preprocessing)
            images = list(photographs(None).values())
            values = own(images)
            seen = [tokens_of(own, image, self.checkpoint.encoder.config.stride) for image in images]
            eager = EagerBackend(self.checkpoint.encoder)
            known = self._references[height, width] = Reference.of(eager.run, values, seen)
        return known

    def torch(self, path: str, precision: Any, height: int, width: int) -> dict[str, Any]:
        """Writes PyTorch's own figures in a float precision, and returns them as `torch`."""
        note = Path(path)
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(note.read_text(encoding="utf-8")))
        fused = reparameterize(self.checkpoint.encoder)
        own = EagerReference(fused, emulate_half=None if precision == "fp32" else torch_dtype(precision))
        note.parent.mkdir(parents=True, exist_ok=True)
        return _noted(note, {"torch": self._reference(height, width).figures(own.run).to_dict()})

    def artifact(
        self, path: str, precision: Any, target: Any, engine: Any, height: int, width: int, batch: int, samples: int
    ) -> dict[str, Any]:
        """Exports one artifact, with an `engine` of that flavour where it is one's name.

        Without its own parity: each cell is compared by itself, beside PyTorch's own figures, returned as `torch`.
        """
        folder, note = Path(path), Path(path + ".json")
        if (known := _known(folder, note, self.checkpoint.info.sha256)) is not None:
            return known
        quantized = precision in QUANTIZED
        start = time.perf_counter()
        options = ExportOptions(
            height=height, width=width, batch=batch, precision=precision, target=target if quantized else None
        )
        report = export_onnx(
            self.checkpoint, folder, force=True, parity=False, options=options,
            calibration=CalibrationOptions(samples=samples) if quantized else None,
        )  # fmt: skip
        if engine is not None:
            from ...export.engine_export import export_trt
            from ...export.engines.engine_options import EngineOptions

            export_trt(artifact=folder, engine=EngineOptions(flavour=engine), parity=False)
        seconds = time.perf_counter() - start
        assert report.module is not None  # made anew, because of `force`
        own = EagerReference(report.module, emulate_half=stored_type(options))
        return _noted(note, {"seconds": seconds, "torch": self._reference(height, width).figures(own.run).to_dict()})

    def peer(self, path: str, name: str, height: int, width: int, batch: int, samples: int) -> dict[str, Any]:
        """Makes a peer's file; the seconds are of all that leads to it."""
        made = make_peer_file(get_peer(name), self.checkpoint, Path(path), height, width, batch, samples)
        last = made[-1]
        return {"seconds": sum(m.seconds for m in made), "file": str(last.path), "mb": last.size / 1e6}


def _known(folder: Path, note: Path, sha256: str) -> dict[str, Any] | None:
    """What is noted of an artifact that stands there whole and of these weights."""
    try:
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return known if Artifact.open(folder).manifest.checkpoint.sha256 == sha256 else None
    except (OSError, ValueError, FvexportError):
        return None


def _noted(note: Path, content: dict[str, Any]) -> dict[str, Any]:
    with scratch_beside(note) as scratch:
        scratch.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(scratch, note)  # noqa: PTH105 - over an older note, on every system
    return content
