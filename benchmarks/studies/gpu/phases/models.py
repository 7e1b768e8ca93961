"""The whole model against float64, see `benchmarks.studies.gpu.encoder`."""

from __future__ import annotations

from dataclasses import asdict

import torch

from ..encoder import verdicts
from ..job import Job
from ..precise import strict
from . import weights

LAST_S = 8.0
"""Seconds before the deadline at which no further size begins."""


def run(job: Job) -> None:
    """Writes `model`, one line for each model and size."""
    facts, model = job.facts(), weights.load(job)
    dtypes = [getattr(torch, name) for name in (job.scope.main, *job.scope.half[1:])]
    for size in job.scope.models:
        if job.left() < LAST_S:
            facts("models-skipped", size=size.name)
            continue
        with strict():
            for verdict in verdicts(model, size, dtypes, job.device):
                facts("model", **asdict(verdict))
