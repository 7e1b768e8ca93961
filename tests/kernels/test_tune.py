"""The search for block sizes, with times from a formula, and the cache that it writes."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import pytest
import torch

from fvexport.encoder.config import FastViTHDConfig, get_variant
from fvexport.errors import ArtifactError, UnavailableError
from fvexport.kernels import table, tune
from fvexport.kernels.dispatch import FP8_OPS, OPS
from fvexport.kernels.table import Config, default_config
from fvexport.kernels.tune import BOUNDS, neighbours, plan, search, write

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
    assert len(set(keys)) == len(keys) and {key.split()[0] for key in keys} == set(OPS) - set(FP8_OPS)
    assert "attention half batch=1 heads=24 tokens=1024" in keys and "mlp half c=96 hidden=384 m=65536" in keys
    assert "linear half k=768 m=8192 n=3072" in keys and all(s.config is None for s in report.searches)
    assert json.loads(json.dumps(report.to_dict()))["file"] is None
    tiny = plan(get_variant("tiny"), [(64, 64)], [1], torch.float32, arch="sm_80")
    assert all(" float32 " in s.key for s in tiny.searches)


def test_cache_grows_and_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folder" / "gpu.json"
    best = search("one", START, distance_from(BLOCK_M=128))
    write(out, {"gpu": "a"}, {"one": best})
    write(out, {"gpu": "a"}, {"two": search("two", START, distance_from(BLOCK_M=32))})
    monkeypatch.setattr(table, "cache_file", lambda device: out)
    table.tuned.cache_clear()
    found = table.tuned(torch.device("cuda"))
    table.tuned.cache_clear()
    assert found["one"] == best.config and found["two"].blocks["BLOCK_M"] == 32
    assert [file.name for file in out.parent.iterdir()] == ["gpu.json"]
    out.write_text("broken", encoding="utf-8")
    write(out, {}, {"one": best})
    assert list(json.loads(out.read_text(encoding="utf-8"))["configs"]) == ["one"]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot write"):
        write(tmp_path / "file" / "gpu.json", {}, {"one": search("one", START, distance_from(BLOCK_M=128))})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_search_without_a_gpu() -> None:
    with pytest.raises(UnavailableError, match=r"cannot time kernels: .*(no NVIDIA GPU; --dry-run|not installed)"):
        tune.tune(get_variant("tiny"), [(64, 64)], [1])


@pytest.mark.gpu
@pytest.mark.long
def test_search_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "BOUNDS", {name: (low, low) for name, (low, _) in BOUNDS.items()})
    report = tune.tune(get_variant("tiny"), [(64, 64)], [1])
    assert report.file is not None and report.file.is_file()
    assert all(s.ms is not None and s.start_ms is not None and s.ms <= s.start_ms for s in report.searches)
