"""Results of a sweep that nobody measured, for tests of what reads them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fvexport.benchmarks.sweep.result import (
    Absent,
    Cell,
    Environment,
    Latency,
    Parity,
    Record,
    Result,
    Status,
    Ttft,
    Window,
    percentile,
)

DATE = "2000-01-01T00:00:00+00:00"
SPEED = {
    "eager train fp32": 1.0, "eager fused fp32": 0.98, "eager channels-last fp32": 1.6, "torch-compile fp32": 1.57,
    "onnxruntime-cpu fp32": 2.05, "onnxruntime-cpu int8": 3.4, "openvino fp32": 2.44, "openvino bf16": 4.1,
    "openvino int8": 5.2, "plain-onnxruntime fp32": 1.9, "plain-openvino fp32": 2.3,
}  # fmt: skip
"""Made up, as all of this is: how often a series is as fast as the first."""
SQNR_DB = {"fp32": 118.0, "bf16": 41.0, "int8": 23.0}


@pytest.fixture(scope="session", autouse=True)
def _translations(torchlib_once: None) -> None:
    """For every test of this folder."""


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., list[Record]]:
    """A sweep as `store.append` takes it: an environment, an absent backend, cells of every status.

    The function's arguments: `seed` of its noise, `scale` of every time, the `resolutions`, the name of the `cpu`, and
    `noise`, the standard deviation of a window's time over its median.
    """
    return _synthetic


def _synthetic(
    seed: int = 0, scale: float = 1.0, resolutions: Sequence[int] = (256, 512, 1024), cpu: str = "Synthetic CPU",
    noise: float = 0.02,
) -> list[Record]:  # fmt: skip
    rng = random.Random(seed)
    environment = Environment(
        date=DATE, command="fvexport sweep --variant tiny --res 256,512,1024", gpus=(), platform="Synthetic-1",
        cpu={"model": cpu, "cores": 2, "usable": 2, "features": ["avx2"]}, memory_gb=24.0, python="3.11.7",
        versions={"fvexport": "0.1.0", "torch": "2.13.0"}, settings={"tolerance": 0.05},
    )  # fmt: skip
    where = environment.id
    records: list[Record] = [
        environment,
        Absent("onnxruntime-cuda", None, "no NVIDIA GPU found", "pip install onnxruntime-gpu", where),
        Absent("onnxruntime-cpu", "bf16", "does not run bf16 natively", "", where),
    ]
    for side in resolutions:
        base = 3000 * scale * (side / 1024) ** 2
        drift = [base * rng.gauss(1, 2 * noise) for _ in range(8)]
        for series, speed in SPEED.items():
            cell = _cell(series, side)
            latency = _latency(drift, speed, noise, rng)
            status: Status = "unstable" if series == "torch-compile fp32" and side == resolutions[-1] else "ok"
            sqnr = SQNR_DB[cell.precision] + rng.gauss(0, 1)
            rel_l2 = 10 ** (-sqnr / 20)
            records.append(
                Result(
                    cell=cell, status=status,
                    reason="the last 3 windows differ by 9.1 %" if status == "unstable" else "", environment=where,
                    date=DATE, computes="synthetic", latency=latency, tokens=(side // 64) ** 2, build_s=12.5,
                    load_s=1.5, first_ms=2 * latency.p50_ms, peak_host_mb=900 + side, run_host_mb=500 + side,
                    artifact_mb=501.0, parity=Parity("pass", sqnr, 1 - rel_l2**2 / 2, 1 - rel_l2**2, rel_l2),
                )
            )  # fmt: skip
        records += [_ttft(side, base, where, rng), _failed(side, where)]
    return records


def _cell(series: str, side: int) -> Cell:
    runner, _, precision = series.rpartition(" ")
    backend, _, form = runner.partition(" ")
    kind = "peer" if backend.startswith("plain") else "ours"
    samples = 8 if precision == "int8" else None
    return _made(kind=kind, backend=backend, precision=precision, side=side, form=form, samples=samples)


def _made(*, side: int, **values: Any) -> Cell:
    """A square cell of the tiny model."""
    return Cell(
        **values, height=side, width=side, batch=1, threads=2, variant="tiny", checkpoint="seeded:0",
        weights="0123456789ab",
    )  # fmt: skip


def _latency(drift: list[float], speed: float, noise: float, rng: random.Random) -> Latency:
    windows = tuple(
        Window(number, now / speed * rng.gauss(1, noise), 5, reference_ms=now) for number, now in enumerate(drift)
    )
    medians = [w.median_ms for w in windows]
    return Latency(
        p50_ms=statistics.median(medians), p90_ms=percentile(medians, 0.9), p99_ms=percentile(medians, 0.99),
        mean_ms=statistics.fmean(medians), min_ms=min(medians), count=sum(w.count for w in windows), windows=windows,
        timer="wall", stable=True, spread=0.02,
    )  # fmt: skip


def _ttft(side: int, base: float, where: str, rng: random.Random) -> Result:
    tokens = (side // 64) ** 2
    encoder, connector, prefill = base / 2.4, 0.02 * tokens, 4.0 * (tokens + 32)
    cell = _made(
        kind="ttft", backend="openvino", precision="fp32", side=side, llm="qwen2-0.5b", prompt_tokens=32
    )  # fmt: skip
    total = encoder + connector + prefill
    latency = _latency([total] * 4, 1.0, 0.01, rng)
    parts = Ttft(encoder, connector, prefill, total, tokens, 32)
    return Result(
        cell=cell,
        status="ok",
        reason="",
        environment=where,
        date=DATE,
        computes="synthetic",
        latency=latency,
        tokens=tokens,
        ttft=parts,
    )


def _failed(side: int, where: str) -> Result:
    statuses: dict[int, tuple[Status, str]] = {
        256: ("crashed", "the process died of SIGSEGV"), 512: ("timeout", "no answer after 600 s"),
        1024: ("oom", "over the limit of 2.0 GB"),
    }  # fmt: skip
    status, reason = statuses.get(side, ("skipped", "the budget of 30 min ended first"))
    cell = _made(kind="peer", backend="plain-torch-compile", precision="fp32", side=side)
    return Result(cell=cell, status=status, reason=reason, environment=where, date=DATE)
