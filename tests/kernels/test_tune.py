"""The search for block sizes, with times from a formula, and the cache that it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from math import log2
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fvexport.core.errors import ArtifactError, UnavailableError
from fvexport.encoder.config import FastViTHDConfig, get_variant
from fvexport.kernels import share, table, tune
from fvexport.kernels.dispatch import BASELINE
from fvexport.kernels.launches import Call
from fvexport.kernels.table import Config, default_config
from fvexport.kernels.timing import HostClock
from fvexport.kernels.tune import BOUNDS, Bench, neighbours, plan, search, write
from fvexport.kernels.warm import Built, Compilers

START = Config({"BLOCK_M": 64, "BLOCK_N": 64}, 4, 2)


def distance_from(**best: int) -> tune.Callable[[Config], float]:
    """1 ms, and a tenth more for each step away from the best sizes."""
    return lambda config: 1 + 0.1 * sum(abs(log2(config.arguments[name] / value)) for name, value in best.items())


def test_finds_the_best_several_steps_away() -> None:
    found = search("a key", START, distance_from(BLOCK_M=256, BLOCK_N=16, num_warps=8, num_stages=4))
    assert found.config == Config({"BLOCK_M": 256, "BLOCK_N": 16}, 8, 4)
    assert found.ms == 1 and found.start_ms == pytest.approx(1.6) and found.failed == 0
    assert found.tried < 60 and found.neighbours == 8


def test_stays_where_nothing_is_faster() -> None:
    found = search("a key", START, lambda config: 1.0 if config == START else 0.99)  # within the noise
    assert found.config == START and found.ms == found.start_ms == 1.0


def test_what_fails_is_passed_by() -> None:
    """A configuration that does not compile ends nothing, and is never chosen."""

    def measure(config: Config) -> float:
        if config.blocks["BLOCK_M"] >= 128:
            raise RuntimeError("out of resource: shared memory")
        return distance_from(BLOCK_M=256, BLOCK_N=128)(config)

    found = search("a key", START, measure)
    assert found.config is not None and dict(found.config.blocks) == {"BLOCK_M": 64, "BLOCK_N": 128}
    assert found.failed > 0


def test_a_start_that_fails_is_an_error() -> None:
    def broken(config: Config) -> float:
        raise RuntimeError("no kernel image")

    with pytest.raises(RuntimeError, match="no kernel image"):
        search("a key", START, broken)


def test_neighbours_differ_in_one_size_within_bounds() -> None:
    for op, sizes in (("linear", {"m": 1, "n": 1, "k": 1}), ("attention", {"tokens": 16, "batch": 1, "heads": 1})):
        start = default_config(op, "sm_90", "half", sizes)
        for other in neighbours(start):
            changed = [n for n, v in other.arguments.items() if v != start.arguments[n]]
            assert len(changed) == 1
            low, high = BOUNDS[changed[0]]
            assert low <= other.arguments[changed[0]] <= high


def test_plan_names_each_key_once() -> None:
    report = plan(FastViTHDConfig(), [(1024, 1024), (256, 256)], [1, 8], arch="sm_90")
    keys = [s.key for s in report.searches]
    assert len(set(keys)) == len(keys)
    assert {"attention", "mlp", "linear_tma", "split_k"} <= {key.split()[0] for key in keys}
    assert "attention half batch=1 heads=24 tokens=1024" in keys and "mlp half c=96 hidden=384 m=65536" in keys
    assert "linear_tma half k=384 m=32768 n=1536" in keys and all(s.config is None for s in report.searches)
    assert json.loads(json.dumps(report.to_dict()))["file"] is None
    tiny = plan(get_variant("tiny"), [(64, 64)], [1], torch.float32, arch="sm_80")
    assert all(" float32 " in s.key for s in tiny.searches)


def test_plan_leaves_out_what_the_policy_does_not_use() -> None:
    keys = [s.key for s in plan(FastViTHDConfig(), [(1024, 1024)], [1], names=BASELINE, arch="sm_90").searches]
    assert not any("k=96 m=65536 n=384" in key or "c=384 hidden" in key for key in keys)  # fused, and not fused
    few = plan(FastViTHDConfig(), [(1024, 1024)], [1], names=("attention",), arch="sm_90").searches
    assert {s.key.split()[0] for s in few} == {"attention"} and len(few) == 2
    assert not plan(FastViTHDConfig(), [(256, 256)], [1], names=(), arch="sm_90").searches


def test_plan_begins_with_what_takes_longest() -> None:
    searches = plan(FastViTHDConfig(), [(1024, 1024)], [1], names=BASELINE, arch="sm_90").searches
    times = [s.predicted_us for s in searches]
    assert times == sorted(times, reverse=True)
    by_key = {s.key: s.predicted_us for s in searches}
    many, one = by_key["linear half k=384 m=4096 n=1536"], by_key["linear half k=384 m=4096 n=384"]
    assert 20 < many / one < 24 * 4  # 24 blocks, four times as wide, against one convolution


@pytest.mark.parametrize(
    ("sizes", "parts", "shape"),
    [
        ({"m": 8, "n": 192, "k": 64}, ("qkv", "fc1"), (64, 8)),
        ({"m": 8, "n": 64, "k": 256}, ("fc2",), (256, 8)),
        ({"m": 8, "n": 64, "k": 64}, ("pointwise", "proj"), (64, 8)),
        ({"m": 8, "c": 64, "hidden": 256}, ("ConvFFN",), (64, 8)),
        ({"tokens": 4, "batch": 2, "heads": 2}, ("attention",), (64, 8)),
        ({"m": 1024, "c": 64, "levels": 0}, ("stem",), (3, 1024)),
        (
            {"batch": 2, "height": 2, "width": 1, "c": 128, "kernel": 7, "stride": 2, "multiplier": 2},
            ("depthwise x2",),
            (64, 16),
        ),
    ],
)
def test_sizes_as_the_policy_counts_them(sizes: dict[str, int], parts: tuple[str, ...], shape: tuple[int, int]) -> None:
    assert share._parts(sizes) == parts and share._shape(sizes, FastViTHDConfig()) == shape


def test_what_is_refused_is_not_measured() -> None:
    measured: list[Config] = []

    def measure(config: Config) -> float:
        measured.append(config)
        return distance_from(BLOCK_M=256, BLOCK_N=64)(config)

    def refused(candidates: Sequence[Config]) -> list[str]:
        return ["spills" if c.blocks["BLOCK_M"] > 128 else "" for c in candidates]

    found = search("a key", START, measure, refused=refused)
    assert found.config is not None and found.config.blocks["BLOCK_M"] == 128 and found.finished and found.failed
    assert all(config.blocks["BLOCK_M"] <= 128 for config in measured)


def test_time_limit_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(clock))
    found = search("a key", START, distance_from(BLOCK_M=256, BLOCK_N=16), until=12)
    assert not found.finished and found.config != START and found.ms is not None and found.start_ms is not None
    assert found.ms < found.start_ms and 1 < found.tried < 12


def test_a_lost_gpu_ends_a_search() -> None:
    def measure(config: Config) -> float:
        if config != START:
            raise UnavailableError("this process can no longer use the GPU")
        return 1.0

    with pytest.raises(UnavailableError, match="no longer"):
        search("a key", START, measure)


def test_why_candidates_are_refused() -> None:
    fine, spills = Built("a_kernel", 0.1, registers=128, spills=0), Built("a_kernel", 0.1, registers=255, spills=64)
    assert not tune.why_refused([fine, fine]) and tune.why_refused([fine, spills]) == "a_kernel spills 64 bytes"
    assert tune.why_refused([Built("a_kernel", 0.1, error="out of memory")]) == "out of memory"


def test_weights_that_come_from_memory() -> None:
    wide, long = {"m": 16, "n": 6144, "k": 1536}, {"m": 65536, "n": 384, "k": 96}
    assert tune.weighs_most(Call("linear", wide, print)) and not tune.weighs_most(Call("linear", long, print))
    assert not tune.weighs_most(Call("depthwise", {"kernel": 7, "c": 96}, print))
    assert not tune.weighs_most(Call("mlp", {"m": 65536, "c": 96, "hidden": 384}, print))


class FakeCompilers:
    """Compiles nothing; says that candidates with more than three stages spill."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def warm(self, wanted: Sequence[tuple[Call, Config]], arch: str, **_: object) -> list[tuple[Built, ...]]:
        self.asked.append(len(wanted))
        return [(Built(call.op, 0.0, spills=64 * (config.num_stages > 3)),) for call, config in wanted]


COST: list[float] = []
"""Milliseconds of each call that was made."""


class CostClock(HostClock):
    """Takes each call for as long as it says."""

    def measure(self, run: Callable[[], object], runs: int = 1) -> float:
        before = len(COST)
        for _ in range(runs):
            run()
        return sum(COST[before:])


def fake_calls(*_: object, **__: object) -> Iterator[Call]:
    """Two calls: a product whose time falls with BLOCK_M, and attention, which does not run."""

    def product(config: Config) -> torch.Tensor:
        COST.append(1.0 if config.blocks["BLOCK_M"] < 256 else 0.5)
        return torch.ones(4)

    def broken(config: Config) -> torch.Tensor:
        raise RuntimeError("no kernel image")

    yield Call("linear", {"m": 4096, "n": 1536, "k": 384}, product)
    yield Call("attention", {"tokens": 1024, "batch": 1, "heads": 24}, broken)


def test_searches_on_a_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole search but the kernels: order, refusals, results kept, and a call that does not run."""
    monkeypatch.setattr(tune, "encoder_calls", fake_calls)
    monkeypatch.setattr(tune, "BOUNDS", {"BLOCK_M": (32, 256), "num_stages": (2, 4)})
    scope = tune.Scope(FastViTHDConfig(), [(1024, 1024)], [1], names=BASELINE)
    compilers, out = FakeCompilers(), tmp_path / "gpu.json"
    report = Bench("sm_90", "cpu", CostClock()).run(scope, cast("Compilers", compilers), out, {"gpu": "none"})
    product, broken = report.searches
    assert product.key == "linear half k=384 m=4096 n=1536" and product.config is not None and product.finished
    assert product.config.blocks["BLOCK_M"] == 256 and (product.start_ms, product.ms) == (1.0, 0.5)
    assert product.config.num_stages <= 3 and product.failed
    assert broken.error == "no kernel image" and broken.config is None
    assert list(json.loads(out.read_text(encoding="utf-8"))["configs"]) == [product.key]
    assert compilers.asked[0] == 2 + product.neighbours + broken.neighbours and not report.left

    over = Bench("sm_90", "cpu", CostClock(), until=0.0).run(scope, cast("Compilers", FakeCompilers()), out, {})
    assert not over.searches and over.left == 2 and over.stopped == "the time is over"


def test_a_lost_gpu_keeps_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "encoder_calls", fake_calls)
    monkeypatch.setattr(tune, "BOUNDS", {"BLOCK_M": (64, 256)})

    def lost() -> None:
        raise UnavailableError("this process can no longer use the GPU (illegal address); start another")

    monkeypatch.setattr(tune, "check_alive", lost)
    scope = tune.Scope(FastViTHDConfig(), [(1024, 1024)], [1], names=BASELINE)
    monkeypatch.setattr(tune.Task, "calls", lambda self, *_: [self.call])
    out = tmp_path / "gpu.json"
    report = Bench("sm_90", "cuda", CostClock()).run(scope, cast("Compilers", FakeCompilers()), out, {})
    assert len(report.searches) == 1 and report.left == 1 and "no longer" in report.stopped
    assert len(json.loads(out.read_text(encoding="utf-8"))["configs"]) == 1


def test_cache_grows_and_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folder" / "gpu.json"
    start = Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8}, 4, 2)
    one, two = "linear half k=64 m=64 n=64", "linear half k=64 m=128 n=64"
    best = search(one, start, distance_from(BLOCK_M=128))
    write(out, {"gpu": "a"}, {one: best})
    write(out, {"gpu": "a"}, {two: search(two, start, distance_from(BLOCK_M=32))})
    monkeypatch.setattr(table, "cache_file", lambda device: out)
    table.tuned.cache_clear()
    found = table.tuned(torch.device("cuda"))
    table.tuned.cache_clear()
    assert found[one] == best.config and found[two].blocks["BLOCK_M"] == 32
    assert [file.name for file in out.parent.iterdir()] == ["gpu.json"]
    out.write_text("broken", encoding="utf-8")
    write(out, {}, {one: best})
    assert list(json.loads(out.read_text(encoding="utf-8"))["configs"]) == [one]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, True),
        ({"blocks": {"BLOCK_M": 1 << 20, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8}}, False),
        ({"blocks": {"BLOCK_M": 64}}, False),
        ({"num_warps": 1 << 40}, False),
        ({"num_stages": 0}, False),
        ({"num_stages": "2"}, None),
        ({"blocks": None}, None),
    ],
)
def test_only_what_a_search_finds_is_read(tmp_path: Path, changed: dict[str, Any], kept: bool | None) -> None:
    """A row that no search makes is left out; a file of another form is as none."""
    row = {"blocks": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8}, "num_warps": 4, "num_stages": 2}
    file, first, second = tmp_path / "gpu.json", "linear half k=64", "linear half k=128"
    file.write_text(json.dumps({"configs": {first: row, second: row | changed, "foreign half": row}}))
    assert list(table.read_tuned(file)) == ([] if kept is None else [first, second] if kept else [first])


def test_a_fifo_is_no_cache(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gpu.json")
    assert table.read_tuned(tmp_path / "gpu.json") == {}


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot write"):
        write(tmp_path / "file" / "gpu.json", {}, {"one": search("one", START, distance_from(BLOCK_M=128))})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_search_without_a_gpu() -> None:
    with pytest.raises(UnavailableError, match=r"cannot time kernels: .*(no NVIDIA GPU; --dry-run|not installed)"):
        tune.tune(get_variant("tiny"), [(64, 64)], [1])


@pytest.mark.gpu
def test_search_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel's searches, with few candidates: seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "BOUNDS", {"num_warps": (4, 8)})
    report = tune.tune(get_variant("tiny"), [(64, 64)], [1], names=("attention",), budget_s=60)
    assert report.file is not None and report.file.is_file() and report.searches and not report.stopped
    assert all(s.ms is not None and s.start_ms is not None and s.ms <= s.start_ms for s in report.searches)
