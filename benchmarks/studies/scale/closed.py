"""The closed form: expected time and repeated work of a job whose workers are lost at random.

Losses of a worker are a Poisson process of rate 1 / M. Work that is kept only once it is complete, in pieces of w
seconds, takes (exp(w / M) - 1) (M + U) seconds a piece, where U is the time from a loss until the worker is back.
Source: Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006); here a recovery
can be lost too. For w much shorter than M the best w is Young's sqrt(2 c M), where c is the time each piece adds.
"""

from __future__ import annotations

import math

import msgspec

from .rates import Job, Outcome, Rates

LARGEST_FILE = 1 << 30
"""Bytes that a file of features has at most: a worker holds about as much in memory."""


def estimate(job: Job) -> Outcome:
    """The expected outcome. The time is that of the slowest worker."""
    rates = job.rates
    start = _with_losses(rates.startup_s, rates.restart_s, rates)
    back = recovery(rates)
    image_s = rates.image_s + rates.shard_s / job.rows
    if job.engine == "local":
        each = job.images / job.gpus
        kept = max(1.0, rates.sync_s / rates.image_s)
    else:
        each = job.rows * math.ceil(job.images / job.rows / job.gpus)
        kept = float(job.rows)
    piece_s = kept * image_s
    slowest = start + each / kept * _with_losses(piece_s, back, rates)
    if job.engine == "local" and rates.loss_s:  # no other worker helps the one that is lost most often
        found = each * image_s / rates.loss_s
        slowest += math.sqrt(2 * math.log(job.gpus) * found * ((back + piece_s / 2) ** 2 + piece_s**2 / 12))
    again = job.images * _repeated(kept * rates.image_s, rates.shard_s * kept / job.rows, rates)
    work = (job.images + again) * image_s
    if not rates.loss_s:
        return Outcome(seconds=slowest, worker_s=work + job.gpus * rates.startup_s, again=again, losses=0.0)
    fails = -math.expm1(-rates.startup_s / rates.loss_s)  # share of the starts that end in another loss
    losses = (work / rates.loss_s + job.gpus * fails) / (1 - fails)
    return Outcome(seconds=slowest, worker_s=losses * rates.loss_s, again=again, losses=losses)


def recovery(rates: Rates) -> float:
    """Expected seconds from a loss until the worker encodes again; it can be lost while it starts."""
    return rates.restart_s + _with_losses(rates.startup_s, rates.restart_s, rates)


def best_interval(overhead_s: float, loss_s: float) -> float:
    """Seconds of work between two savings that cost `overhead_s` each, for the least time in all.

    The minimum over x of (exp((x + c) / M) - 1) / x: with y = x / M the solution of (1 - y) exp(y) = exp(-c / M).
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if math.log1p(-middle) + middle > -overhead_s / loss_s:
            low = middle
        else:
            high = middle
    return low * loss_s


def best_rows(job: Job) -> int:
    """Images in each file, a power of two, for the least time; of sizes that differ by under 0.1 %, the largest.

    No file is larger than LARGEST_FILE.
    """
    most = min(job.images, max(1.0, LARGEST_FILE / max(job.rates.write_bytes, 1.0)))
    sizes = [1 << power for power in range(int(math.log2(most)) + 1)]
    seconds = {rows: estimate(msgspec.structs.replace(job, rows=rows)).seconds for rows in sizes}
    return max(rows for rows in sizes if seconds[rows] <= 1.001 * min(seconds.values()))


def _with_losses(work_s: float, back_s: float, rates: Rates) -> float:
    """Expected seconds until `work_s` seconds pass without a loss, if a loss takes `back_s` more."""
    if not rates.loss_s:
        return work_s
    return math.expm1(min(work_s / rates.loss_s, 700.0)) * (rates.loss_s + back_s)


def _repeated(work_s: float, extra_s: float, rates: Rates) -> float:
    """Expected share of a piece's images that are encoded again; its work is followed by `extra_s` beside it."""
    if not rates.loss_s:
        return 0.0
    return math.expm1(min(work_s / rates.loss_s, 700.0)) * rates.loss_s / work_s - 1 + extra_s / rates.loss_s
