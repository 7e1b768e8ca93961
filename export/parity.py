"""The verdict: is this artifact the same model?

An artifact is compared with the eager model in its checkpoint's own form, in float32, on real
photographs. It is judged against what PyTorch itself loses in the artifact's precision: at most
twice that, and within absolute bounds. (The rule is that of Polygraphy's and flash-attention's
tests: error only has a meaning beside the error that the precision itself makes.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file

from ..encoder.checkpoint import Checkpoint
from ..encoder.connector import Connector
from ..encoder.fastvithd import FastViTHD
from ..encoder.image import HELD_OUT, ImageLike, find_images, sample_images
from ..errors import ConfigError
from ..progress import Progress, silent
from .artifact import Artifact
from .figures import Figures, compare, worst
from .manifest import Manifest
from .options import AUTO
from .placement import choose_backend
from .runtime.backends import ArtifactBackend, make_backend
from .runtime.eager import EagerBackend
from .runtime.encoder import preprocessor_of
from .source import exported_module, source_checkpoint
from .targets import get_target
from .tensorrt.options import Profile
from .trace import DTYPES

Images = Mapping[str, ImageLike] | Sequence[ImageLike] | str | os.PathLike[str] | None
"""Photographs to compare on: named ones, files, folders, or None for two that scikit-image ships."""

LayerErrors = tuple[float | None, float | None]
"""A block's relative L2 error in the artifact and in PyTorch; None where it is not finite."""

BLOCK_SCALES_FILE = "block_scales.safetensors"
"""Factors of block outputs over the checkpoint's, in artifacts that carry their stream at another scale."""

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
    # 3 dB of what the same quantization loses in PyTorch, as measured at export; never under 14 and 11 dB.
    "int8": Thresholds(over_torch=1.41, rel_l2_floor=1e-2, rel_l2_limit=2e-1, cosine_min=0.95),
    "fp8": Thresholds(over_torch=1.41, rel_l2_floor=2e-2, rel_l2_limit=2.8e-1, cosine_min=0.9),
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
    images: Images = None, backend: str = AUTO, layers: bool = False,
    exported: FastViTHD | None = None, progress: Progress = silent,
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
    backend = choose_backend(artifact, backend, judging=True, taps=layers).name
    manifest = artifact.manifest
    precision = manifest.precision
    thresholds = THRESHOLDS[precision]
    connector = checkpoint.connector if manifest.options.get("projector") else None

    reference = EagerBackend(checkpoint.encoder, connector)
    uint8 = manifest.input["dtype"] == "uint8"
    taps = [name for name, _ in checkpoint.encoder.named_blocks()] if layers else []
    candidate = make_backend(
        artifact, backend, stored_half=get_target(backend).rounds_stored, taps=taps, checkpoint=checkpoint
    )
    own = _own(checkpoint, manifest, exported, connector, candidate.stores or manifest.float_precision)
    compared = _Compared(reference, own, candidate, _block_scales(artifact) if layers else {}, manifest)

    preprocessing = manifest.preprocessor.config
    rows: list[tuple[Figures, Figures]] = []
    layer_rows: dict[str, list[LayerErrors]] = {name: [] for name in taps}
    runs = list(_runs(artifact, list(named.values()), getattr(candidate, "profile", None)))
    for done, pixels in enumerate(runs):
        progress("parity", done, len(runs))
        values = preprocessing.normalize(pixels)
        figures_pair, errors = compared.run(values, pixels if uint8 else values, layers=layers)
        rows.append(figures_pair)
        for name, pair in errors.items():
            layer_rows[name].append(pair)
    progress("parity", len(runs), len(runs))

    figures, torch_figures = worst([a for a, _ in rows]), worst([b for _, b in rows])
    layer_figures = [_layer_figure(name, found, thresholds) for name, found in layer_rows.items()]
    status, reason = judge(figures, torch_figures, thresholds, bound_db=(manifest.quantization or {}).get("bound_db"))
    sizes = sorted({p.shape[2:] for p in runs}, reverse=True)
    return Verdict(
        status, reason, precision, figures, torch_figures, thresholds,
        images=list(named), resolutions=[f"{height}x{width}" for height, width in sizes],
        backend=f"{candidate.name}, computing {candidate.computes}",
        layers=layer_figures, first_bad_layer=next((f.name for f in layer_figures if not f.passed), None),
    )  # fmt: skip


def _own(
    checkpoint: Checkpoint, manifest: Manifest, exported: FastViTHD | None, connector: Connector | None, stored: str
) -> EagerBackend | None:
    """PyTorch with the same scales and quantizers, storing alike; None where only its record is left."""
    stores = None if stored == "fp32" else DTYPES[stored]
    if exported is None:
        if manifest.quantization:
            return None
        exported = exported_module(manifest, checkpoint, uint8_input=False)
    return EagerBackend(exported, connector, stores=stores)


def _block_scales(artifact: Artifact) -> dict[str, np.ndarray]:
    """Block -> (C, 1, 1) or (1, 1, 1) factor of its output over the checkpoint's, where it has one."""
    file = artifact.path / BLOCK_SCALES_FILE
    return {name: scale[:, None, None] for name, scale in load_file(file).items()} if file.is_file() else {}


def judge(
    figures: Figures, torch_figures: Figures, thresholds: Thresholds, *, bound_db: float | None = None
) -> tuple[Literal["pass", "fail", "non-finite"], str]:
    """Status and one sentence; `bound_db` is the SQNR that the user asked for."""
    if not figures.finite:
        also = "" if torch_figures.finite else "; PyTorch overflows in this precision too"
        return "non-finite", f"the artifact's output has infinite or undefined values{also}"
    bound = thresholds.bound(torch_figures.rel_l2 if torch_figures.finite else None)
    if not figures.rel_l2 <= bound:  # so written that an undefined figure fails too
        return "fail", f"relative L2 error {figures.rel_l2:.1e} is over the bound of {bound:.1e}"
    if not figures.cosine_min >= thresholds.cosine_min:
        return "fail", f"the worst token's cosine {figures.cosine_min:.6f} is under {thresholds.cosine_min}"
    if bound_db is not None and not figures.sqnr_db >= bound_db:
        return "fail", f"SQNR {figures.sqnr_db:.1f} dB is under the {bound_db:.1f} dB asked for"
    return "pass", f"relative L2 error {figures.rel_l2:.1e} within {bound:.1e}"


def photographs(images: Images) -> dict[str, ImageLike]:
    """Name -> image: the given ones, or two photographs that scikit-image ships."""
    if isinstance(images, Mapping):
        return dict(images)
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
            named[f"image {len(named)}"] = image
    if not named:
        raise ConfigError("no images to compare on; --images takes files or folders of photographs")
    return dict(list(named.items())[:MAX_IMAGES])


def _runs(artifact: Artifact, images: list[ImageLike], profile: Profile | None) -> Iterable[np.ndarray]:
    """The batches to compare, uint8 (B, 3, H, W).

    Each image at the file's own resolution, and where that is dynamic, all of them at once at
    another one that is not square. An engine's `profile` bounds both sizes and images at once.
    """
    manifest = artifact.manifest
    batch = manifest.input["shape"][0]
    dynamic = manifest.options.get("dynamic_res")
    stride = manifest.architecture.stride
    height, width = _within(profile, *_frame_of(artifact)) if dynamic else _frame_of(artifact)
    low, high = (profile.batch[0], profile.batch[2]) if profile else (1, len(images))
    own = preprocessor_of(artifact, (height, width))
    pixels = [own.pixels(image) for image in images]
    if isinstance(batch, int):
        for start in range(0, len(pixels), batch):
            group = (pixels[start:] + pixels)[:batch] if len(pixels) >= batch else (pixels * batch)[:batch]
            yield np.stack(group)
    else:
        for image in pixels:
            yield np.stack([image] * low)
    if dynamic:
        other = preprocessor_of(
            artifact,
            _within(
                profile, max(stride, height // 2 // stride * stride), max(stride, width * 3 // 8 // stride * stride)
            ),
        )
        several = [other.pixels(image) for image in images]
        count = batch if isinstance(batch, int) else min(max(len(several), low), high)
        yield np.stack((several * count)[:count])
    elif batch == "batch":
        count = min(max(2, len(pixels), low), max(high, 2) if profile is None else high)
        yield np.stack((pixels * count)[:count])


def _frame_of(artifact: Artifact) -> tuple[int, int]:
    own = preprocessor_of(artifact)
    return own.height, own.width


def _within(profile: Profile | None, height: int, width: int) -> tuple[int, int]:
    """The nearest sides that an engine takes."""
    if profile is None:
        return height, width
    return (
        min(max(height, profile.height[0]), profile.height[2]),
        min(max(width, profile.width[0]), profile.width[2]),
    )


@dataclass
class _Compared:
    """The eager model, PyTorch in the artifact's precision, and the artifact."""

    reference: EagerBackend
    own: EagerBackend | None
    candidate: ArtifactBackend
    scales: dict[str, np.ndarray]
    manifest: Manifest

    def run(
        self, values: np.ndarray, feed: np.ndarray, *, layers: bool
    ) -> tuple[tuple[Figures, Figures], dict[str, LayerErrors]]:
        """Figures of the artifact and of PyTorch; and per block the error of both, where asked for.

        Args:
            values: float pixels.
            feed: pixels as the artifact takes them.
            layers: whether to compare blocks.
        """
        blocks: dict[str, np.ndarray] = {}
        own_errors: dict[str, float | None] = {}
        if layers:
            expected = self.reference.run_taps(values, blocks.__setitem__)
            actual, inner = self.candidate.run_taps(feed)
        else:
            expected, inner = self.reference.run(values), {}
            actual = self.candidate.run(feed)
        errors = {name: _rel_l2(y, inner[name] / self.scales.get(name, 1)) for name, y in blocks.items()}
        if self.own is None:
            own_figures, own_errors = self._recorded()
        else:
            # Of the two, only an exported module may take uint8.
            pixels = feed if self.own.encoder.uint8_input else values
            ours = (
                self.own.run_taps(
                    pixels,
                    lambda name, y: own_errors.__setitem__(name, _rel_l2(blocks[name], y / self.scales.get(name, 1))),
                )
                if layers
                else self.own.run(pixels)
            )
            own_figures = compare(expected, ours)
        return (compare(expected, actual), own_figures), {n: (e, own_errors.get(n)) for n, e in errors.items()}

    def _recorded(self) -> tuple[Figures, dict[str, float | None]]:
        """What PyTorch lost when the artifact was made; where that was not measured, all that is ever allowed."""
        record = self.manifest.quantization or {}
        limit = THRESHOLDS[self.manifest.precision]
        if record.get("predicted"):
            return Figures(**record["predicted"]), record.get("blocks", {})
        rel_l2 = limit.rel_l2_limit / limit.over_torch
        return Figures(0.0, rel_l2, limit.cosine_min, limit.cosine_min, -20 * math.log10(rel_l2), finite=True), {}


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
