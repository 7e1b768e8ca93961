"""The run of a GPU proof: its dry run, the limits of its phases, and the package that it links together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fvexport.benchmarks.studies.gpu import children, commands, facts, phases, run, triton_cache
from fvexport.benchmarks.studies.gpu.facts import Facts
from fvexport.benchmarks.studies.gpu.job import Job
from fvexport.benchmarks.studies.gpu.operator_cases import PARTS, kernels_of
from fvexport.benchmarks.studies.gpu.plan import BESIDE, SHARES, least_of, limit_of
from fvexport.benchmarks.studies.gpu.proof import link_package
from fvexport.kernels.dispatch import BASELINE, DEFAULTS, switched_on

ROOT = Path(__file__).parents[4]
SCRIPT = str(ROOT / "benchmarks" / "studies" / "gpu" / "proof.py")


def proof(*words: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as a user does, from another folder, without this project on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False, cwd=folder, env={**kept, **env}
    )


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """Every phase, on the CPU: all end well, and the results are as large as they may be."""
    done = proof("--out", "out", "--dry-run", "--seconds", "560", folder=tmp_path)
    out = tmp_path / "out"
    log = (out / run.LOG).read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-5000:]
    found = facts.read(out / facts.FILE)
    ended = {f["name"]: f["status"] for f in facts.of(found, "phase")}
    assert set(ended.values()) == {"ok"}, log[-5000:]
    assert {name.partition(" ")[0] for name in ended} == {*run.ALL, "reduce-overhead"} - {"compiled"}
    assert {f["name"] for f in facts.of(found, "model")} == {"kernels, eager", "FP8 kernels, eager"}
    names = {path.name for path in out.iterdir()}
    assert names == {facts.FILE, run.LOG, commands.TESTS, commands.KERNELS, "profile-ours.json", "profile-compile.json"}
    assert all(path.stat().st_size < 1 << 20 for path in out.iterdir())
    operators = facts.of(found, "operators")
    libraries = ("cublas", "scaled_mm")
    assert all(f["launched"] for f in operators if f["kernel"] not in libraries)  # the kernels ran, interpreted
    expected = {name for op in PARTS for name in kernels_of(op, torch.float16, "interpreter")}
    assert {f["kernel"] for f in operators} == expected >= set(BASELINE)
    assert {f["name"] for f in facts.of(found, "latency")} >= {"ours", "ours, tuned", "eager channels-last"}
    assert {f["name"] for f in facts.of(found, "toggle")} >= {"baseline", "-pdl", "-fast_gelu"}
    parts = json.loads((out / "profile-ours.json").read_text())["parts"]
    assert {"stem.0", "stage 3 ConvFFN products", "stage 4 mixer", "final_conv"} <= {part["part"] for part in parts}
    assert "dry run: nothing here is a result" in done.stdout and "operators: " in done.stdout
    assert "skipped" in (out / commands.TESTS).read_text()  # the tests that need a GPU
    refused = proof("--commit", "out", folder=tmp_path)
    assert refused.returncode == 1 and "has the results of a dry run" in refused.stderr


def test_says_what_is_missing(tmp_path: Path) -> None:
    assert "give --out DIR" in proof(folder=tmp_path).stderr
    assert "no phase 'speed'; known are environment" in proof("--out", "o", "--only", "speed", folder=tmp_path).stderr
    script = f"import sys; sys.argv[0] = {SCRIPT!r}; import runpy, importlib.util as u; own = u.find_spec; " \
             "u.find_spec = lambda name: None if name == 'torch' else own(name); " \
             f"runpy.run_path({SCRIPT!r}, run_name='__main__')"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and "has no torch; run proof.py with a Python that has" in done.stderr


def test_links_the_package(tmp_path: Path) -> None:
    for name in (".", "kernels"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").write_text(f"NAME = {name!r}\n")
    (tmp_path / "build" / "pkg" / "fvexport").mkdir(parents=True)
    (tmp_path / "build" / "pkg" / "fvexport" / "kernels").symlink_to("nowhere")  # as earlier versions made
    for _ in range(2):
        tree = link_package(tmp_path)
        assert (tree / "fvexport").resolve() == tmp_path.resolve()
    code = "import fvexport.kernels as k; print(k.NAME)"
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=tree / "fvexport"
    )
    assert done.stdout == "kernels\n"


# --- limits ---------------------------------------------------------------------------------------------


def child(code: str, limit_s: float, folder: Path) -> children.Child:
    return children.start("a child", [sys.executable, "-c", code], limit_s, log=folder / "log", folder=folder)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print('here')", "ok"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", f"signal {signal.SIGSEGV.value}"),
    ],
)
def test_how_a_child_ends(code: str, status: str, tmp_path: Path) -> None:
    assert child(code, 30, tmp_path).wait() == status
    if status == "ok":
        assert (tmp_path / "log").read_text() == "here\n"


def test_a_late_child_ends_with_its_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    late = child(code, 3, tmp_path)
    began = time.time()
    assert late.wait() == "over the limit" and time.time() - began < 20
    number = int((tmp_path / "log").read_text())
    for _ in range(50):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("its child is still running")


def test_a_child_waits_for_its_turn(tmp_path: Path) -> None:
    waiting = child("import sys; print(sys.stdin.readline().strip())", 30, tmp_path)
    waiting.go()
    assert waiting.wait() == "ok" and (tmp_path / "log").read_text() == "go\n"


def test_a_phase_goes_on_without_what_ended_it(tmp_path: Path) -> None:
    """Three processes: two that a kernel ends, and one that is done; then later phases know which to leave out."""
    whole = run.Run(tmp_path, tmp_path, False, time.time(), 60, frozenset(["operators"]))
    note, ran = Facts(tmp_path / facts.FILE, "operators", 0.0), []

    def phase(name: str) -> None:
        kernel = ("mlp", "attention", None)[len(ran)]
        ran.append(kernel)
        if kernel is not None:
            note("operator-problem", op=kernel, kernel=kernel, problem="fails: illegal address", error=0.0, own=0.0)
            note("gpu-lost", op=kernel, kernel=kernel)
        whole.status[name] = "ok" if kernel is None else "exit code 1"

    whole._phase = phase  # type: ignore[method-assign,assignment]
    whole._repeated("operators", "gpu-lost")
    assert ran == ["mlp", "attention", None]
    note("operator-problem", op="x", kernel="linear", problem="L2 error", error=2.1e-3, own=1e-3)  # not that wrong
    note("operator-problem", op="x", kernel="depthwise", problem="not finite", error=float("nan"), own=1e-3)
    whole._leave_out()
    assert whole.left_out == ("attention", "depthwise", "mlp")
    assert switched_on(whole._env()["FVEXPORT_KERNELS"]) == DEFAULTS - {"attention", "depthwise", "mlp"}
    ran.clear()
    whole._repeated("operators", "no such fact")
    assert len(ran) == 1  # it failed in another way: once is enough


def test_every_phase_has_a_share() -> None:
    assert {share.phase for share in SHARES} == set(run.ALL) == {*phases.NAMES, "autotune"}
    every = frozenset(run.ALL)
    left, used = 470.0, {}
    for share in SHARES:
        used[share.phase] = limit_of(share.phase, left, every)
        assert used[share.phase] >= least_of(share.phase)
        if share.phase not in BESIDE:  # these run beside others
            left -= used[share.phase]
    assert left == pytest.approx(0)
    assert limit_of("operators", 100, frozenset(["operators"])) == 100  # alone it may take all


def test_a_copied_cache_needs_the_first_one_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton itself writes the cache and reads the copy."""
    cache = pytest.importorskip("triton.runtime.cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "first"))
    first = cache.FileCacheManager("key")
    first.put_group("kernel.json", {"kernel.cubin": first.put(b"code", "kernel.cubin")})
    triton_cache.copy(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "second"))
    found = cache.FileCacheManager("key").get_group("kernel.json")
    assert {name: Path(path).read_bytes() for name, path in found.items()} == {"kernel.cubin": b"code"}


def test_jobs_and_facts_survive(tmp_path: Path) -> None:
    job = Job("latency", str(tmp_path), str(tmp_path), True, 0.0, time.time() + 10, {"sizes": [[64, 64, 1]]})
    assert Job.from_json(job.to_json()) == job and 9 < job.left() <= 10 and job.device == "cpu"
    job.facts()("one", value=float("nan"), many=(1, 2), names=frozenset("ba"))
    with (tmp_path / facts.FILE).open("a") as file:
        file.write('{"kind": "cut o')
    (fact,) = facts.read(tmp_path / facts.FILE)
    assert fact["value"] == "nan" and fact["many"] == [1, 2] and fact["names"] == ["a", "b"]
    assert facts.of([fact], "one", phase="latency") == [fact] and facts.of([fact], "two") == []


def test_long_logs_lose_their_middle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n" + "x" * 5000 + "\nlast")
    run.shorten(log, 1000)
    text = log.read_text()
    assert len(text) < 1100 and text.startswith("first") and text.endswith("last") and "[... cut ...]" in text
    run.shorten(tmp_path / "none", 10)


def test_a_failing_phase_ends_nothing(tmp_path: Path) -> None:
    """A phase that crashes, one that hangs, and one after them."""
    whole = run.Run(tmp_path, tmp_path, False, time.time(), 60, frozenset(["profile", "kernels", "leftover"]))
    whole._phase("profile", [sys.executable, "-c", "import os; os.abort()"])
    whole.running.append(late := child("import time; time.sleep(60)", 1, tmp_path))
    whole._ended(late, late.wait())
    whole._phase("leftover", [sys.executable, "-c", ""])
    ended = facts.of(facts.read(tmp_path / facts.FILE), "phase")
    assert [f["status"] for f in ended] == [f"signal {signal.SIGABRT.value}", "over the limit", "ok"]
    Facts(tmp_path / facts.FILE, "run", 0.0)
    whole.seconds = 1  # and one for which no time is left
    whole._phase("kernels", ["never-run"])
    assert facts.read(tmp_path / facts.FILE)[-1]["status"] == "no time left"
