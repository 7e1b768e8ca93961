"""Triton's cache, filled by processes without a GPU: what is found there is what a launch looks up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fvexport.core.errors import UnavailableError
from fvexport.encoder.config import get_variant
from fvexport.kernels import language, warm
from fvexport.kernels.dispatch import modes_for
from fvexport.kernels.launches import Call, encoder_calls
from fvexport.kernels.table import Config, default_config
from fvexport.kernels.warm import Built

pytestmark = pytest.mark.skipif(not language.INSTALLED or language.INTERPRETED, reason="needs Triton's compiler")

LAUNCH = """
import json, sys
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fvexport.encoder.config import get_variant
from fvexport.kernels.launches import encoder_calls
from fvexport.kernels.table import default_config


class Fake:
    def get_current_device(self): return 0
    def get_current_stream(self, device=None): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)


driver.set_active(Fake())
own, hits = JITFunction.run, {}
knobs.compilation.listener = lambda **found: hits.setdefault(found["metadata"]["hash"], found["cache_hit"])
JITFunction.run = lambda self, *args, grid, warmup, **kwargs: own(self, *args, grid=grid, warmup=True, **kwargs)
left = {"depthwise", "norm_linear", "linear_tma", "split_k"}
for call in encoder_calls(get_variant("fastvithd"), 256, 256, 1, torch.float16, modes=3):
    if call.op in left:
        left.remove(call.op)
        call.launch(default_config(call.op, "sm_90", "half", call.sizes))
print(json.dumps(hits))
"""
"""What a model does on a GPU, up to the launch itself: arguments as they are, keys by Triton."""


def first_calls() -> list[tuple[Call, Config]]:
    """The first calls of some operators: with one launch, with two, with TMA descriptors, launched by PDL."""
    found: dict[str, tuple[Call, Config]] = {}
    for call in encoder_calls(get_variant("fastvithd"), 256, 256, 1, torch.float16, modes=modes_for("sm_90")):
        if call.op in ("depthwise", "norm_linear", "linear_tma", "split_k"):
            found.setdefault(call.op, (call, default_config(call.op, "sm_90", "half", call.sizes)))
    assert len(found) == 4
    return list(found.values())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_launch_finds_what_was_compiled(cache: Path) -> None:
    wanted = first_calls()
    tasks: list[tuple[int, int | None]] = []

    def progress(task: str, done: int, total: int | None) -> None:
        tasks.append((done, total))

    first = warm.warm([*wanted, wanted[0]], "sm_90", jobs=2, resources=True, progress=progress)
    built = {launch.hash: launch for row in first for launch in row}
    assert not any(launch.error or launch.cached for launch in built.values()), built
    assert all(launch.registers and launch.registers <= 255 and launch.spills == 0 for launch in built.values())
    assert first[-1] == first[0] and len(tasks) == len(built) and tasks[-1] == (len(built), len(built))
    entries = sorted(cache.iterdir())

    launched = json.loads(run_python(LAUNCH))
    assert set(launched) == set(built) and all(launched.values())

    again = warm.warm(wanted, "sm_90", jobs=1, resources=True)
    assert all(launch.cached for row in again for launch in row)
    assert [[(b.hash, b.registers, b.spills, b.shared) for b in row] for row in again] == [
        [(b.hash, b.registers, b.spills, b.shared) for b in row] for row in first[:-1]
    ]
    assert sorted(cache.iterdir()) == entries


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        capture_output=True, text=True, env=dict(os.environ), check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stdout


def test_what_does_not_compile_is_said(cache: Path) -> None:
    """A tile that no launcher refuses, but Triton: the rest is compiled all the same."""
    wanted = first_calls()
    call, config = next(pair for pair in wanted if pair[0].op == "norm_linear")
    broken = Config(dict(config.blocks) | {"BLOCK_N": 48}, config.num_warps, config.num_stages)  # no power of two

    def refuse(config: Config) -> object:
        raise ValueError("no such block sizes")

    bad, refused, good = warm.warm([(call, broken), (Call("linear", {}, refuse), config), (call, config)], "sm_90")
    failed = bad[-1]
    assert failed.error and not failed.hash and failed.kernel == "norm_linear_kernel"
    assert refused == (Built("linear", 0.0, error="no such block sizes"),)
    assert all(launch.hash and not launch.error for launch in good)


def test_time_limit(cache: Path) -> None:
    """A process that is busy for too long is ended, and another one takes over."""
    wanted = first_calls()[:2]
    found = warm.warm(wanted, "sm_90", jobs=1, limit_s=0.01)
    assert all(row[0].error == "compiles for more than 0.01 s" for row in found)


def test_nothing_to_do() -> None:
    assert warm.warm([], "sm_90") == []


def test_processes_that_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm.sys, "executable", "/bin/false")
    with pytest.raises(UnavailableError, match="did not start"):
        warm.warm(first_calls()[:1], "sm_90", jobs=1)


def test_needs_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "INSTALLED", False)
    with pytest.raises(UnavailableError, match="needs Triton"):
        warm.warm(first_calls(), "sm_90")
