"""From a checkpoint to the module that is exported: fused, and where asked for kept inside FP16 or quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..calibration.calibrate import load_ranges
from ..calibration.calibration_options import DEFAULT_SAMPLES, FP16_SAMPLES, CalibrationOptions
from ..calibration.equalize import KINDS, equalize
from ..calibration.findings import Fp16Plan
from ..calibration.fp16 import fit_fp16, plan_fp16
from ..calibration.observe import check_layers, model_input, observe, observe_peaks
from ..calibration.photos import calibration_data
from ..calibration.policy import SCHEMES
from ..calibration.quantize import quantizable, quantize
from ..calibration.ranges_file import Stats
from ..calibration.sensitivity import Bounded, meet_bound
from ..core.dtypes import torch_dtype
from ..core.progress import Progress
from ..core.verdict.reference import Reference
from ..encoder.checkpoint import Checkpoint
from ..encoder.config import MIXERS
from ..encoder.fastvithd import FastViTHD
from ..encoder.image import ImageLike
from ..encoder.preprocess import Preprocessor
from ..encoder.reparameterize import reparameterize
from .backend_table import get_backend, stored_precision
from .export_options import ExportOptions
from .manifest import CalibrationData, QuantizationSection
from .parity_backends import EagerReference
from .parity_runs import tokens_of
from .runtime.eager_backend import EagerBackend

PROBE_SIDE = 512
"""Longest side at which layers' sensitivities are compared: their order hardly depends on it, their time does."""


@dataclass
class Prepared:
    """What is exported, and what the manifest says of it.

    Attributes:
        encoder: fused, ready to trace.
        changed: whether it is more than fused.
        quantization, fp16: see `Manifest`.
        block_scales: block -> (C,) or (1,) factor of its output over the checkpoint's.
        notices: sentences that a user should read.
    """

    encoder: FastViTHD
    quantization: QuantizationSection | None = None
    fp16: Fp16Plan | None = None
    block_scales: dict[str, Tensor] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.quantization is not None or self.fp16 is not None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What `prepare` was called with, and the `frame` that images are prepared in."""

    checkpoint: Checkpoint
    options: ExportOptions
    calibration: CalibrationOptions
    images: Mapping[str, ImageLike]
    frame: Preprocessor
    progress: Progress


def prepare(
    checkpoint: Checkpoint, options: ExportOptions, calibration: CalibrationOptions, images: Mapping[str, ImageLike],
    progress: Progress,
) -> Prepared:  # fmt: skip
    """Fuses, and does what the precision asks for.

    Args:
        checkpoint: the weights.
        options: the export.
        calibration: pictures and bounds.
        images: photographs that a bound is measured on.
        progress: called as pictures and layers are done.

    Raises:
        ConfigError, ImageError: as `calibration` has it; see `observe`, `plan_fp16`, `meet_bound`.
    """
    progress("fuse", 0, None)
    normalization = checkpoint.info.preprocessing.normalization
    fused = reparameterize(checkpoint.encoder, uint8_input=options.input == "uint8", normalization=normalization)
    job = _Job(
        checkpoint=checkpoint, options=options, calibration=calibration, images=images, progress=progress,
        frame=_frame(checkpoint, options.height, options.width),
    )  # fmt: skip
    if options.quantized:
        return _quantized(fused, job)
    result = Prepared(fused)
    if options.float_precision == "fp16":
        peaks = _peaks(fused, job, result.notices)
        _fit(result, plan_fp16(fused, peaks))
    return result


def _frame(checkpoint: Checkpoint, height: int, width: int) -> Preprocessor:
    return Preprocessor(height, width, checkpoint.info.preprocessing)


def _peaks(fused: FastViTHD, job: _Job, notices: list[str]) -> dict[str, float]:
    calibration = job.calibration
    if calibration.ranges is not None:
        return _stats(fused, job, Path(calibration.ranges)).amax
    data = calibration_data(calibration.calib, calibration.samples or FP16_SAMPLES, seed=calibration.seed)
    if calibration.calib is not None:
        notices += data.notices
    return observe_peaks(fused, data, job.frame, progress=job.progress)


def _stats(fused: FastViTHD, job: _Job, ranges: Path) -> Stats:
    stats = load_ranges(ranges)
    frame = job.frame
    stats.check(job.checkpoint.info.sha256, frame.height, frame.width, frame.config.key)
    check_layers(stats, fused)
    return stats


def _fit(result: Prepared, plan: Fp16Plan) -> None:
    """Keeps a model inside FP16 where the plan says it has to be."""
    if not plan.needed:
        return
    result.encoder = fit_fp16(result.encoder, plan)
    result.fp16 = plan
    result.block_scales |= stream_scales(result.encoder, plan)
    largest = max(plan.peaks, key=lambda tap: plan.peaks[tap])
    told = [f"stage {s + 1} by 2^{e}" for s, e in enumerate(plan.exponents) if e]
    scaled = f"the residual stream is scaled exactly ({', '.join(told)})" if told else ""
    kept = f"{', '.join(plan.float32)} kept in float32" if plan.float32 else ""
    result.notices.append(
        f"FP16 would overflow ({largest} reaches {plan.peaks[largest]:.0f} of 65504, headroom {plan.headroom:g}): "
        + "; ".join(part for part in (scaled, kept) if part)
    )


def stream_scales(model: FastViTHD, plan: Fp16Plan) -> dict[str, Tensor]:
    """Block -> (1,) factor that `fit_fp16` gave its output."""
    scales = {}
    for name, _ in model.named_blocks():
        parts = name.split(".")
        if parts[0] == "stages" and (exponent := plan.exponents[int(parts[1])]):
            attends = MIXERS[int(parts[1])] == "attention"
            if parts[2] == "blocks" or (parts[2] == "pos_emb" and attends):
                scales[name] = torch.tensor([2.0**exponent])
    return scales


def _quantized(fused: FastViTHD, job: _Job) -> Prepared:
    options, calibration, progress = job.options, job.calibration, job.progress
    result = Prepared(fused)
    policy = options.policy
    if calibration.ranges is not None:
        stats = _stats(fused, job, Path(calibration.ranges))
    else:
        data = calibration_data(calibration.calib, calibration.samples or DEFAULT_SAMPLES, seed=calibration.seed)
        result.notices += data.notices
        fast = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        stats = observe(fast, job.checkpoint.info, data, job.frame, progress=progress)
    equalized = equalize(fused, stats, policy)
    result.encoder, result.block_scales = equalized.model, equalized.block_scales
    if options.float_precision == "fp16":
        _fit(result, plan_fp16(equalized.model, equalized.stats.amax))
    plain = result.encoder
    result.encoder = quantize(plain, equalized.stats, policy, method=calibration.method, progress=progress)
    layers = quantizable(plain, policy)
    bounded = _bounded(fused, plain, result.encoder, job)
    if bounded is not None:
        result.encoder = bounded.model
    kept = bounded.kept if bounded else []
    result.quantization = QuantizationSection(
        target=policy.target,
        format=policy.fmt,
        float_precision=SCHEMES[policy.target].float_precision,
        reduce_range=policy.reduce_range,
        method="minmax" if policy.fmt == "fp8" else calibration.method,
        data=CalibrationData(source=stats.source, fingerprint=stats.key.data, samples=stats.key.samples),
        equalization=tuple(kind for kind in KINDS if kind != "stream" or equalized.block_scales),
        quantized=tuple(name for name in layers if name not in kept),
        kept_float=tuple(kept),
        bound_db=calibration.bound,
        bound_figure="stricter",
        sensitivity=tuple(bounded.layers) if bounded else (),
        predicted=None,
        blocks={},
    )
    if kept and bounded:
        share = sum(layer.share for layer in bounded.layers if layer.name in kept)
        result.notices.append(
            f"{len(kept)} of {len(layers)} layers stay in float for {calibration.bound:.1f} dB: "
            f"{share:.1%} of the quantized work"
        )
    return result


def _bounded(reference: FastViTHD, plain: FastViTHD, quantized: FastViTHD, job: _Job) -> Bounded | None:
    """The quantized model with as many layers in float as the bound asks for, or None where there is none."""
    checkpoint, options, images, frame = job.checkpoint, job.options, job.images, job.frame
    if job.calibration.bound is None:
        return None
    # As the verdict will have it: behind the connector, in the half type that the runtime stores.
    connector, half = checkpoint.connector if options.projector else None, stored_type(options)
    stride = reference.config.stride
    pixels = torch.cat([model_input(reference, frame.pixels(image), frame) for image in images.values()]).numpy()
    seen = [tokens_of(frame, image, stride) for image in images.values()]
    known = Reference.of(EagerBackend(reference, connector).run, pixels, seen)

    def measure(model: FastViTHD) -> float:
        return known.figures(EagerReference(model, connector, emulate_half=half).run).strict_sqnr_db

    shrink = min(1.0, PROBE_SIDE / max(frame.height, frame.width))
    sides = (max(stride, round(side * shrink / stride) * stride) for side in (frame.height, frame.width))
    small = _frame(checkpoint, *sides)
    probe = torch.cat([model_input(reference, small.pixels(image), small) for image in list(images.values())[:2]])
    return meet_bound(plain, quantized, job.calibration.bound, measure, probe, progress=job.progress)


def stored_type(options: ExportOptions) -> torch.dtype | None:
    """The half type of what is not quantized, on the runtime that the verdict comes from; None for float32."""
    stored: str = options.float_precision
    if options.quantized:
        stored = stored_precision(get_backend(options.policy.target), options.precision, stored)
    return None if stored == "fp32" else torch_dtype(stored)
