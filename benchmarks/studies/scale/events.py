"""The simulation: every worker takes pieces of work, is lost at its times, and comes back."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .rates import Job, Outcome, Rates

Lives = Callable[[int], Iterator[float]]
"""Number of a worker -> the seconds that it lives, from each start to its next loss."""


def simulate(job: Job, lives: Lives | None = None, seed: int = 0) -> Outcome:
    """The outcome of one run.

    Args:
        job: what is done; all images are counted one by one, so their number should not exceed some millions.
        lives: when workers are lost; by default at random, with the mean of the job's rates.
        seed: of those.
    """
    lives = lives or exponential(job.rates, seed)
    work = _Work(job)
    workers = [_Worker(lives(number), job.rates) for number in range(job.gpus)]
    events = [(worker.start(0.0), number) for number, worker in enumerate(workers)]
    heapq.heapify(events)
    end = 0.0
    while events:
        now, number = heapq.heappop(events)
        worker, (images, extra_s) = workers[number], work.take(number)
        if not images:
            continue
        length = images * job.rates.image_s + extra_s
        if worker.life >= length:
            worker.spend(length)
            work.keep(number, images)
            end = max(end, now + length)
            heapq.heappush(events, (now + length, number))
        else:
            lived = worker.life
            worker.spend(lived)
            worker.again += min(images, int(lived / job.rates.image_s))
            work.give_back(number, images)
            worker.losses += 1
            heapq.heappush(events, (worker.start(now + lived + job.rates.restart_s), number))
    return Outcome(
        seconds=end,
        worker_s=sum(worker.paid for worker in workers),
        again=sum(worker.again for worker in workers),
        losses=sum(worker.losses for worker in workers),
    )


def exponential(rates: Rates, seed: int) -> Lives:
    """Lives that end at random, as `loss_s` says."""

    def lives(number: int) -> Iterator[float]:
        rng = np.random.default_rng([seed, number])
        while True:
            yield float(rng.exponential(rates.loss_s)) if rates.loss_s else math.inf

    return lives


def given(lives: Iterable[float]) -> Lives:
    """The same lives for each worker; after them it is lost no more."""
    known = list(lives)

    def each(_: int) -> Iterator[float]:
        yield from known
        while True:
            yield math.inf

    return each


class _Worker:
    """One machine after another, of which one works at a time.

    Attributes:
        life: seconds until it is lost.
        paid: seconds that it was up.
        again, losses: as in `Outcome`.
    """

    def __init__(self, lives: Iterator[float], rates: Rates) -> None:
        self._lives, self._rates = lives, rates
        self.life = self.paid = 0.0
        self.again = self.losses = 0

    def start(self, now: float) -> float:
        """When it is ready, if its process is started now."""
        startup = self._rates.startup_s
        while (life := next(self._lives)) < startup:
            self.paid += life
            self.losses += 1
            now += life + self._rates.restart_s
        self.life, self.paid = life - startup, self.paid + startup
        return now + startup

    def spend(self, seconds: float) -> None:
        self.life -= seconds
        self.paid += seconds


class _Work:
    """The images that no worker has taken: of each worker its part, or of all together."""

    def __init__(self, job: Job) -> None:
        self._job = job
        if job.engine == "local":
            self._left = [(job.images + number) // job.gpus for number in range(job.gpus)]
            self._size = max(1, int(job.rates.sync_s / job.rates.image_s))
        else:
            self._left, self._size = [job.images], job.rows
        self._shard = [0] * len(self._left)

    def take(self, number: int) -> tuple[int, float]:
        """Images of the next piece of work, and the seconds that it takes beside them."""
        queue = number % len(self._left)
        images = min(self._size, self._left[queue])
        self._left[queue] -= images
        ends = self._job.engine == "ray" or self._shard[queue] + images >= self._job.rows or not self._left[queue]
        return images, self._job.rates.shard_s if ends and images else 0.0

    def keep(self, number: int, images: int) -> None:
        queue = number % len(self._left)
        self._shard[queue] = (self._shard[queue] + images) % self._job.rows

    def give_back(self, number: int, images: int) -> None:
        self._left[number % len(self._left)] += images
