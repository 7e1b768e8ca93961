"""The model in FP8: observed on photographs, equalized and quantized as `fvexport onnx --fp8` does it.

Takes two minutes on a GPU and longer on a CPU, so it runs beside the phases that time nothing.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from .....calibration.equalize import equalize
from .....calibration.observe import observe
from .....calibration.photos import calibration_data
from .....calibration.policy import Policy
from .....calibration.quantize import quantize
from .....encoder.checkpoint import load_checkpoint
from .....encoder.fastvithd import FastViTHD
from .....encoder.preprocess import Preprocessor
from .....encoder.reparameterize import reparameterize
from ..job import Job

POLICY = Policy("tensorrt", "fp8")
PHOTOGRAPHS = 4


def run(job: Job) -> None:
    """Writes the quantized model's file, and `quantized`."""
    side, began = job.scope.calibrated, time.time()
    checkpoint = load_checkpoint(variant=job.scope.variant)
    fused = reparameterize(checkpoint.encoder).to(job.device)
    data = calibration_data(None, PHOTOGRAPHS)
    stats = observe(fused, checkpoint.info, data, Preprocessor(side, side), cache=Path(job.scratch) / "observed")
    whole = equalize(fused.cpu(), stats, POLICY)
    model = quantize(whole.model.to(job.device), whole.stats, POLICY)
    part = job.fp8_weights.with_suffix(".part")
    torch.save(model.cpu(), part)
    part.replace(job.fp8_weights)
    job.facts()("quantized", photographs=PHOTOGRAPHS, side=side, seconds=time.time() - began)


def load(job: Job) -> FastViTHD:
    """The quantized model in float32 on the CPU."""
    model = torch.load(job.fp8_weights, weights_only=False, mmap=True)  # this run's own file
    assert isinstance(model, FastViTHD)
    return model
