"""The verdict: is this artifact the same model?

An artifact is compared with the eager model in its checkpoint's own form, in float32, on real
photographs. It is judged against what PyTorch itself loses in the artifact's precision: at most
twice that, and within absolute bounds. (The rule is that of Polygraphy's and flash-attention's
tests: error only has a meaning beside the error that the precision itself makes.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..encoder.checkpoint import Checkpoint, load_checkpoint
from ..encoder.image import ImageLike, find_images, sample_images
from ..encoder.reparameterize import reparameterize
from ..errors import ArtifactError, CheckpointError, ConfigError
from ..progress import Progress, silent
from .artifact import Artifact
from .figures import Figures, compare, worst
from .runtime.eager import EagerBackend
from .runtime.encoder import preprocessor_of
from .runtime.onnxruntime import OnnxRuntimeBackend
from .trace import DTYPES

Images = Mapping[str, ImageLike] | Sequence[ImageLike] | str | os.PathLike[str] | None
"""Photographs to compare on: named ones, files, folders, or None for two that scikit-image ships."""

LayerErrors = tuple[float | None, float | None]
"""A block's relative L2 error in the artifact and in PyTorch; None where it is not finite."""

MAX_IMAGES = 8
"""Photographs looked at when a folder is given; more would cost time and change no verdict."""


@dataclass(frozen=True)
class Thresholds:
    """When an artifact of one precision passes.

    Attributes:
        over_torch: relative L2 error allowed, as a multiple of PyTorch's own in that precision.
        rel_l2_floor: always allowed: below it, differences are the noise of summation order.
        rel_l2_limit: never allowed beyond, whatever PyTorch loses.
        cosine_min: that the worst token must reach.
    """

    over_torch: float
    rel_l2_floor: float
    rel_l2_limit: float
    cosine_min: float

    def bound(self, torch_rel_l2: float | None) -> float:
        """The relative L2 error allowed beside PyTorch's own."""
        own = 0.0 if torch_rel_l2 is None or not np.isfinite(torch_rel_l2) else self.over_torch * torch_rel_l2
        return min(self.rel_l2_limit, max(self.rel_l2_floor, own))


THRESHOLDS: dict[str, Thresholds] = {
    "fp32": Thresholds(over_torch=2, rel_l2_floor=1e-5, rel_l2_limit=1e-3, cosine_min=0.99999),
    "fp16": Thresholds(over_torch=2, rel_l2_floor=2e-3, rel_l2_limit=3e-2, cosine_min=0.999),
    "bf16": Thresholds(over_torch=2, rel_l2_floor=1.6e-2, rel_l2_limit=1.5e-1, cosine_min=0.98),
}


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


@dataclass(frozen=True)
class Verdict:
    """The result of one comparison.

    Attributes:
        status: `pass`, `fail` or `non-finite`.
        reason: one sentence.
        figures: worst over all images and resolutions.
        torch: the same of PyTorch itself in that precision.
        thresholds: what was allowed.
        images, resolutions: what was compared.
        backend: what ran the artifact, and how it computed.
        layers: per block, where asked for.
        first_bad_layer: the first block that left its bound.
    """

    status: Literal["pass", "fail", "non-finite"]
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
    images: Images = None, backend: str = "onnxruntime-cpu", layers: bool = False,
    progress: Progress = silent,
) -> Verdict:  # fmt: skip
    """Compares an artifact with the eager model it was made from.

    Args:
        artifact: a folder, or an opened artifact.
        checkpoint: where the eager model comes from; by default the artifact's own source.
        images: files or a folder; by default two photographs from scikit-image.
        backend: what runs the artifact.
        layers: compare every block's output, and name the first that leaves its bound.
        progress: called as images are done.

    Raises:
        ArtifactError: the artifact is damaged, or was made from another checkpoint.
        ImageError, CheckpointError, UnavailableError: as their names say.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.open(artifact)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = source_checkpoint(artifact, checkpoint)
    named = photographs(images)
    manifest = artifact.manifest
    precision = manifest.precision
    thresholds = THRESHOLDS[precision]
    connector = checkpoint.connector if manifest.options.get("projector") else None

    reference = EagerBackend(checkpoint.encoder, connector)
    uint8 = manifest.input["dtype"] == "uint8"
    stores = None if precision == "fp32" else DTYPES[precision]
    own = EagerBackend(reparameterize(checkpoint.encoder), connector, stores=stores)
    taps = [name for name, _ in checkpoint.encoder.named_blocks()] if layers else []
    candidate = OnnxRuntimeBackend(artifact, backend, stored_half=backend == "onnxruntime-cpu", taps=taps)

    rows: list[tuple[Figures, Figures]] = []
    layer_rows: dict[str, list[LayerErrors]] = {name: [] for name in taps}
    runs = list(_runs(artifact, list(named.values())))
    for done, pixels in enumerate(runs):
        progress("parity", done, len(runs))
        values = pixels.astype(np.float32) / 255
        feed = pixels if uint8 else values
        if layers:
            expected, ours, actual, errors = _run_layers(reference, own, candidate, values, feed)
            for name, pair in errors.items():
                layer_rows[name].append(pair)
        else:
            expected, ours, actual = reference.run(values), own.run(values), candidate.run(feed)
        rows.append((compare(expected, actual), compare(expected, ours)))
    progress("parity", len(runs), len(runs))

    figures, torch_figures = worst([a for a, _ in rows]), worst([b for _, b in rows])
    layer_figures = [_layer_figure(name, found, thresholds) for name, found in layer_rows.items()]
    status, reason = judge(figures, torch_figures, thresholds)
    sizes = sorted({p.shape[2:] for p in runs}, reverse=True)
    return Verdict(
        status, reason, precision, figures, torch_figures, thresholds,
        images=list(named), resolutions=[f"{height}x{width}" for height, width in sizes],
        backend=f"{candidate.name}, computing {candidate.computes}",
        layers=layer_figures, first_bad_layer=next((f.name for f in layer_figures if not f.passed), None),
    )  # fmt: skip


def judge(
    figures: Figures, torch_figures: Figures, thresholds: Thresholds
) -> tuple[Literal["pass", "fail", "non-finite"], str]:
    """Status and one sentence."""
    if not figures.finite:
        also = "" if torch_figures.finite else "; PyTorch overflows in this precision too"
        return "non-finite", f"the artifact's output has infinite or undefined values{also}"
    bound = thresholds.bound(torch_figures.rel_l2 if torch_figures.finite else None)
    if not figures.rel_l2 <= bound:  # so written that an undefined figure fails too
        return "fail", f"relative L2 error {figures.rel_l2:.1e} is over the bound of {bound:.1e}"
    if not figures.cosine_min >= thresholds.cosine_min:
        return "fail", f"the worst token's cosine {figures.cosine_min:.6f} is under {thresholds.cosine_min}"
    return "pass", f"relative L2 error {figures.rel_l2:.1e} within {bound:.1e}"


def source_checkpoint(artifact: Artifact, source: str | None = None) -> Checkpoint:
    """Loads the checkpoint an artifact was made from.

    Raises:
        ArtifactError: what stands at `source` (or where the manifest says) has other weights.
        CheckpointError: nothing usable stands there.
    """
    made_from = artifact.manifest.checkpoint
    if source is None and made_from["form"] == "seeded":
        if artifact.manifest.variant == "custom":
            raise ArtifactError(f"{artifact.path} has seeded weights of a custom architecture; name its --checkpoint")
        checkpoint = load_checkpoint(
            None, variant=artifact.manifest.variant, seed=int(made_from["source"].removeprefix("seeded:"))
        )
    else:
        try:
            checkpoint = load_checkpoint(
                source or made_from["source"], revision=made_from.get("revision") if source is None else None
            )
        except CheckpointError as error:
            if source is not None:
                raise
            raise CheckpointError(
                f"{artifact.path} was made from {made_from['source']}, which cannot be loaded now ({error}); "
                "name its place with --checkpoint"
            ) from error
    wanted = artifact.manifest.checkpoint["sha256"]
    if checkpoint.info.sha256 != wanted:
        raise ArtifactError(
            f"{artifact.path} was made from other weights (sha256 {wanted[:12]}…) than {checkpoint.info.source} "
            f"({checkpoint.info.sha256[:12]}…); name the right one with --checkpoint, or export again"
        )
    if artifact.manifest.options.get("projector"):
        if checkpoint.connector is None:
            raise ArtifactError(f"{artifact.path} ends with a connector and {checkpoint.info.source} has none")
        if checkpoint.info.connector_sha256 != made_from.get("connector_sha256"):
            raise ArtifactError(
                f"{artifact.path} ends with another connector than that of {checkpoint.info.source}; "
                "name the right one with --checkpoint, or export again"
            )
    return checkpoint


def photographs(images: Images) -> dict[str, ImageLike]:
    """Name -> image: the given ones, or two photographs that scikit-image ships."""
    if isinstance(images, Mapping):
        return dict(images)
    if images is None:
        samples = sample_images()
        return {f"scikit-image {name}": samples[name] for name in ("astronaut", "coffee")}
    if isinstance(images, str | os.PathLike):
        images = [images]
    named: dict[str, ImageLike] = {}
    for image in images:
        if isinstance(image, str | os.PathLike):
            named.update((str(path), path) for path in find_images([Path(image)]))
        else:
            named[f"image {len(named)}"] = image
    if not named:
        raise ConfigError("no images to compare on; --images takes files or folders of photographs")
    return dict(list(named.items())[:MAX_IMAGES])


def _runs(artifact: Artifact, images: list[ImageLike]) -> Iterable[np.ndarray]:
    """The batches to compare, uint8 (B, 3, H, W).

    Each image at the file's own resolution, and where that is dynamic, all of them at once at
    another one that is not square.
    """
    manifest = artifact.manifest
    batch = manifest.input["shape"][0]
    own = preprocessor_of(artifact)
    pixels = [own.pixels(image) for image in images]
    if isinstance(batch, int):
        for start in range(0, len(pixels), batch):
            group = (pixels[start:] + pixels)[:batch] if len(pixels) >= batch else (pixels * batch)[:batch]
            yield np.stack(group)
    else:
        for image in pixels:
            yield image[None]
    if manifest.options.get("dynamic_res"):
        stride = manifest.architecture.stride
        height = max(stride, own.height // 2 // stride * stride)
        other = preprocessor_of(artifact, (height, max(stride, own.width * 3 // 8 // stride * stride)))
        several = [other.pixels(image) for image in images]
        yield np.stack((several * (batch or 1))[:batch] if isinstance(batch, int) else several)
    elif batch == "batch":
        yield np.stack((pixels * 2)[: max(2, len(pixels))])


def _run_layers(
    reference: EagerBackend, own: EagerBackend, candidate: OnnxRuntimeBackend, values: np.ndarray, feed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, LayerErrors]]:
    """Features of all three, and per block the candidate's error and PyTorch's own."""
    blocks: dict[str, np.ndarray] = {}
    errors: dict[str, float | None] = {}
    expected = reference.run_taps(values, blocks.__setitem__)
    ours = own.run_taps(values, lambda name, y: errors.__setitem__(name, _rel_l2(blocks[name], y)))
    actual, inner = candidate.run_taps(feed)
    return expected, ours, actual, {name: (_rel_l2(b, inner[name]), errors[name]) for name, b in blocks.items()}


def _rel_l2(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    if not np.isfinite(candidate).all():
        return None
    a, b = torch.from_numpy(reference), torch.from_numpy(candidate)
    return float((a - b).double().norm() / a.double().norm().clamp_min(1e-300))


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
