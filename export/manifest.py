"""What an artifact says of itself: `manifest.json`, and the same inside the ONNX file's metadata."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..calibration.findings import Fp16Plan, LayerNoise
from ..calibration.policy import QUANT_TARGETS
from ..core.dtypes import DTYPES
from ..core.errors import ArtifactError, ConfigError
from ..core.input_file import parse_json
from ..core.records import Document, Number, Record, RecordError, plain
from ..core.verdict.judging import BoundFigure
from ..core.verdict.sections import FiguresSection, VerdictSection
from ..encoder.config import ConnectorConfig, FastViTHDConfig
from ..encoder.preprocess import Preprocessor
from .engines.engine_section import EngineSection
from .export_options import ExportOptions
from .limits import MAX_BATCH
from .precision import QUANTIZED, Precision
from .tensor_names import INPUT_NAME, OUTPUT_NAME

SCHEMA_VERSION = 1
METADATA_KEY = "fvexport"
AGAIN = "export it again with `fvexport onnx`"
INPUT_TYPES = ("uint8", *DTYPES.values())
OUTPUT_TYPES = tuple(DTYPES.values())
MAX_SIZE = 1 << 16
"""Largest size of an axis."""


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

    @property
    def current(self) -> TensorSpec:
        """The same as this version writes it: the first one called float32 `float`."""
        return msgspec.structs.replace(self, dtype="float32") if self.dtype == "float" else self


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
            data = parse_json(text)
        except ValueError as error:
            raise ArtifactError(f"{where} is not valid JSON ({error}); {AGAIN}") from None
        if not isinstance(data, dict) or "schema_version" not in data:
            raise ArtifactError(f"{where} is not an fvexport manifest; {AGAIN}")
        if data["schema_version"] != SCHEMA_VERSION:
            found = repr(data["schema_version"])[:60]
            raise ArtifactError(f"{where} has schema version {found}, this fvexport reads {SCHEMA_VERSION}; {AGAIN}")
        try:
            _check_numbers(data)
            manifest = cls.from_dict(data)
            _check(manifest)
        except (RecordError, ConfigError) as error:
            raise ArtifactError(f"{where} is damaged ({str(error)[:400]}); {AGAIN}") from None
        return manifest


def _check(manifest: Manifest) -> None:
    """Raises RecordError where sections contradict each other, or name what this version does not compute."""
    _check_tensors(manifest)
    _check_values(manifest)
    if (manifest.precision in QUANTIZED) != (manifest.quantization is not None):
        have = "with" if manifest.quantization else "without"
        raise RecordError(f"$.precision: {manifest.precision} {have} a quantization")
    predicted = manifest.quantization and manifest.quantization.predicted
    for name, value in plain(predicted).items() if predicted else ():
        if value is None and not name.startswith("centred"):
            raise RecordError(f"$.quantization.predicted.{name}: expected a number, found null")


def _check_tensors(manifest: Manifest) -> None:
    """Raises RecordError unless input and output are those of the architecture, at the size of the preprocessing."""
    prepared, config = manifest.preprocessor, manifest.architecture
    height, width = prepared.height, prepared.width
    config.check_resolution(height, width)
    connector = manifest.options.connector
    projected = connector.out_channels if connector else None
    channels = projected if manifest.options.projector else config.out_channels
    expected: tuple[Any, ...] = (
        ("input", INPUT_NAME, INPUT_TYPES, (("batch", None), 3, ("height", height), ("width", width))),
        ("output", OUTPUT_NAME, OUTPUT_TYPES, (("batch", None), ("tokens", config.tokens(height, width)), channels)),
    )
    for section, name, types, axes in expected:
        spec: TensorSpec = getattr(manifest, section).current
        if len(spec.shape) != len(axes):
            raise RecordError(f"$.{section}.shape: expected {len(axes)} axes, found {len(spec.shape)}")
        if spec.name != name:
            raise RecordError(f"$.{section}.name: expected {name}, found {spec.name!r}")
        if spec.dtype not in types:
            raise RecordError(f"$.{section}.dtype: expected {' or '.join(types)}, found {spec.dtype!r}")
        if isinstance(spec.shape[0], int) and spec.shape[0] > MAX_BATCH:
            raise RecordError(f"$.{section}.shape: expected {MAX_BATCH} images at most, found {spec.shape[0]}")
        for size, axis in zip(spec.shape, axes, strict=True):
            label, wanted = axis if isinstance(axis, tuple) else (None, axis)
            fits = 1 <= size <= MAX_SIZE and wanted in (None, size) if isinstance(size, int) else size == label
            if not fits:
                words = " or ".join(str(word) for word in (wanted, label) if word is not None) or "a positive size"
                raise RecordError(f"$.{section}.shape: expected {words}, found {size!r}")
    free = [isinstance(size, str) for size in (*manifest.input.shape[::2], *manifest.output.shape[:2])]
    dynamic = manifest.options.dynamic_res
    if free != [manifest.options.batch is None, dynamic] * 2 or isinstance(manifest.input.shape[3], str) != dynamic:
        raise RecordError("$.input.shape: other sizes are free than $.options and $.output say")
    if manifest.input.shape[0] != manifest.output.shape[0]:
        raise RecordError(
            f"$.output.shape: expected {manifest.input.shape[0]} images, found {manifest.output.shape[0]}"
        )
    if manifest.tokens != (None if dynamic else config.tokens(height, width)):
        raise RecordError(f"$.tokens: expected {config.tokens(height, width)}, found {manifest.tokens}")


def _check_values(manifest: Manifest) -> None:
    """Raises RecordError for values that others compute with and that are out of their range."""
    checkpoint, quantization, fp16 = manifest.checkpoint, manifest.quantization, manifest.fp16
    if checkpoint.form == "seeded" and not re.fullmatch("seeded:-?[0-9]{1,18}", checkpoint.source):
        raise RecordError(f"$.checkpoint.source: expected seeded and a number, found {checkpoint.source!r}")
    if any(entry.bytes < 0 for entry in manifest.files.values()):
        raise RecordError("$.files: expected sizes from 0, found a negative one")
    if quantization is not None:
        if quantization.format != manifest.precision:
            raise RecordError(f"$.quantization.format: expected {manifest.precision}, found {quantization.format!r}")
        if quantization.target not in QUANT_TARGETS:
            raise RecordError(f"$.quantization.target: unknown value {quantization.target!r}")
    if fp16 is not None:
        stages = len(manifest.architecture.dims)
        if len(fp16.exponents) != stages or not all(-64 <= exponent <= 0 for exponent in fp16.exponents):
            raise RecordError(f"$.fp16.exponents: expected {stages} from -64 to 0, found {list(fp16.exponents)}")
    if manifest.engine is not None:
        profile, architecture = manifest.engine.profile, manifest.architecture
        for height, width in zip(profile.height, profile.width, strict=True):
            architecture.check_resolution(height, width)
        if profile.batch[2] > MAX_BATCH:
            raise RecordError(f"$.engine.profile.batch: expected {MAX_BATCH} at most, found {profile.batch[2]}")


def _check_numbers(data: Any) -> None:
    """Raises RecordError for an integer that no computation here could take."""
    waiting = [("$", data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise RecordError(f"{path}: expected a number of 64 bits, found one of {value.bit_length()}")
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
