"""What parity runs: photographs in batches, at the sizes that an artifact takes, and the tokens that see each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..encoder.image import ImageLike, load_image
from ..encoder.preprocess import Preprocessor
from .artifact import Artifact
from .engines.engine_options import Profile
from .runtime.encoder import preprocessor_of


@dataclass(frozen=True)
class Run:
    """One batch.

    Attributes:
        pixels: (B, 3, H, W), uint8 levels.
        photographs: number of the photograph in each row; a batch can hold one several times.
        seen: (B, N) bool, the tokens to judge, see `tokens_of`.
    """

    pixels: np.ndarray
    photographs: tuple[int, ...]
    seen: np.ndarray

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.pixels.shape[2:]
        return height, width


def tokens_of(preprocessor: Preprocessor, image: ImageLike, stride: int) -> np.ndarray:
    """(N,) bool: tokens whose `stride` x `stride` pixels show at least a part of `image`, not padding alone.

    Raises ImageError as `load_image` does.
    """
    rows, columns = preprocessor.height // stride, preprocessor.width // stride
    seen = np.zeros((rows, columns), bool)
    if preprocessor.config.resize in ("shortest", "squash"):  # nothing is padded, so the image's size is not needed
        seen[:] = True
    else:
        left, top, right, bottom = preprocessor.content_box(load_image(image).size)
        seen[top // stride : -(-bottom // stride), left // stride : -(-right // stride)] = True
    return seen.reshape(-1)


@dataclass(frozen=True)
class _Shown:
    """Every photograph at one size."""

    pixels: list[np.ndarray]
    seen: list[np.ndarray]

    @classmethod
    def of(cls, preprocessor: Preprocessor, images: Sequence[ImageLike], stride: int) -> _Shown:
        return cls(
            [preprocessor.pixels(image) for image in images],
            [tokens_of(preprocessor, image, stride) for image in images],
        )

    def run(self, photographs: Sequence[int]) -> Run:
        rows = tuple(photographs)
        return Run(np.stack([self.pixels[i] for i in rows]), rows, np.stack([self.seen[i] for i in rows]))


def runs_of(artifact: Artifact, images: Sequence[ImageLike], profile: Profile | None) -> Iterator[Run]:
    """The batches to compare.

    Each photograph at the file's own resolution. If the resolution is dynamic, all of them also at another one that is
    not square, in one batch. An engine's `profile` limits both sizes and batch.
    """
    manifest = artifact.manifest
    batch = manifest.input.shape[0]
    dynamic = manifest.options.dynamic_res
    stride = manifest.architecture.stride
    own = preprocessor_of(artifact)
    height, width = _within(profile, own.height, own.width) if dynamic else (own.height, own.width)
    low, high = (profile.batch[0], profile.batch[2]) if profile else (1, len(images))
    every = range(len(images))
    shown = _Shown.of(preprocessor_of(artifact, (height, width)), images, stride)
    if isinstance(batch, int):
        for start in range(0, len(images), batch):
            following = [*every[start:], *every] if len(images) >= batch else [*every] * batch
            yield shown.run(following[:batch])
    else:
        for photograph in every:
            yield shown.run([photograph] * low)
    if dynamic:
        other = _within(
            profile, max(stride, height // 2 // stride * stride), max(stride, width * 3 // 8 // stride * stride)
        )
        count = batch if isinstance(batch, int) else min(max(len(images), low), high)
        yield _Shown.of(preprocessor_of(artifact, other), images, stride).run(([*every] * count)[:count])
    elif batch == "batch":
        count = min(max(2, len(images), low), max(high, 2) if profile is None else high)
        yield shown.run(([*every] * count)[:count])


def _within(profile: Profile | None, height: int, width: int) -> tuple[int, int]:
    """The nearest sides that an engine takes."""
    if profile is None:
        return height, width
    return (
        min(max(height, profile.height[0]), profile.height[2]),
        min(max(width, profile.width[0]), profile.width[2]),
    )
