"""Whether an artifact that stands there is what would be exported now, so that it need not be exported again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import __version__
from ..calibration.calibrate import load_ranges
from ..calibration.calibration_options import DEFAULT_SAMPLES, CalibrationOptions
from ..calibration.photos import calibration_data
from ..core.errors import ArtifactError
from ..core.output_path import remove_leftovers
from ..encoder.checkpoint import Checkpoint
from .artifact import MANIFEST_FILE, Artifact, check_writable
from .export_options import ExportOptions
from .manifest import Manifest, QuantizationSection


def standing(
    target: Path, checkpoint: Checkpoint, options: ExportOptions, calibration: CalibrationOptions, *,
    force: bool = False, parity: bool = False,
) -> Artifact | None:  # fmt: skip
    """The artifact at `target`, if its ONNX file is what would be exported; None if nothing of use is there.

    Args:
        target, checkpoint, options, calibration: as `export_onnx` has them.
        force: what is there may be replaced.
        parity: the artifact must have passed its comparison with PyTorch.

    Raises:
        ArtifactError: something else is there, and `force` is off.
    """
    if not (target / MANIFEST_FILE).is_file():
        check_writable(target, force=force)
        return None
    remove_leftovers(target)  # of a run that was killed after it had put the artifact there
    try:
        found = Artifact.open(target)
        reason = differs(found.manifest, checkpoint, options, calibration)
        if reason is None and parity and found.manifest.parity is None:
            reason = "its parity was not checked"
    except ArtifactError as error:
        if not force:
            raise
        reason = str(error)
    if reason is None:
        return found
    if not force:
        raise ArtifactError(
            f"{target} exists and holds another artifact ({reason}); replace it with --force (force=True) or choose "
            "another --out (out)"
        )
    check_writable(target, force=True)
    return None


def differs(
    manifest: Manifest, checkpoint: Checkpoint, options: ExportOptions, calibration: CalibrationOptions
) -> str | None:
    """None where an export with these weights and options would give the same file, else what differs, in words.

    Raises ConfigError, ImageError: for calibration data that cannot be read.
    """
    options = options.resolved()
    made_from, info = manifest.checkpoint, checkpoint.info
    if made_from.sha256 != info.sha256:
        return f"it was made from other weights, {made_from.source}"
    if options.projector and made_from.connector_sha256 != info.connector_sha256:
        return "it ends with another connector"
    if manifest.preprocessor.config != info.preprocessing:
        return f"its images are prepared otherwise ({manifest.preprocessor.config.describe()})"
    stored: ExportOptions = replace(manifest.options, opset=manifest.opset)
    if manifest.quantization is not None:  # earlier versions knew one range and one default target
        stored = replace(stored, reduce_range=bool(stored.reduce_range), target=stored.target or "tensorrt")
    for name, value in vars(replace(options, opset=options.effective_opset)).items():
        if getattr(stored, name) != value:
            return f"its {name} is {getattr(stored, name)}, not {value}"
    if manifest.versions.get("fvexport") != __version__:
        return f"it was written by fvexport {manifest.versions.get('fvexport')}"
    if manifest.quantization is not None:
        return _quantized_otherwise(manifest.quantization, options, calibration)
    if options.precision == "fp16" and calibration != CalibrationOptions():
        return "which pictures its FP16 scales were chosen on is not recorded"
    return None


def _quantized_otherwise(
    made: QuantizationSection, options: ExportOptions, calibration: CalibrationOptions
) -> str | None:
    method = "minmax" if options.precision == "fp8" else calibration.method
    if made.method != method:
        return f"its ranges are by {made.method}, not {method}"
    if made.bound_db != calibration.bound:
        return f"it was made for a bound of {made.bound_db} dB, not {calibration.bound}"
    if calibration.ranges is not None:
        fingerprint = load_ranges(Path(calibration.ranges)).key.data
    else:
        samples = calibration.samples or DEFAULT_SAMPLES
        fingerprint = calibration_data(calibration.calib, samples, seed=calibration.seed).fingerprint
    return None if made.data.fingerprint == fingerprint else "it was calibrated on other pictures"
