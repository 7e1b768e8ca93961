"""The run: starts the phases in order, each in a process of its own and with a share of the time, then reports.

Correctness comes first, and its phases run beside those that only need the CPU: the suite's tests, and torch.compile
of the rivals. While anything is timed, nothing else runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from . import children, commands, facts, phases, report
from . import triton_cache as caches
from .children import Child
from .job import Job
from .plan import least_of, limit_of
from .scope import DRY, REAL, TUNED, Scope

LOG = "run.log"
MAX_LOG = 900_000
"""Bytes of the log that are kept: its beginning and its end."""
BACKGROUND = "reduce-overhead"
"""The mode of torch.compile that compiles beside the phases before it."""
COMPILING_S = 40.0
"""Seconds at least that torch.compile may go on for after the correctness phases, before the first timing."""
LIVES = 5
"""Processes at most that a phase may lose to kernels."""
WRONG = 10.0
"""Times PyTorch's own error that a kernel's has to be for it to be left out of what follows."""
ROUNDING = 1e-3
"""What counts as PyTorch's own error where that is smaller."""
TURN_S = 20.0
"""Seconds at least that a compiled rival may be timed and profiled for."""
REPORT_S = 3.0
"""Seconds kept back for the report."""
NEED_WEIGHTS = frozenset(("models", "latency", "compiled", "autotune", "profile", "fp8", "tune", "leftover"))
ALL = (*phases.NAMES[:-3], "autotune", *phases.NAMES[-3:])


@click.command("proof.py")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results; at most eight files of 1 MiB.")
@click.option("--seconds", default=470.0, show_default=True, help="Time limit of the whole run.")
@click.option("--only", help=f"Phases, comma-separated.  [default: all of {', '.join(ALL)}]")
@click.option("--dry-run", is_flag=True, help="Run every line on the CPU, with a tiny model.")
@click.option(
    "--triton-cache",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Begin with the kernels that Triton keeps in this folder (made by the same version of it).",
)
@click.option(
    "--commit", type=click.Path(path_type=Path, exists=True), help="Write this folder's results to the repository."
)
def main(
    out: Path | None, seconds: float, only: str | None, dry_run: bool, triton_cache: Path | None, commit: Path | None
) -> None:
    """Check and measure everything of this project that needs an NVIDIA GPU."""
    if commit is not None:
        from ....core.errors import FvexportError
        from .commit import convert

        try:
            for path in convert(commit):
                click.echo(f"wrote {path}")
        except FvexportError as error:
            raise click.ClickException(str(error)) from None
        return
    if out is None:
        raise click.UsageError("give --out DIR")
    chosen = frozenset(ALL if only is None else (name.strip() for name in only.split(",")))
    if unknown := sorted(chosen - set(ALL)):
        raise click.UsageError(f"no phase {unknown[0]!r}; known are {', '.join(ALL)}")
    if "fp8" in chosen:
        chosen |= {"quantize"}
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C does: children end, and what there is is reported
    out.mkdir(parents=True, exist_ok=True)
    for old in (facts.FILE, LOG, *commands.FILES):
        (out / old).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="fvexport-proof-") as scratch:
        run = Run(out.resolve(), Path(scratch), dry_run, time.time(), seconds, chosen)
        if triton_cache is not None:
            caches.copy(triton_cache, Path(scratch) / "triton")
        run.everything()
        run.finish()
    found = facts.read(out / facts.FILE)
    click.echo(report.table(found))
    sys.exit(0 if report.correct(found) else 1)


@dataclass
class Run:
    """One run of all phases.

    Attributes:
        out, scratch: folders for results, and for what is deleted afterwards.
        dry: on a CPU, with a tiny model.
        start: as `time.time()`.
        seconds: of the whole run.
        chosen: phases to run.
        running: children that have not ended.
        rivals: those among them that compile, or wait for their turn to be timed.
        status: how each phase ended, by name.
        left_out: kernels that later phases do not use.
    """

    out: Path
    scratch: Path
    dry: bool
    start: float
    seconds: float
    chosen: frozenset[str]
    running: list[Child] = field(default_factory=list)
    rivals: list[Child] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def scope(self) -> Scope:
        """What is measured."""
        return DRY if self.dry else REAL

    @property
    def log(self) -> Path:
        """Where the phases' output goes."""
        return self.out / LOG

    def left(self) -> float:
        """Seconds until the report."""
        return self.start + self.seconds - REPORT_S - time.time()

    def everything(self) -> None:
        """All chosen phases; children that are left are ended, however this ends."""
        try:
            self._prepare()
            with self._beside("quantize") as quantizing:
                self._correctness()
                self._timing(quantizing)
        except KeyboardInterrupt:
            self._fact("interrupted")
        finally:
            for child in self.running:
                child.end()

    def _prepare(self) -> None:
        """Environment, cache and weights beside each other: the first needs the GPU alone, the others the CPU."""
        with self._beside("environment"), self._beside("warm"):
            if self.chosen & NEED_WEIGHTS:
                self._phase("weights", always=True)

    def _correctness(self) -> None:
        if "compiled" in self.chosen:
            self.rivals = [self._compile(size, BACKGROUND, waits=True) for size in self.scope.compiled]
        with self._beside("predict"), self._beside("tests", commands.tests(self.out, self.dry)):
            self._repeated("operators", "gpu-lost")
            self._leave_out()
            self._phase("models")

    def _timing(self, quantizing: Child | None) -> None:
        with contextlib.ExitStack() as beside:
            if self.dry:  # which measures nothing and has to be quick
                for name in ("kernels", "runtimes", "leftover"):
                    beside.enter_context(self._beside(name, self._command(name)))
                beside.enter_context(self._autotune())
            if quantizing is not None:  # which uses the GPU
                self._ended(quantizing, quantizing.wait())
            self._ready()
            self._repeated("latency", "toggle-failed")
            self._compiled()
            self._phase("profile")
            self._phase("fp8")
            if not self.dry:
                self._phase("kernels", self._command("kernels"))
                self._kernel_facts()
                with self._autotune():
                    pass
            self._tune()
            if not self.dry:
                self._phase("runtimes")
                self._phase("leftover")
        if self.dry:
            self._kernel_facts()

    def _kernel_facts(self) -> None:
        """What the report says of the rows in `kernels.jsonl`."""
        for row in report.kernel_facts(facts.read(self.out / commands.KERNELS)):
            self._fact("kernel", **row)

    def _command(self, name: str) -> list[str] | None:
        """The command of a phase that is no module of `phases`; None for the others."""
        if name == "kernels":
            return commands.kernels(self.out, self.scope, self._limit(name), self.dry)
        return None

    # --- phases that are more than one process ----------------------------------------------------------

    def _repeated(self, name: str, kind: str) -> None:
        """A phase that a kernel may end by making the GPU unusable: it goes on in a new process, without that kernel.

        Args:
            name: of the phase, which continues where it stopped.
            kind: of the fact that it writes before it ends so.
        """
        for _ in range(LIVES):
            before = len(self._facts(kind))
            self._phase(name)
            if self.status.get(name) == "ok" or len(self._facts(kind)) == before:
                return

    def _leave_out(self) -> None:
        """Later phases do not use kernels that fail or compute something else, so that they measure the others."""
        hard = {str(f["kernel"]) for f in self._facts("operator-problem") if _is_hard(f)}
        self.left_out = tuple(sorted(hard - {""}))
        if self.left_out:
            self._fact("left-out", kernels=self.left_out)

    def _ready(self) -> None:
        """Waits until the rivals that compile in the background are done or late: they would disturb the timing."""
        until = time.time() + max(COMPILING_S, self._limit("compiled"))
        while busy := [c for c in self.rivals if c.process.poll() is None and not self._compiled_one(c)]:
            if time.time() > until:
                for child in busy:
                    child.end()
                    self.rivals.remove(child)
                    self._ended(child, "over the limit, still compiling")
                return
            time.sleep(0.2)

    def _compiled_one(self, child: Child) -> bool:
        """Whether a rival has said that it is compiled."""
        mode, _, size = child.name.partition(" ")
        return bool(self._facts("compiled", name=mode, size=size))

    def _compile(self, size: Sequence[int], mode: str, **options: Any) -> Child:
        named = dict(zip(("height", "width", "batch"), size, strict=True))
        name = f"{mode} {type(self.scope.profiled)(**named).name}"
        profiled = tuple(size) == tuple(self.scope.profiled)
        if profiled and mode == BACKGROUND:
            options["profile"] = "compile"
        job = self._job("compiled", max(self.left(), 1.0), size=list(size), mode=mode, **options)
        return self._launch(name, job)

    def _compiled(self) -> None:
        """Times the rivals that wait, one after the other."""
        for child in self.rivals:
            child.go()
            self._ended(child, child.wait(time.time() + max(TURN_S, self._limit("compiled"))))

    @contextlib.contextmanager
    def _autotune(self) -> Iterator[None]:
        """torch.compile's strongest mode at the size with a target, beside what the block does."""
        if "autotune" not in self.chosen or not self._enough("autotune"):
            yield
            return
        job = self._job(
            "compiled", self._limit("autotune"), size=list(self.scope.profiled), mode="max-autotune", autotune=True
        )
        child = self._launch("autotune", job, autotune=True)
        yield
        self._ended(child, child.wait())

    def _tune(self) -> None:
        """The search for block sizes, then ours again with what it found."""
        if "tune" not in self.chosen or not self._enough("tune"):
            return
        limit = self._limit("tune")
        self._phase("tune", commands.tune(self.scope, 0.8 * limit, self.dry))
        commands.keep_tuned(self.scratch, self.out)
        sizes = [list(size) for size in self.scope.kernels]
        self._phase("latency", always=True, sizes=sizes, label=TUNED)

    # --- one phase --------------------------------------------------------------------------------------

    def _phase(self, name: str, command: list[str] | None = None, *, always: bool = False, **options: Any) -> None:
        """Runs one phase to its end or limit; how it ended is a fact."""
        if name not in self.chosen and not always:
            return
        if self._enough(name):
            child = self._start(name, command, **options)
            self._ended(child, child.wait())

    @contextlib.contextmanager
    def _beside(self, name: str, command: list[str] | None = None) -> Iterator[Child | None]:
        """Runs a phase beside what the block does, and waits for it at the end, unless the block did."""
        child = self._start(name, command) if name in self.chosen and self._enough(name) else None
        yield child
        if child is not None and child in self.running:
            self._ended(child, child.wait())

    def _start(self, name: str, command: list[str] | None, **options: Any) -> Child:
        job = self._job(name, self._limit(name), **options)
        return self._launch(name, job, command)

    def _launch(self, name: str, job: Job, command: list[str] | None = None, *, autotune: bool = False) -> Child:
        """Starts a job's process, which is ended when the run is, at the latest."""
        child = children.start(
            name, command or children.command_of(job), job.left(), log=self.log, folder=self.scratch,
            env=self._env(name, autotune=autotune),
        )  # fmt: skip
        self.running.append(child)
        return child

    def _job(self, name: str, limit_s: float, **options: Any) -> Job:
        return Job(name, str(self.out), str(self.scratch), self.dry, self.start, time.time() + limit_s, options)

    def _limit(self, name: str) -> float:
        """Seconds; a dry run measures nothing, so that no phase of it has to be short."""
        return self.left() if self.dry else limit_of(name, self.left(), self.chosen)

    def _enough(self, name: str) -> bool:
        """Whether a phase's time is worth its start; if not, that is a fact."""
        enough = self.left() >= (2.0 if self.dry else least_of(name))
        if not enough:
            self._fact("phase", name=name, status="no time left", seconds=0.0)
        return enough

    def _ended(self, child: Child, status: str) -> None:
        self.running.remove(child)
        self.status[child.name] = status
        fact = self._fact("phase", name=child.name, status=status, seconds=round(child.seconds, 1))
        click.echo(f"{fact['t']:7.1f} s  {child.name:24s} {status} after {fact['seconds']} s")

    def _facts(self, kind: str, **values: Any) -> list[facts.Fact]:
        return facts.of(facts.read(self.out / facts.FILE), kind, **values)

    def _fact(self, kind: str, **values: Any) -> facts.Fact:
        return facts.Facts(self.out / facts.FILE, "run", self.start)(kind, **values)

    def _env(self, name: str = "", *, autotune: bool = False) -> dict[str, str]:
        """Caches of this run alone, so that it starts cold and leaves nothing; a dry run interprets its operators."""
        found = {
            "XDG_CACHE_HOME": str(self.scratch / "cache"),
            "TRITON_CACHE_DIR": str(self.scratch / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor"),
            "PYTHONUNBUFFERED": "1",
        }
        if self.dry:
            found |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            if name == "operators":
                found["TRITON_INTERPRET"] = "1"
        if self.left_out:
            found["FVEXPORT_KERNELS"] = ",".join(f"-{name}" for name in self.left_out)
        if name.startswith(BACKGROUND):
            found["TORCHINDUCTOR_COMPILE_THREADS"] = "4"  # four models at once, beside the other phases
        if autotune:
            # Triton's convolution templates are tried for every depthwise layer otherwise, minutes for nothing.
            found["TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS"] = "ATEN"
        return found

    def finish(self) -> None:
        """Keeps the log under its size."""
        shorten(self.log)
        shorten(self.out / commands.TESTS)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _is_hard(problem: facts.Fact) -> bool:
    """Whether a kernel failed, or is off by more than rounding."""
    failed = problem["problem"].startswith("fails") or not isinstance(problem.get("error"), float)
    return failed or problem["error"] > WRONG * max(problem["own"], ROUNDING)


def shorten(path: Path, limit: int = MAX_LOG) -> None:
    """Cuts the middle out of a text file that is longer than `limit` bytes."""
    if not path.exists() or os.path.getsize(path) <= limit:  # noqa: PTH202
        return
    data = path.read_bytes()
    path.write_bytes(data[: limit // 2] + b"\n[... cut ...]\n" + data[-limit // 2 :])
