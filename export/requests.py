"""What one export or one engine build is asked for, as one object.

Imports nothing heavy: the command line builds these objects from its options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..calibration.calibration_options import CalibrationOptions
from ..encoder.weight_options import WeightOptions
from .engines.engine_options import EngineOptions, ProfileOptions, Span
from .export_options import ExportOptions

if TYPE_CHECKING:
    from .artifact import Artifact
    from .parity import Images


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a written file is compared with PyTorch.

    Attributes:
        parity: compare with the eager model; a file that fails is not written.
        images: photographs to compare on, and to measure a calibration's bound on; None for two of scikit-image's.
    """

    parity: bool = True
    images: Images = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the artifact is written.

    Attributes:
        out: the folder; None for one in the current folder, named after its content.
        force: replace what exists there.
    """

    out: str | os.PathLike[str] | None = None
    force: bool = False

    def folder(self, graph: ExportOptions, variant: str) -> Path:
        """The folder, named after what `graph` makes of the architecture `variant` if none was given."""
        return Path(self.out if self.out is not None else graph.default_name(variant))


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One ONNX export.

    Attributes:
        weights: what is exported.
        graph: how the ONNX file is made.
        calibration: images, method and bound of a quantized file; also the images that FP16's peaks are measured on.
        checks: the comparison with PyTorch.
        output: the folder to write.
    """

    weights: WeightOptions = field(default_factory=WeightOptions)
    graph: ExportOptions = field(default_factory=ExportOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    checks: CheckOptions = field(default_factory=CheckOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One TensorRT engine.

    Attributes:
        export: how the ONNX file is made; with `artifact` only its `checks` and `output` count.
        artifact: an ONNX artifact to build from, instead of exporting one.
        profile: input sizes of the engine.
        engine: how it is built.
        dry_run: write the ONNX artifact only; needs no TensorRT.
    """

    export: ExportRequest = field(default_factory=lambda: ExportRequest(graph=ExportOptions(precision="fp16")))
    artifact: Artifact | str | os.PathLike[str] | None = None
    profile: ProfileOptions = field(default_factory=ProfileOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    dry_run: bool = False


class ExportKeywords(TypedDict, total=False):
    """Further keywords of `export_onnx`, which describes them."""

    variant: str | None
    revision: str | None
    seed: int
    force: bool
    parity: bool
    images: Images
    calibration: CalibrationOptions | None


class EngineKeywords(ExportKeywords, total=False):
    """Further keywords of `export_trt`, which describes them."""

    batch: Span | None
    resolutions: tuple[Span, Span] | None
    dry_run: bool


def export_request(
    checkpoint: Any, out: str | os.PathLike[str] | None, graph: ExportOptions, keywords: Mapping[str, Any]
) -> ExportRequest:
    """The request of a call of `export_onnx`. Raises TypeError for keywords that it does not have."""
    rest = dict(keywords)
    weights = WeightOptions(checkpoint=checkpoint, **_take(WeightOptions, rest))
    checks, output = CheckOptions(**_take(CheckOptions, rest)), OutputOptions(out=out, **_take(OutputOptions, rest))
    calibration = rest.pop("calibration", None) or CalibrationOptions()
    if rest:
        raise TypeError(f"unexpected keyword argument {next(iter(rest))!r}")
    return ExportRequest(weights=weights, graph=graph, calibration=calibration, checks=checks, output=output)


def engine_request(
    checkpoint: Any, out: str | os.PathLike[str] | None, graph: ExportOptions, artifact: Any, engine: EngineOptions,
    keywords: Mapping[str, Any],
) -> EngineRequest:  # fmt: skip
    """The request of a call of `export_trt`. Raises TypeError for keywords that it does not have."""
    rest = dict(keywords)
    profile, dry_run = ProfileOptions(**_take(ProfileOptions, rest)), rest.pop("dry_run", False)
    export = export_request(checkpoint, out, graph, rest)
    return EngineRequest(export=export, artifact=artifact, profile=profile, engine=engine, dry_run=dry_run)


def _take(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Removes from `values` those that are fields of the dataclass `kind`, and returns them."""
    return {f.name: values.pop(f.name) for f in fields(kind) if f.name in values}
