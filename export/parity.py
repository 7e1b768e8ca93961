"""The verdict: is this artifact the same model?

An artifact is compared with the eager model in its checkpoint's own form, in float32, on real
photographs, and judged against what PyTorch itself loses in the artifact's precision (see `judging`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ..core.dtypes import torch_dtype
from ..core.errors import ConfigError
from ..core.progress import Progress, silent
from ..core.records import plain
from ..core.threads import check_threads, torch_threads
from ..core.utf8_path import utf8_path
from ..core.verdict.figures import Comparison, Figures, relative_l2
from ..core.verdict.judging import THRESHOLDS, Status, Thresholds, judge, unmeasured
from ..encoder.checkpoint import Checkpoint
from ..encoder.connector import Connector
from ..encoder.fastvithd import FastViTHD
from ..encoder.image import HELD_OUT, ImageLike, find_images, load_image, sample_images
from .artifact import BLOCK_SCALES_FILE, Artifact
from .artifact_source import exported_module, source_checkpoint
from .backend_table import get_backend, stored_precision
from .export_options import AUTO
from .manifest import Manifest
from .parity_backends import EagerReference, TappedBackend, parity_backend
from .parity_runs import Run, runs_of
from .placement import choose_backend
from .runtime.base import Backend

Images = Mapping[str, ImageLike] | Sequence[ImageLike] | str | os.PathLike[str] | None
"""Photographs to compare on: named ones, files, folders, or None for two that scikit-image ships."""

LayerErrors = tuple[float | None, float | None]
"""A block's relative L2 error in the artifact and in PyTorch; None where it is not finite."""

MAX_IMAGES = 8
"""Photographs looked at when a folder is given; more would cost time and change no verdict."""


@dataclass(frozen=True)
class LayerFigure:
    """One block's output: relative L2 error of the artifact and of PyTorch, and the bound."""

    name: str
    rel_l2: float | None
    torch_rel_l2: float | None
    bound: float

    @property
    def passed(self) -> bool:
        return self.rel_l2 is not None and self.rel_l2 <= self.bound


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of one comparison.

    Attributes:
        status: `pass`, `fail` or `non-finite`.
        reason: one sentence.
        figures: worst over all images and resolutions, on the tokens that see a part of the image.
        torch: the same of PyTorch itself in that precision.
        thresholds: what was allowed.
        images, resolutions: what was compared.
        backend: what ran the artifact, and how it computed.
        layers: per block, where asked for.
        first_bad_layer: the first block that left its bound.
    """

    status: Status
    reason: str
    precision: str
    figures: Figures
    torch: Figures
    thresholds: Thresholds
    images: list[str]
    resolutions: list[str]
    backend: str
    layers: list[LayerFigure] = field(default_factory=list)
    first_bad_layer: str | None = None

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"figures": self.figures.to_dict(), "torch": self.torch.to_dict()}


def check_parity(
    artifact: str | os.PathLike[str] | Artifact, *, checkpoint: Checkpoint | str | None = None,
    images: Images = None, backend: str = AUTO, layers: bool = False,
    exported: FastViTHD | None = None, threads: int | None = None, progress: Progress = silent,
) -> Verdict:  # fmt: skip
    """Compares an artifact with the eager model it was made from.

    Args:
        artifact: a folder, or an opened artifact.
        checkpoint: where the eager model comes from; by default the artifact's own source.
        images: files or a folder; by default two photographs from scikit-image.
        backend: what runs the artifact; `auto` for the engine, GPU or runtime that it is for, if that runs here.
        layers: compare every block's output, and name the first that leaves its bound.
        exported: the module that was exported, where it is at hand: what PyTorch loses with the same quantization.
            Without it, a quantized artifact's own record of that counts.
        threads: for the artifact and for PyTorch; None leaves it to them, within the container's CPU quota.
        progress: called as images are done.

    Raises:
        ArtifactError: the artifact is damaged, or was made from another checkpoint.
        ConfigError: a number of threads that makes no sense.
        ImageError, CheckpointError, UnavailableError: as their names say.
    """
    check_threads(threads)
    if not isinstance(artifact, Artifact):
        artifact = Artifact.open(artifact)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = source_checkpoint(artifact, checkpoint)
    named = photographs(images)
    backend = choose_backend(artifact, backend, judging=True, taps=layers).name
    with torch_threads(threads):
        candidate = parity_backend(
            artifact, backend, taps=_taps(checkpoint) if layers else (), checkpoint=checkpoint, threads=threads
        )
        compared = _compared(artifact, checkpoint, candidate, exported, layers=layers)
        runs = list(runs_of(artifact, list(named.values()), getattr(candidate, "profile", None)))
        for done, run in enumerate(runs):
            progress("parity", done, len(runs))
            compared.add(run)
        progress("parity", len(runs), len(runs))
    return _verdict(artifact.manifest, compared, list(named), runs)


def _compared(
    artifact: Artifact, checkpoint: Checkpoint, candidate: Backend, exported: FastViTHD | None, *, layers: bool
) -> _Compared:
    """What is run: the eager model, PyTorch as exported, and the artifact on a backend; nothing is compared yet."""
    manifest = artifact.manifest
    connector = checkpoint.connector if manifest.options.projector else None
    stored = stored_precision(get_backend(candidate.name), manifest.precision, manifest.float_precision)
    return _Compared(
        reference=EagerReference(checkpoint.encoder, connector),
        own=_own(checkpoint, manifest, exported, connector, stored),
        candidate=candidate,
        manifest=manifest,
        scales=_block_scales(artifact) if layers else {},
        layers={name: [] for name in _taps(checkpoint)} if layers else {},
    )


def _taps(checkpoint: Checkpoint) -> list[str]:
    """The blocks whose outputs are compared."""
    return [name for name, _ in checkpoint.encoder.named_blocks()]


def _verdict(manifest: Manifest, compared: _Compared, images: list[str], runs: Sequence[Run]) -> Verdict:
    """Judges all that was compared, beside what PyTorch loses."""
    thresholds, quantization = THRESHOLDS[manifest.precision], manifest.quantization
    figures = compared.found.figures
    torch_figures = compared.torch.figures if compared.own else _recorded(manifest, images, compared.found.ratio)
    status, reason = judge(
        figures, torch_figures, thresholds,
        bound_db=quantization.bound_db if quantization else None,
        bound_figure=quantization.bound_figure if quantization else "plain",
    )  # fmt: skip
    layers = [_layer_figure(name, found, thresholds) for name, found in compared.layers.items()]
    sizes = sorted({run.resolution for run in runs}, reverse=True)
    return Verdict(
        status=status, reason=reason, precision=manifest.precision, figures=figures, torch=torch_figures,
        thresholds=thresholds, images=images, resolutions=[f"{height}x{width}" for height, width in sizes],
        backend=f"{compared.candidate.name}, computing {compared.candidate.computes}",
        layers=layers, first_bad_layer=next((layer.name for layer in layers if not layer.passed), None),
    )  # fmt: skip


def _own(
    checkpoint: Checkpoint, manifest: Manifest, exported: FastViTHD | None, connector: Connector | None, stored: str
) -> EagerReference | None:
    """PyTorch with the same scales and quantizers, storing the same precision; None where only its record is left."""
    half = None if stored == "fp32" else torch_dtype(stored)
    if exported is None:
        if manifest.quantization:
            return None
        exported = exported_module(manifest, checkpoint, uint8_input=False)
    return EagerReference(exported, connector, emulate_half=half)


def _block_scales(artifact: Artifact) -> dict[str, np.ndarray]:
    """Block -> (C, 1, 1) or (1, 1, 1) factor of its output over the checkpoint's, where it has one."""
    file = artifact.path / BLOCK_SCALES_FILE
    with artifact.one_version():
        if not file.is_file():
            return {}
        with utf8_path(file) as path:
            scales = load_file(path)
    return {name: scale[:, None, None] for name, scale in scales.items()}


def photographs(images: Images) -> dict[str, ImageLike]:
    """Name -> image: the given ones, or two photographs that scikit-image ships."""
    if isinstance(images, Mapping):
        return {name: _reusable(image) for name, image in images.items()}
    if images is None:
        samples = sample_images()
        return {f"scikit-image {name}": samples[name] for name in HELD_OUT}
    if isinstance(images, str | os.PathLike):
        images = [images]
    named: dict[str, ImageLike] = {}
    for image in images:
        if isinstance(image, str | os.PathLike):
            named.update((str(path), path) for path in find_images([Path(image)]))
        else:
            named[f"image {len(named)}"] = _reusable(image)
    if not named:
        raise ConfigError("no images to compare on; --images takes files or folders of photographs")
    return dict(list(named.items())[:MAX_IMAGES])


def _reusable(image: ImageLike) -> ImageLike:
    """The image; an open file, which can be read once, is decoded."""
    return load_image(image) if hasattr(image, "read") else image


@dataclass(kw_only=True)
class _Compared:
    """The eager model, PyTorch in the artifact's precision, and the artifact; and what was found of both.

    Attributes:
        reference, own, candidate: the three; `own` is None if only its record is left.
        manifest: of the artifact.
        scales: see `_block_scales`.
        layers: per block to compare, the errors of each batch.
        found: of the artifact.
        torch: of PyTorch.
    """

    reference: EagerReference
    own: EagerReference | None
    candidate: Backend
    manifest: Manifest
    scales: dict[str, np.ndarray]
    layers: dict[str, list[LayerErrors]]
    found: Comparison = field(default_factory=Comparison)
    torch: Comparison = field(default_factory=Comparison)

    def add(self, run: Run) -> None:
        """Runs one batch on all, and adds its errors."""
        values = self.manifest.preprocessor.config.normalize(run.pixels)
        feed = run.pixels if self.manifest.input.dtype == "uint8" else values
        # PyTorch as exported takes uint8 only if it was given the exported module.
        pixels = feed if self.own is not None and self.own.encoder.uint8_input else values
        if self.layers:
            expected, actual, ours = self._run_blocks(values, feed, pixels)
        else:
            expected, actual = self.reference.run(values), self.candidate.run(feed)
            ours = None if self.own is None else self.own.run(pixels)
        add_run(self.found, run, expected, actual)
        if ours is not None:
            add_run(self.torch, run, expected, ours)

    def _run_blocks(
        self, values: np.ndarray, feed: np.ndarray, pixels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Features of the three, after adding the errors of every block to `layers`."""
        blocks: dict[str, np.ndarray] = {}
        expected = self.reference.run_taps(values, blocks.__setitem__)
        assert isinstance(self.candidate, TappedBackend)  # of a target with `taps`
        actual, inner = self.candidate.run_taps(feed)

        def error(name: str, y: np.ndarray) -> float | None:
            return _rel_l2(blocks[name], y / self.scales.get(name, 1))

        if self.own is None:
            ours, quantization = None, self.manifest.quantization
            theirs = dict(quantization.blocks) if quantization else {}
        else:
            theirs = {}
            ours = self.own.run_taps(pixels, lambda name, y: theirs.update({name: error(name, y)}))
        for name in blocks:
            self.layers[name].append((error(name, inner[name]), theirs.get(name)))
        return expected, actual, ours


def add_run(found: Comparison, run: Run, reference: np.ndarray, candidate: np.ndarray) -> None:
    """Adds the features of a batch, both (B, N, C). Pictures at one resolution share a mean."""
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: reference {reference.shape}, candidate {candidate.shape}")
    for row, photograph in enumerate(run.photographs):
        found.add(
            reference[row], candidate[row], picture=photograph, group=run.resolution, seen=run.seen[row]
        )  # fmt: skip


def _recorded(manifest: Manifest, images: Sequence[str], ratio: float | None) -> Figures:
    """What PyTorch lost when the artifact was made; if that was not measured, all that is ever allowed.

    Args:
        manifest: of the artifact.
        images: names of the photographs now.
        ratio: of a centred error to a plain one on these photographs.
    """
    predicted = manifest.quantization.predicted if manifest.quantization else None
    if predicted is None:
        return unmeasured(THRESHOLDS[manifest.precision])
    figures = Figures.from_dict(plain(predicted))
    judged_on = manifest.parity.images if manifest.parity else ()
    if figures.centred_rel_l2 is not None and judged_on == tuple(images):
        return figures
    # An earlier version's record, or one of other photographs. The error is not centred, so the ratio of a centred
    # error to a plain one depends on the reference alone.
    return figures.with_centred(None if ratio is None else figures.rel_l2 * ratio)


def _rel_l2(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    found = relative_l2(reference, candidate) if np.isfinite(candidate).all() else math.inf
    return found if math.isfinite(found) else None


def _layer_figure(name: str, found: list[LayerErrors], thresholds: Thresholds) -> LayerFigure:
    ours = [a for a, _ in found]
    theirs = [b for _, b in found]
    torch_worst = None if None in theirs else max(b for b in theirs if b is not None)
    return LayerFigure(
        name,
        rel_l2=None if None in ours else max(a for a in ours if a is not None),
        torch_rel_l2=torch_worst,
        bound=thresholds.bound(torch_worst),
    )
