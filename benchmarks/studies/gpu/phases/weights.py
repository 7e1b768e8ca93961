"""The fused model with seeded weights, made once and kept for the other phases.

Under these weights every branch counts, and every activation of the released architecture stays within float16.
"""

from __future__ import annotations

import torch

from .....encoder.checkpoint import load_checkpoint
from .....encoder.fastvithd import FastViTHD
from .....encoder.reparameterize import reparameterize
from ..job import Job


def run(job: Job) -> None:
    """Writes the model's file."""
    checkpoint = load_checkpoint(variant=job.scope.variant)
    torch.save(reparameterize(checkpoint.encoder), job.weights)
    job.facts()(
        "weights", variant=checkpoint.info.variant, sha256=checkpoint.info.sha256, source=checkpoint.info.source
    )


def load(job: Job) -> FastViTHD:
    """The fused model in float32 on the CPU."""
    model = torch.load(job.weights, weights_only=False, mmap=True)  # this run's own file
    assert isinstance(model, FastViTHD)
    return model
