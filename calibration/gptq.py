"""GPTQ: eight-bit weights, each rounded to compensate for the rounding of those before it.

Rounding every weight to its nearest step is best for the weights but not for the product: if inputs vary together,
later columns can compensate for the error of an earlier one. Source: GPTQ (E. Frantar et al.,
arXiv 2210.17323), with the covariance of the inputs in calibration; the
mean of the remaining error goes into the bias (bias correction, arXiv 1906.04721), exactly, so that the covariance is
centred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .histograms import Moments
from .qdq import FP8, FP8_MAX, MIN_SCALE

DAMPING = 0.01
"""Added to the covariance's diagonal, as a share of its mean."""
MOST_DAMPING = 1e37
BLOCK = 128
INT8_LIMIT = 127
REDUCED_LIMIT = 64
"""Two products of uint8 (255 at most) and weights up to 64 add up to 32640: no sum of a pair leaves 16 bits."""
CLIPS = 21
"""Number of clipping candidates per row, from its largest weight down to 60 % of it."""


@dataclass(frozen=True)
class RoundedWeight:
    """Eight-bit weights.

    Attributes:
        values: (N, K) int8 or FP8.
        scale: (N,) step of each row.
        bias: (N,) corrected for the mean error of rounding.
    """

    values: Tensor
    scale: Tensor
    bias: Tensor

    def dequantized(self) -> Tensor:
        """(N, K) float32."""
        return self.values.float() * self.scale[:, None]


def round_weight(
    weight: Tensor, bias: Tensor, moments: Moments, dtype: torch.dtype, limit: int = INT8_LIMIT
) -> RoundedWeight:
    """Rounds a product's weight (N, K) for inputs with the given moments.

    Args:
        weight: (N, K), float.
        bias: (N,).
        moments: of the K inputs.
        dtype: torch.int8 or torch.float8_e4m3fn.
        limit: largest absolute value of an int8 weight; FP8 ignores it.
    """
    weight = weight.float()
    covariance = moments.covariance.to(weight.device)
    scale = weight_scale(weight, covariance.diagonal(), dtype, limit)
    wanted = weight / scale[:, None]
    steps, nearest = _compensated(wanted, covariance, dtype, limit), _nearest(wanted, dtype, limit)
    # A column at its limit cannot compensate for more: such a row may be better rounded to the nearest.
    worse = _lost(steps - wanted, covariance) > _lost(nearest - wanted, covariance)
    steps = torch.where(worse[:, None], nearest, steps)
    error = weight.double() - steps.double() * scale.double()[:, None]
    corrected = bias.double() + error @ moments.mean.double().to(weight.device)
    return RoundedWeight(steps.to(dtype), scale, corrected.to(bias.dtype))


def weight_scale(weight: Tensor, importance: Tensor, dtype: torch.dtype, limit: int = INT8_LIMIT) -> Tensor:
    """(N,) step of each row: the clip of least squared error, each column counting by `importance` (K,)."""
    peak = weight.abs().amax(1)
    full = torch.where(peak > 0, peak / (FP8_MAX if dtype == FP8 else limit), 1.0).clamp_min(MIN_SCALE * 2**-8)
    if dtype == FP8:
        return full  # a float's largest values are its coarsest: clipping them gains nothing
    best, least = full.clone(), torch.full_like(full, torch.inf)
    for share in torch.linspace(1.0, 0.6, CLIPS).tolist():
        scale = (full * share)[:, None]
        error = ((_nearest(weight / scale, dtype, limit) * scale - weight) ** 2) @ importance.clamp_min(0)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scale[:, 0], best)
    return best


def _nearest(steps: Tensor, dtype: torch.dtype, limit: int) -> Tensor:
    """The nearest representable values, as floats in units of a step."""
    if dtype == FP8:
        return steps.clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
    return steps.round().clamp_(-limit, limit)


def _lost(change: Tensor, covariance: Tensor) -> Tensor:
    """(N,) mean squared error of each product, whose mean the bias corrects."""
    return ((change @ covariance) * change).sum(1)


def _compensated(steps: Tensor, covariance: Tensor, dtype: torch.dtype, limit: int) -> Tensor:
    """Rounds columns in order of their variance, and spreads the error of each over the columns after it."""
    width = steps.shape[1]
    variance = covariance.diagonal()
    damping = DAMPING * float(variance.mean())
    if not damping > 0:  # constant inputs: the bias corrects everything
        return _nearest(steps, dtype, limit)
    order = variance.argsort(descending=True)
    spread = _spread(covariance[order][:, order], damping)
    # Transposed, so that one input's weights are contiguous.
    work = steps.T[order].contiguous()  # (K, N)
    rounded = torch.empty_like(work)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        block, errors = work[start:stop], torch.empty_like(work[start:stop])
        for row in range(stop - start):
            at = start + row
            rounded[at] = _nearest(block[row], dtype, limit)
            torch.sub(block[row], rounded[at], out=errors[row]).div_(spread[at, at])
            block[row + 1 :].addr_(spread[at, at + 1 : stop], errors[row], alpha=-1)
        work[stop:].addmm_(spread[start:stop, stop:].T, errors, alpha=-1)
    result = torch.empty_like(rounded)
    result[order] = rounded
    return result.T.contiguous()


def _spread(covariance: Tensor, damping: float) -> Tensor:
    """Upper factor of the damped covariance's inverse (K, K): how one column's error goes to those after it.

    Raises ConfigError for values near the end of float32, whose sums no damping makes positive.
    """
    while damping < MOST_DAMPING:
        covariance.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not failed:
            spread, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return spread
        damping *= 10  # fewer samples than columns, and float16 correlations: not quite positive
    raise ConfigError("the inputs of a layer vary too much for float32: the checkpoint or its ranges are damaged")
