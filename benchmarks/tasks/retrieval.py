"""Nearest images by their features: cosine of the mean token, and recall@k over labels.

Source: Jégou et al. 2011 and Oh Song et al. 2016 (arXiv 1511.06452): every image asks in turn, and a query
counts as answered where one of its k nearest others carries its label.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

BLOCK = 1024
"""Queries compared at once: one block of similarities is in memory, not all of them."""


def pooled(features: np.ndarray) -> np.ndarray:
    """Tokens (B, N, C) -> unit vectors (B, C) float32: the mean token, by length 1 (0 stays 0)."""
    mean = features.astype(np.float64).mean(axis=1)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.divide(mean, norm, out=np.zeros_like(mean), where=norm > 0).astype(np.float32)


def nearest(vectors: np.ndarray, k: int, *, block: int = BLOCK) -> np.ndarray:
    """The `k` nearest others of every image, nearest first: (M, C) unit vectors -> (M, min(k, M - 1)) indices.

    Cosines are float32; equal ones stand in the order of the images.
    """
    count = len(vectors)
    k = min(k, count - 1)
    result = np.zeros((count, max(k, 0)), np.int64)
    if k < 1:
        return result
    for start in range(0, count, block):
        stop = min(start + block, count)
        cosine = vectors[start:stop] @ vectors.T
        cosine[np.arange(stop - start), np.arange(start, stop)] = -np.inf  # an image is not its own neighbour
        result[start:stop] = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return result


def recall_at(neighbours: np.ndarray, labels: Sequence[str], k: int) -> np.ndarray:
    """Whether one of the `k` nearest carries a query's label: (M, K) indices -> (M,) of 0 and 1, NaN where none can.

    Args:
        neighbours: from `nearest`, with K at least `k` (or all others there are).
        labels: one per image.
        k: neighbours looked at.
    """
    of_image = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)[1]
    answered = (of_image[neighbours[:, :k]] == of_image[:, None]).any(axis=1).astype(np.float64)
    answered[np.bincount(of_image)[of_image] < 2] = np.nan
    return answered


def overlap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Share of the `k` nearest that two encoders name alike, in any order: two (M, k) -> (M,)."""
    if not ours.shape[1]:
        return np.ones(len(ours))
    return (ours[:, :, None] == theirs[:, None, :]).any(axis=2).mean(axis=1)


def packed(vector: np.ndarray) -> str:
    """A vector (C,) float32 as text, bit for bit."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """The inverse of `packed`; raises ValueError for anything else."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
