"""Writing beside the encoder: a thread that finishes features and adds them to the output, a few batches behind."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .feature_form import FeatureForm, named
from .output import Output

BEHIND = 2
"""Batches that may wait for the disk."""


class Writer:
    """Adds batches to an output in order.

    >>> with Writer(output, form) as writer:
    ...     writer.put(batch.ids, features, batch.reasons)
    """

    def __init__(self, output: Output, form: FeatureForm) -> None:
        self._output, self._form = output, form
        self._pool = ThreadPoolExecutor(1, "write features")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def put(self, ids: list[str], features: np.ndarray, reasons: list[str | None]) -> None:
        """Adds images in order; waits while too many batches do. Raises what writing an earlier batch raised.

        Args:
            ids: of the images.
            features: (B, N, C) float32 of those without a reason.
            reasons: why an image has no features; None for one that has.
        """
        while len(self._waiting) > BEHIND:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, ids, features, reasons))

    def _write(self, ids: list[str], features: np.ndarray, reasons: list[str | None]) -> None:
        if self._failed:  # what follows would stand in the place of the images that are missing
            return
        try:
            self._append(ids, features, reasons)
        except BaseException:
            self._failed = True
            raise

    def _append(self, ids: list[str], features: np.ndarray, reasons: list[str | None]) -> None:
        values, problems = self._form.finish(features)
        if any(problems):
            positions = [index for index, reason in enumerate(reasons) if reason is None]
            reasons = list(reasons)
            for index, problem in zip(positions, problems, strict=True):
                reasons[index] = problem if problem is None else named(problem, ids[index])
            values = values[[problem is None for problem in problems]]
        self._output.append(ids, values, reasons)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for future in self._waiting:
                future.result()
