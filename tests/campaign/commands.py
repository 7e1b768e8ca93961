"""Commands as forks of this warm process: `fvexport …` without the seconds that imports take.

A fork calls the command's entry point with its arguments, as the installed script does, with files as its standard
streams and folders of its own for results, temporary files, cache and home. Sweeps start their processes as forks, too.

File operations in these folders are counted by an audit hook, which can interfere just before the n-th: kill the
process, fill the disk, take away permissions.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import logging
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Failed, children, end_process, end_with_parent, expect

GRACE_S = 8.0
"""Seconds in which the processes of a command that ended have to end, too."""
OPERATIONS = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip


STARTS_PROCESSES = ("openvino", "torch._inductor", "torch.distributed", "multiprocess")
WHOLE = "whole"
"""The tag of runs after which others can import the same."""


def warm_up() -> None:
    """Imports what most commands use; starts no thread, since a fork would not have it."""
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else it starts processes when it is imported
    os.environ |= {"TERM": "dumb", "COLUMNS": "120"}
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import onnxsim  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    import fvexport.__main__
    import fvexport.benchmarks.report.write
    import fvexport.benchmarks.sweep.run
    import fvexport.benchmarks.sweep.worker
    import fvexport.benchmarks.tasks.evaluate
    import fvexport.benchmarks.tasks.session
    import fvexport.calibration.calibrate
    import fvexport.cli.main
    import fvexport.export.features
    import fvexport.export.onnx_export  # noqa: F401
    from fvexport.benchmarks.sweep.sweep_options import Measuring

    torch.set_num_threads(1)
    # Sweeps of short windows: what they measure is of no interest.
    Measuring.max_rounds = 3
    Measuring.__init__.__kwdefaults__["window_s"] = 0.02
    torchlib = runpy.run_path(str(Path(__file__).resolve().parents[1] / "torchlib_table.py"))
    setattr(*torchlib["read_once"]())
    logging.disable(logging.WARNING)  # says that torchvision is not installed
    torch.onnx._internal.exporter._registration.ONNXRegistry.from_torchlib()
    logging.disable(logging.NOTSET)
    gc.collect()
    gc.freeze()  # an export makes millions of objects; looking at all of torch's again and again takes a tenth of it
    check_threads()


def warm_up_by(place: Place, tag: str = WHOLE) -> None:
    """Imports what a run that ended imported."""
    for name in (place.logs / f"{tag}.modules").read_text().split():
        if name not in sys.modules and not name.startswith(STARTS_PROCESSES):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    check_threads()


def check_threads() -> None:
    """Says so if imports started threads."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        print(f"note: imports started {threads - 1} threads, which forks will not have", file=sys.stderr)


@dataclass(frozen=True)
class Place:
    """The folders of a run.

    Attributes:
        root: holds the others; operations below it are counted.
        work: the working folder, where results go.
    """

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def logs(self) -> Path:
        return self.root.with_name(self.root.name + ".logs")

    def folder(self, name: str) -> Path:
        """`tmp`, `cache` or `home`."""
        return self.root / name

    def make(self) -> Place:
        """Creates all of them."""
        for path in (self.work, *map(self.folder, ("tmp", "cache", "home"))):
            path.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        return self

    def listing(self) -> set[str]:
        """The names in the working folder."""
        return {path.name for path in self.work.iterdir()}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; -9 if SIGKILL ended it.
        out, err: what it printed.
        operations: file operations that were counted; 0 if it was killed.
        survivors: names of its processes that lived on.
    """

    code: int
    out: str
    err: str
    operations: int
    survivors: list[str]

    def last_line(self) -> str:
        return (self.err.strip().splitlines() or self.out.strip().splitlines() or [""])[-1][:300]

    def in_words(self) -> str:
        return f"exit code {self.code}, {self.last_line()!r}"

    def check_clean(self) -> None:
        """Raises Failed for a traceback, or a process that lives on."""
        expect("Traceback (most recent call last)" not in self.err + self.out, f"a traceback: {self.in_words()}")
        expect(not self.survivors, f"processes live on after the command's end: {self.survivors}")

    def check_success(self) -> None:
        self.check_clean()
        expect(self.code == 0, f"the command failed: {self.in_words()}")

    def check_success_or_one_line(self, mention: str = "") -> None:
        """Raises Failed unless it succeeded, or failed with one line for each problem, one of which has `mention`."""
        self.check_clean()
        if self.code == 0:
            return
        expect(self.code == 1, f"it ended with {self.in_words()}, neither with success nor with an error")
        lines = [line for line in self.err.splitlines() if not line.startswith(("note: ", "warning: "))]
        expect(
            bool(lines) and all(line.startswith("error: ") for line in lines),
            f"not one line for each error: {len(lines)} lines, {self.err[-600:]!r}",
        )
        expect(any(mention in line for line in lines), f"no error mentions {mention}: {lines[0]!r}")


@dataclass
class Running:
    """A command that was started."""

    pid: int
    place: Place
    tag: str
    started: float

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def poll(self) -> bool:
        """Whether it has ended; it stays to be waited for."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def wait(self, seconds: float = 120) -> Ended:
        """Waits for the end of the command and of all its processes."""
        ends = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > ends:
                end_process(self.pid)
                raise Failed(f"the command did not end within {seconds:.0f} s: {self._read('err')[-300:]!r}")
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        counted = self._read("operations")
        return Ended(code, self._read("out"), self._read("err"), int(counted or 0), self._survivors())

    def _survivors(self) -> list[str]:
        """Waits a moment for the command's own processes, which are ours now; ends and names those that stay."""
        ends = time.monotonic() + GRACE_S
        while left := [pid for pid in children() if pid not in ACTIVE - {self.pid} and not _reaped(pid)]:
            if time.monotonic() > ends:
                names = [_command_line(pid) for pid in left]
                for pid in left:
                    end_process(pid)
                return names
            time.sleep(0.005)
        ACTIVE.discard(self.pid)
        return []

    def _read(self, name: str) -> str:
        try:
            return (self.place.logs / f"{self.tag}.{name}").read_text(errors="replace")
        except OSError:
            return ""


ACTIVE: set[int] = set()
"""Commands that this process started and did not wait for."""


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100]
    return str(pid)


@dataclass(frozen=True, kw_only=True)
class Interference:
    """What happens to a run besides its work.

    Attributes:
        before: called in the fork before the command begins.
        at: number of the file operation, from 1, before which `action` is called; 0 for none.
        action: called in the fork.
        environment: changed variables; None removes one.
    """

    before: Callable[[], None] | None = None
    at: int = 0
    action: Callable[[], None] | None = None
    environment: tuple[tuple[str, str | None], ...] = ()


NONE = Interference()


def start(argv: Sequence[object], place: Place, how: Interference = NONE, tag: str = "run") -> Running:
    """Starts `fvexport ARGV` in `place`; its output goes to files named after `tag`."""
    sys.stdout.flush()
    sys.stderr.flush()
    (place.logs / f"{tag}.argv").write_text(" ".join(map(str, argv)))
    for name in ("out", "err", "operations"):
        (place.logs / f"{tag}.{name}").unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _child([str(arg) for arg in argv], place, how, tag)
        finally:
            os._exit(code)
    ACTIVE.add(pid)
    return Running(pid, place, tag, time.monotonic())


def run(
    argv: Sequence[object], place: Place, how: Interference = NONE, tag: str = "run", seconds: float = 120
) -> Ended:
    """Runs `fvexport ARGV` to its end."""
    return start(argv, place, how, tag).wait(seconds)


def _child(argv: list[str], place: Place, how: Interference, tag: str) -> int:
    os.setsid()
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does
    signal.signal(signal.SIGINT, signal.default_int_handler)
    operations = os.open(place.logs / f"{tag}.operations", os.O_WRONLY | os.O_CREAT, 0o666)
    _redirect(place, tag)
    environment = {"TMPDIR": place.folder("tmp"), "XDG_CACHE_HOME": place.folder("cache"), "HOME": place.folder("home")}
    for name, value in {**environment, **dict(how.environment)}.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
    tempfile.tempdir = None
    os.chdir(place.work)
    _workers_as_forks()
    sys.argv = ["fvexport", *argv]
    counted = _count_operations(place, how, operations)
    from fvexport.__main__ import main

    code: Any = 0
    try:
        if how.before:
            how.before()
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120  # as Python does where the streams cannot be flushed
    with contextlib.suppress(BaseException):
        os.pwrite(operations, str(counted()).encode(), 0)
        if tag == WHOLE:
            (place.logs / f"{tag}.modules").write_text("\n".join(sys.modules))
    return code


def _redirect(place: Place, tag: str) -> None:
    """Files as standard streams; no other file stays open."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place.logs / f"{tag}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    for file in list(Path("/proc/self/fd").iterdir()):
        if int(file.name) > 2 and not _is_own(file, place):
            with contextlib.suppress(OSError):
                os.close(int(file.name))
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), encoding="utf-8", line_buffering=True, write_through=True
    )
    sys.stderr.reconfigure(errors="backslashreplace")


def _is_own(descriptor: Path, place: Place) -> bool:
    """Whether this is the file that gets the number of operations."""
    try:
        file = descriptor.readlink()
    except OSError:
        return False
    return file.parent == place.logs and file.suffix == ".operations"


def _count_operations(place: Place, how: Interference, file: int) -> Callable[[], int]:
    own, root, count, busy = os.getpid(), os.fsencode(place.root), 0, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, busy
        if busy or not _counts(event, args, root) or os.getpid() != own:
            return
        count += 1
        if count == how.at and how.action:
            busy = True
            try:
                how.action()
            finally:
                busy = False

    sys.addaudithook(hook)
    return lambda: count


def _counts(event: str, args: tuple[Any, ...], root: bytes) -> bool:
    """Whether this is an operation that changes something below `root`."""
    if event == "ctypes.dlsym":
        return args[1] == "renameat2"
    if event == "open":
        if isinstance(args[0], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event not in OPERATIONS:
        return False
    try:
        path = os.fsencode(args[0])
    except TypeError:
        return False
    return not path.startswith(b"/") or path.startswith(root)


# --- processes of a sweep ---------------------------------------------------------------------------


def _workers_as_forks() -> None:
    """Has sweeps fork their processes from this one, which has imported all that they need."""
    from fvexport.benchmarks.sweep import worker_process

    class Module:
        """`subprocess`, as far as `worker_process` uses it."""

        Popen = _ForkedWorker
        PIPE = -1

        def __getattr__(self, name: str) -> Any:
            import subprocess

            return getattr(subprocess, name)

    worker_process.subprocess = Module()


class _ForkedWorker:
    """`subprocess.Popen` of `python -m fvexport.benchmarks.sweep.worker`, forked."""

    def __init__(self, command: Sequence[str], *, stderr: Any, env: dict[str, str], encoding: str, **_: Any) -> None:
        assert command[-1] == "fvexport.benchmarks.sweep.worker", command
        jobs, answers = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(jobs[0], 0)
                os.dup2(answers[1], 1)
                os.dup2(stderr if isinstance(stderr, int) else stderr.fileno(), 2)
                os.closerange(3, 4096)
                os.environ.clear()
                os.environ.update(env)
                sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding=encoding)
                sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding=encoding, write_through=True)
                for number in (signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                from fvexport.benchmarks.sweep import worker

                worker.main()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(jobs[0])
        os.close(answers[1])
        self.stdin = io.TextIOWrapper(io.FileIO(jobs[1], "w"), encoding=encoding, write_through=True)
        self.stdout = io.TextIOWrapper(io.BufferedReader(io.FileIO(answers[0])), encoding=encoding)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
