"""What an artifact says of itself: `manifest.json`, and the same inside the ONNX file's metadata."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from ..core.errors import ArtifactError, ConfigError
from ..encoder.config import FastViTHDConfig
from ..encoder.preprocess import Preprocessor
from .figures import Figures
from .judging import BOUND_FIGURES
from .precision import PRECISIONS, QUANTIZED

SCHEMA_VERSION = 1
METADATA_KEY = "fvexport"
FLOATS = tuple(p for p in PRECISIONS if p not in QUANTIZED)


@dataclass
class Manifest:
    """The manifest, field by field as it stands in JSON.

    Attributes:
        variant, config: the architecture (`FastViTHDConfig.to_dict`).
        checkpoint: source, form, sha256 of the encoder's tensors, revision, trained.
        precision: of weights and activations.
        input, output: name, dtype and shape; a dynamic size stands as its name.
        preprocessing: how an image becomes the input (`Preprocessor.to_dict`).
        tokens: visual tokens of one image, or None where the resolution is dynamic.
        opset: of the ONNX file.
        options: every option of the export.
        graph: nodes before and after simplification, and why it was skipped if it was.
        files: name -> bytes and sha256 of every other file of the artifact.
        versions: fvexport and the libraries that wrote the file.
        created: UTC time, ISO 8601.
        parity: the verdict, or None where it was skipped.
        quantization: of an int8 or fp8 file: target, method, data, layers, what was predicted; None otherwise.
        fp16: what keeps a half-precision file from overflowing (`Fp16Plan.to_dict`), or None where nothing is needed.
        engine: the TensorRT engine beside the ONNX file: flavour, version, GPU, options, profile, layers; or None.
    """

    variant: str
    config: dict[str, Any]
    checkpoint: dict[str, Any]
    precision: str
    input: dict[str, Any]
    output: dict[str, Any]
    preprocessing: dict[str, Any]
    tokens: int | None
    opset: int
    options: dict[str, Any]
    graph: dict[str, Any]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    created: str
    parity: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    fp16: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def architecture(self) -> FastViTHDConfig:
        """The config as the dataclass that owns strides and token counts."""
        return FastViTHDConfig.from_dict(self.config)

    @property
    def preprocessor(self) -> Preprocessor:
        """How an image becomes the input, at the file's own size."""
        return Preprocessor.from_dict(self.preprocessing)

    @property
    def float_precision(self) -> str:
        """Of everything that is not quantized: fp32, fp16 or bf16."""
        return str(self.quantization["float_precision"]) if self.quantization else self.precision

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON text, the inverse of `from_json`."""
        return json.dumps(asdict(self), indent=indent)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Reads a manifest; raises ArtifactError, naming `where`, for anything that is not one."""
        again = "export it again with `fvexport onnx`"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{where} is not valid JSON ({error}); {again}") from None
        if not isinstance(data, dict) or "schema_version" not in data:
            raise ArtifactError(f"{where} is not an fvexport manifest; {again}")
        if data["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{where} has schema version {data['schema_version']!r}, this fvexport reads {SCHEMA_VERSION}; {again}"
            )
        try:
            manifest = cls(**data)
            _check_types(manifest)
            manifest.architecture, manifest.preprocessor  # noqa: B018 - checks them
        except (TypeError, KeyError, ConfigError) as error:
            raise ArtifactError(f"{where} is damaged ({error}); {again}") from None
        return manifest


def _check_types(manifest: Manifest) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        "variant": str, "config": dict, "checkpoint": dict, "precision": str, "input": dict, "output": dict,
        "preprocessing": dict, "options": dict, "graph": dict, "files": dict, "opset": int, "versions": dict,
        "tokens": (int, type(None)), "parity": (dict, type(None)),
        "quantization": (dict, type(None)), "fp16": (dict, type(None)), "engine": (dict, type(None)),
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(manifest, name), kind):
            raise TypeError(f"{name} is a {type(getattr(manifest, name)).__name__}")
    for border in (manifest.input, manifest.output):
        if not {"name", "dtype", "shape"} <= border.keys():
            raise TypeError("input and output need name, dtype and shape")
        shape = border["shape"]
        if not isinstance(shape, list) or not all(isinstance(size, int | str) for size in shape):
            raise TypeError(f"{border['name']!r} has the shape {shape!r}")
    if len(manifest.input["shape"]) != 4 or len(manifest.output["shape"]) != 3:
        raise TypeError("the input must have four axes, the output three")
    if manifest.precision not in PRECISIONS:
        raise TypeError(f"unknown precision {manifest.precision!r}")
    if (manifest.precision in QUANTIZED) != (manifest.quantization is not None):
        raise TypeError(f"{manifest.precision} {'with' if manifest.quantization else 'without'} a quantization")
    if manifest.quantization is not None:
        _check_quantization(manifest.quantization)
    for name in ("source", "form", "sha256"):
        if not isinstance(manifest.checkpoint.get(name), str):
            raise TypeError(f"checkpoint names no {name}")
    crop = manifest.preprocessing.get("crop_size")
    if not isinstance(crop, dict) or not {"height", "width"} <= crop.keys():
        raise TypeError("preprocessing has no crop_size")
    for size, prepared in zip(manifest.input["shape"][2:], (crop["height"], crop["width"]), strict=True):
        if isinstance(size, int) and size != prepared:
            raise TypeError(f"input is {size} pixels and preprocessing makes {prepared}")
    for name, entry in manifest.files.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
            raise TypeError(f"files[{name!r}] has no size")


def _check_quantization(record: dict[str, Any]) -> None:
    number, nothing = (int, float), type(None)
    kinds: dict[str, type | tuple[type, ...]] = {
        "target": str, "quantized": list, "float": list, "blocks": dict, "predicted": (dict, nothing),
        "bound_db": (*number, nothing),
    }  # fmt: skip
    for name, kind in kinds.items():
        if name not in record or not isinstance(record[name], kind):
            raise TypeError(f"quantization has no {name}")
    if record.get("float_precision") not in FLOATS:
        raise TypeError(f"quantization around the unknown precision {record.get('float_precision')!r}")
    if not all(isinstance(value, (*number, nothing)) for value in record["blocks"].values()):
        raise TypeError("quantization has blocks without figures")
    predicted = record["predicted"]
    if predicted is not None and not _are_figures(predicted):
        raise TypeError("quantization predicts no figures")
    if record.get("bound_figure", "plain") not in BOUND_FIGURES:
        raise TypeError(f"quantization has the unknown bound_figure {record['bound_figure']!r}")


def _are_figures(record: dict[str, Any]) -> bool:
    """Whether `record` holds `Figures`, with the centred ones or, from earlier versions, without."""
    required = {figure.name for figure in fields(Figures) if figure.default is MISSING}
    optional = {figure.name for figure in fields(Figures)} - required
    return (
        required <= record.keys() <= required | optional
        and all(isinstance(record[name], int | float) for name in required)
        and all(isinstance(record.get(name), int | float | None) for name in optional)
    )
