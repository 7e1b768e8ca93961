"""`Encoder`: images in, features out, whatever runs underneath."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ArtifactError, ConfigError, PlacementWarning
from ...encoder.checkpoint import Checkpoint
from ...encoder.image import ImageLike, as_images
from ...encoder.preprocess import Preprocessor
from ..artifact import AGAIN, OPENINGS, Artifact
from ..export_options import AUTO
from ..placement import choose_backend, runtime_notices
from .backends import make_backend
from .base import Backend, TensorBackend
from .pickling import Opened
from .pixels import PixelRules
from .upload import Upload

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Encoder(Opened):
    """An artifact, ready to encode images.

    >>> encoder = fvexport.Encoder("fastvithd-1024-fp32")
    >>> features = encoder("photo.jpg")  # (1, 256, 3072) float32

    Threads can share one: calls run beside or after each other, as the backend can. A pickle, a deep copy and a spawned
    worker open the artifact again, in the folder where it was; a process that was forked off refuses to go on with its
    parent's.

    Args:
        artifact: a folder that `fvexport onnx` wrote, or an opened `Artifact`.
        backend: a name from the table of backends, or `auto` for the fastest that can run it here (`choose_backend`).
        resolution: (height, width) for artifacts with dynamic resolution; theirs by default.
        threads: for one operator; None leaves it to the runtime, within the container's CPU quota.
        checkpoint: for backends that run the model itself, where its weights are; the artifact's own source by default.

    Raises:
        ArtifactError: not a usable artifact.
        ConfigError: a resolution that the artifact cannot take.
        UnavailableError: the backend cannot run here.

    Warns:
        PlacementWarning: the artifact is slow on this backend, or its 8-bit products saturate on this CPU.
    """

    def __init__(
        self, artifact: str | os.PathLike[str] | Artifact, backend: str = AUTO, *,
        resolution: tuple[int, int] | None = None, threads: int | None = None,
        checkpoint: Checkpoint | str | None = None,
    ) -> None:  # fmt: skip
        for opening in range(OPENINGS):
            self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
            self.preprocessor = preprocessor_of(self.artifact, resolution)
            try:
                self.chosen = choose_backend(self.artifact, backend)
                self.backend = make_backend(self.artifact, self.chosen.name, threads=threads, checkpoint=checkpoint)
                break
            except ArtifactError:  # another run replaced it meanwhile: open it again
                if isinstance(artifact, Artifact) or self.artifact.is_current() or opening == OPENINGS - 1:
                    raise
        self.uint8 = self.artifact.manifest.input.dtype == "uint8"
        for notice in runtime_notices(self.artifact, self.chosen.name):
            warnings.warn(notice, PlacementWarning, stacklevel=2)
        self.batch = _batch_limits(self.artifact, self.backend)
        gpu = _gpu_of(self.backend)
        self._upload = None if gpu is None else Upload(gpu)
        self._rules = PixelRules.of(self.artifact, self.preprocessor.config)
        self._opened(
            self.artifact, backend=self.backend.name, resolution=resolution, threads=threads, checkpoint=checkpoint
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, channels) of one image's features."""
        height, width = self.preprocessor.height, self.preprocessor.width
        channels = self.artifact.manifest.output.shape[-1]
        assert isinstance(channels, int)
        return self.artifact.manifest.architecture.tokens(height, width), channels

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """One image or several, of any kind that `ImageLike` lists -> features (B, N, C) float32.

        Raises ImageError for anything that is not a usable image, or a sequence of such (see `as_images`).
        """
        self.check_process()
        several = as_images(images)
        if not several:
            return np.zeros((0, *self.shape), np.float32)
        return self._run(np.stack([self.preprocessor.pixels(image) for image in several]))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Preprocessed pixels (B, 3, H, W), uint8 levels or normalized floats -> features (B, N, C) float32.

        Floats are of 16 to 64 bits, `(levels / 255 - mean) / std` as the artifact's preprocessing says. Any B: a file
        with a fixed batch size runs as often as it takes, its last call filled up.

        Raises:
            ImageError: another dtype, number of axes or channels, or values out of range; the same on every backend.
            ConfigError: a size that the artifact cannot take.
            UnavailableError: in a process that was forked off after the encoder was made.
        """
        self.check_process()
        return self._run(self._rules.array(pixels))

    def run_tensor(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels (B, 3, H, W) as `run` takes them, on any device -> features (B, N, C) on the backend's.

        Backends that compute with torch tensors copy nothing through the host; the others go through NumPy. Any B, as
        in `run`. Floats that are on a GPU are checked there, for which the call waits; levels need no check. The result
        has no gradient. Raises as `run` does.
        """
        self.check_process()
        values = self._rules.tensor(pixels)
        if isinstance(self.backend, TensorBackend):
            return self._run_tensor(values)
        import torch

        return torch.from_numpy(self._run(values.cpu().numpy()))

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """`run` of checked pixels, uint8 or float32."""
        if not len(pixels):
            return np.zeros((0, self._rules.tokens(pixels), self.shape[1]), np.float32)
        config = self.preprocessor.config
        if pixels.dtype == np.uint8:
            # Levels are uploaded to a GPU as they are, a quarter of the bytes, and normalized there.
            values = pixels if self.uint8 or self._upload is not None else config.normalize(pixels)
        else:
            values = config.denormalize(pixels) if self.uint8 else pixels
        low, high = self.batch
        results = []
        for start in range(0, len(values), high or len(values)):
            part = values[start : start + (high or len(values))]
            if self._upload is not None:
                results.append(self._run_tensor(self._upload(part)).float().cpu().numpy())
                continue
            missing = max(0, low - len(part))
            filled = np.concatenate([part, np.zeros_like(part[:1]).repeat(missing, 0)]) if missing else part
            results.append(self._checked(self.backend.run(filled), filled)[: len(part)])
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _checked(self, features: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Features (B, N, C) of pixels (B, 3, H, W); raises ArtifactError if they have another shape."""
        wanted = (len(pixels), self._rules.tokens(pixels), self.shape[1])
        if features.shape != wanted:
            raise ArtifactError(f"{self.artifact.path} makes features {features.shape} instead of {wanted}; {AGAIN}")
        return features

    def _run_tensor(self, pixels: Tensor) -> Tensor:
        """`run_tensor` of checked pixels, uint8 or float32, by a backend that takes tensors."""
        import torch

        assert isinstance(self.backend, TensorBackend)
        if not len(pixels):
            device = pixels.device if self._upload is None else self._upload.device
            return torch.zeros((0, self._rules.tokens(pixels), self.shape[1]), device=device)
        config = self.preprocessor.config
        if pixels.is_floating_point():
            values = config.denormalize_tensor(pixels) if self.uint8 else pixels
        else:
            levels = pixels if self._upload is None else pixels.to(self._upload.device)
            values = levels if self.uint8 else config.normalize_tensor(levels)
        low, high = self.batch
        results = []
        for part in torch.split(values, high or len(values)):
            missing = max(0, low - len(part))
            filled = torch.cat([part, part.new_zeros((missing, *part.shape[1:]))]) if missing else part
            results.append(self.backend.run_tensor(filled)[: len(part)])
        return results[0] if len(results) == 1 else torch.cat(results)


def _gpu_of(backend: Backend) -> torch.device | None:
    """The GPU that a backend takes tensors on; None for one that computes on the CPU, or takes NumPy arrays alone."""
    device = getattr(backend, "device", None)
    return device if isinstance(backend, TensorBackend) and getattr(device, "type", "cpu") != "cpu" else None


def _batch_limits(artifact: Artifact, backend: Backend) -> tuple[int, int | None]:
    """Fewest and most images that one call of the backend takes; None for any number."""
    profile = getattr(backend, "profile", None)
    if profile is not None:
        return profile.batch[0], profile.batch[2]
    size = artifact.manifest.input.shape[0]
    return (size, size) if isinstance(size, int) else (1, None)


def preprocessor_of(artifact: Artifact, resolution: tuple[int, int] | None = None) -> Preprocessor:
    """The artifact's own preprocessing, at another resolution where it is dynamic.

    Raises ConfigError for a resolution that the artifact cannot take.
    """
    manifest = artifact.manifest
    own = manifest.preprocessor
    if resolution is None or resolution == (own.height, own.width):
        return own
    if not manifest.options.dynamic_res:
        raise ConfigError(
            f"{artifact.path} takes {own.height}x{own.width} alone; export with --dynamic-res for other resolutions"
        )
    manifest.architecture.check_resolution(*resolution)
    return Preprocessor(*resolution, own.config)
