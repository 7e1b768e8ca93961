"""How many workers, and the CPUs and GPUs of each, from what the nodes of a cluster have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import ConfigError, UnavailableError
from ..core.phrases import counted
from ..export.export_options import AUTO


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How a run uses Ray.

    Attributes:
        address: of a cluster; None starts one on this machine, which ends with the run.
        concurrency: workers, each with a copy of the model; by default as many as fit: one per GPU's share, or per
            node where no GPU is used.
        gpus_per_worker: 0 for none; several workers share a GPU at 0.5 and less. By default 1 if the cluster has GPUs.
        cpus_per_worker: by default the node's CPUs are divided evenly. The model computes in as many threads if it
            runs on the CPU, and as many threads decode.
        batch_size: images per call of the encoder; by default the artifact's own, 1 if it takes any number.
        threads: of the model; `cpus_per_worker` by default.
        backend: as `Encoder` takes it; `auto` is what is fastest on each worker's node.
        resolution: (height, width), for artifacts with dynamic resolution.
        verbose: show Ray's own progress and logs, on stderr.
    """

    address: str | None = None
    concurrency: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None
    batch_size: int | None = None
    threads: int | None = None
    backend: str = AUTO
    resolution: tuple[int, int] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        for name in ("concurrency", "cpus_per_worker", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1; found {value}")
        share = self.gpus_per_worker or 0
        if not 0 <= share <= 1024 or (share > 1 and share != int(share)):
            raise ConfigError(
                f"--gpus-per-worker must be 0 to 1, or a whole number (0.5 for two workers per GPU); found {share}"
            )
        if self.address is not None and "://" in self.address:
            raise ConfigError(
                f"--ray-address {self.address} is of Ray Client, which Ray Data does not support; run the command on "
                "a node of the cluster with --ray-address auto, or name the head node as HOST:6379"
            )


@dataclass(frozen=True)
class Node:
    """What a node has for Ray."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Workers:
    """`count` workers with `cpus` CPUs and `gpus` GPUs each."""

    count: int
    cpus: int
    gpus: float


RESERVED_CPUS = 1
"""Left to Ray's own tasks: they read and write, wait most of the time, and are scheduled as one CPU."""


def plan_workers(nodes: Sequence[Node], options: RayOptions) -> Workers:
    """The workers of a run.

    Raises UnavailableError if the nodes have not what the options ask for.
    """
    have_cpus, have_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    has = f"the cluster has {counted(round(have_cpus), 'CPU')} and {have_gpus:g} GPUs on {counted(len(nodes), 'node')}"
    share = options.gpus_per_worker if options.gpus_per_worker is not None else float(have_gpus >= 1)
    if share:
        places = [int(node.gpus // share) for node in nodes]
        if not sum(places):
            raise UnavailableError(
                f"no node has {share:g} GPU for a worker ({has}); lower --gpus-per-worker, or leave it out for CPUs"
            )
    else:
        places = [int(node.cpus >= 1) for node in nodes]
        if not sum(places):
            raise UnavailableError(f"no node has a CPU for a worker ({has}); add a node that has one")
    count = options.concurrency or sum(places)
    if share and count > sum(places):
        raise UnavailableError(
            f"{counted(count, 'worker')} of {share:g} GPU do not fit ({has}); lower --concurrency to {sum(places)} "
            "or --gpus-per-worker"
        )
    useful = [(node, place) for node, place in zip(nodes, places, strict=True) if place]
    cpus = options.cpus_per_worker or _even_cpus(useful, count, bool(share))
    fit = sum(_fitting(node, cpus, share) for node in nodes)
    if not options.cpus_per_worker:
        while cpus > 1 and (fit < count or have_cpus - count * cpus < RESERVED_CPUS):
            cpus -= 1
            fit = sum(_fitting(node, cpus, share) for node in nodes)
    if fit < count or have_cpus - count * cpus < RESERVED_CPUS:
        raise UnavailableError(
            f"{counted(count, 'worker')} of {counted(cpus, 'CPU')} do not fit, with {RESERVED_CPUS} CPU left to read "
            f"and write ({has}); lower --concurrency (concurrency) or cpus_per_worker"
        )
    return Workers(count, cpus, share)


def _even_cpus(useful: list[tuple[Node, int]], count: int, by_gpu: bool) -> int:
    """CPUs of each worker, if they are spread over the nodes that can have one."""
    if by_gpu:
        return max(1, min(int(node.cpus // place) for node, place in useful))
    per_node = -(-count // len(useful))
    return max(1, min(int(node.cpus // per_node) for node, _ in useful))


def _fitting(node: Node, cpus: int, share: float) -> int:
    return int(min(node.cpus // cpus, node.gpus // share if share else float("inf")))
