"""What an artifact says of itself: `manifest.json`, and the same inside the ONNX file's metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..calibration.findings import Fp16Plan, LayerNoise
from ..core.errors import ArtifactError, ConfigError
from ..core.records import Document, Number, Record, RecordError, plain
from ..core.verdict.judging import BoundFigure
from ..core.verdict.sections import FiguresSection, VerdictSection
from ..encoder.config import ConnectorConfig, FastViTHDConfig
from ..encoder.preprocess import Preprocessor
from .engines.engine_section import EngineSection
from .export_options import ExportOptions
from .precision import QUANTIZED, Precision

SCHEMA_VERSION = 1
METADATA_KEY = "fvexport"
AGAIN = "export it again with `fvexport onnx`"


class RoundedHashes(Record, frozen=True, kw_only=True):
    """SHA-256 of the weights after they were rounded to a half type."""

    sha256: str
    connector_sha256: str | None


class CheckpointSection(Record, frozen=True, kw_only=True):
    """The fields of `CheckpointInfo` but the preprocessing, and the hashes that other types give the same weights.

    Attributes:
        preprocessing_source: UNSET in artifacts of versions that prepared images for every form alike.
        rounded: by the name of a half type.
    """

    source: str
    form: str
    sha256: str
    variant: str
    revision: str | None = None
    preprocessing_source: str | msgspec.UnsetType | None = msgspec.UNSET
    resolution: int | None = None
    trained: bool
    connector_sha256: str | None = None
    notice: str | None = None
    rounded: dict[str, RoundedHashes] = msgspec.field(default_factory=dict)


class TensorSpec(Record, frozen=True, kw_only=True):
    """Name, dtype and shape of an input or output; a dynamic size is given by its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class RecordedOptions(ExportOptions):
    """The options of an export, and the connector that its file ends with, or None."""

    connector: ConnectorConfig | None = None


class GraphSection(Record, frozen=True, kw_only=True):
    """Nodes before and after simplification, and why that was skipped, if it was."""

    nodes_traced: int
    nodes: int
    kept_unsimplified: str | None


class FileEntry(Record, frozen=True, kw_only=True):
    """A file of the artifact: its size, and its SHA-256."""

    bytes: int
    sha256: str


class CalibrationData(Record, frozen=True, kw_only=True):
    """The pictures that a file was calibrated on: as the user named them, their fingerprint, and how many."""

    source: str
    fingerprint: str
    samples: int


class Saturation(Record, frozen=True, kw_only=True):
    """Weights whose 8-bit products saturate on CPUs without VNNI, see `saturation`.

    Attributes:
        pairs: of int8 weights in matrix products.
        affected: pairs that can saturate.
        layers: how many of each layer.
    """

    pairs: int
    affected: int
    layers: dict[str, int]


class QuantizationSection(Record, frozen=True, kw_only=True):
    """How a file is quantized.

    Attributes:
        target: the runtime that it is for.
        format: `int8` or `fp8`.
        float_precision: of everything else.
        reduce_range: INT8 weights go from -64 to 64.
        method: how ranges were chosen.
        data: the pictures.
        equalization: what was equalized.
        quantized: modules that carry Q/DQ.
        kept_float: modules that could, and stayed in float for the bound; `float` in the file.
        bound_db: SQNR that was asked for.
        bound_figure: what `bound_db` is about.
        sensitivity: what each layer alone costs, where that was measured.
        predicted: PyTorch's figures with the same quantization; None if parity was skipped.
        blocks: PyTorch's relative L2 error of each block.
        saturation: of INT8 files.
    """

    target: str
    format: str
    float_precision: Literal["fp32", "fp16", "bf16"]
    reduce_range: bool = False
    method: str
    data: CalibrationData
    equalization: tuple[str, ...]
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...] = msgspec.field(name="float")
    bound_db: Number | None
    bound_figure: BoundFigure = "plain"
    sensitivity: tuple[LayerNoise, ...] = ()
    predicted: FiguresSection | None
    blocks: dict[str, Number | None]
    saturation: Saturation | msgspec.UnsetType = msgspec.UNSET


class Manifest(Document, frozen=True, kw_only=True):
    """The manifest, field by field as in the file.

    Attributes:
        variant, architecture: its name, and itself (`config` in the file).
        checkpoint: where the weights come from, and their hashes.
        precision: of weights and activations.
        input, output: of the ONNX file.
        preprocessor: how an image becomes the input, at the file's own size (`preprocessing` in the file, as
            `encoder.processor_dict` writes it).
        tokens: visual tokens of one image, or None where the resolution is dynamic.
        opset: of the ONNX file.
        options: of the export.
        graph: what became of the graph.
        files: every other file of the artifact, by name.
        versions: fvexport and the libraries that wrote the file.
        created: UTC time, ISO 8601.
        parity: the verdict, or None if it was skipped.
        quantization: of an int8 or fp8 file; None otherwise.
        fp16: what keeps a half-precision file from overflowing, or None where nothing is needed.
        engine: the TensorRT engine beside the ONNX file, or None.
    """

    variant: str
    architecture: FastViTHDConfig = msgspec.field(name="config")
    checkpoint: CheckpointSection
    precision: Precision
    input: TensorSpec
    output: TensorSpec
    preprocessor: Preprocessor = msgspec.field(name="preprocessing")
    tokens: int | None
    opset: int
    options: RecordedOptions
    graph: GraphSection
    files: dict[str, FileEntry]
    versions: dict[str, str]
    created: str
    parity: VerdictSection | None = None
    quantization: QuantizationSection | None = None
    fp16: Fp16Plan | None = None
    engine: EngineSection | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def float_precision(self) -> Precision:
        """Of everything that is not quantized: fp32, fp16 or bf16."""
        return self.quantization.float_precision if self.quantization else self.precision

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the inverse of `from_dict`."""
        return super().to_dict() | {"preprocessing": self.preprocessor.to_dict()}

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON text, the inverse of `from_json`."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """Reads what `to_dict` made, now or in another version; raises RecordError."""
        path = "$.preprocessing"
        if not isinstance(data.get("preprocessing"), dict):
            raise RecordError(f"{path}: expected object, found {type(data.get('preprocessing')).__name__}")
        try:
            preprocessor = Preprocessor.from_dict(data["preprocessing"])
            manifest = super().from_dict(data | {"preprocessing": plain(preprocessor)})
            path = "$.config"
            FastViTHDConfig.from_dict(data["config"])  # refuses what is missing, and what it does not know
        except ConfigError as error:
            raise RecordError(f"{path}: {str(error).removeprefix('preprocessing: ')}") from None
        return manifest

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Reads a manifest; raises ArtifactError, naming `where`, for anything that is not one."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{where} is not valid JSON ({error}); {AGAIN}") from None
        if not isinstance(data, dict) or "schema_version" not in data:
            raise ArtifactError(f"{where} is not an fvexport manifest; {AGAIN}")
        if data["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{where} has schema version {data['schema_version']!r}, this fvexport reads {SCHEMA_VERSION}; {AGAIN}"
            )
        try:
            manifest = cls.from_dict(data)
            _check(manifest)
        except RecordError as error:
            raise ArtifactError(f"{where} is damaged ({error}); {AGAIN}") from None
        return manifest


def _check(manifest: Manifest) -> None:
    """Raises RecordError where sections contradict each other, or name what this version does not compute."""
    for name, axes in (("input", 4), ("output", 3)):
        if (found := len(getattr(manifest, name).shape)) != axes:
            raise RecordError(f"$.{name}.shape: expected {axes} axes, found {found}")
    prepared = manifest.preprocessor
    for size, side in zip(manifest.input.shape[2:], (prepared.height, prepared.width), strict=True):
        if isinstance(size, int) and size != side:
            raise RecordError(f"$.input.shape: expected {side} pixels, as preprocessing makes them, found {size}")
    if (manifest.precision in QUANTIZED) != (manifest.quantization is not None):
        have = "with" if manifest.quantization else "without"
        raise RecordError(f"$.precision: {manifest.precision} {have} a quantization")
    predicted = manifest.quantization and manifest.quantization.predicted
    for name, value in plain(predicted).items() if predicted else ():
        if value is None and not name.startswith("centred"):
            raise RecordError(f"$.quantization.predicted.{name}: expected a number, found null")
