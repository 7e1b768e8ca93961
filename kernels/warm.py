"""Fills Triton's cache: compiles launches in many processes, none of which opens the GPU.

Triton compiles a kernel at its first launch, one after the other, for up to a second each. Here the launches of calls
are noted without being made, as `launches.recording` does, and handed to processes that compile them through
`JITFunction.run` with a driver that only names the architecture. The keys in the cache are therefore those that the
launch itself looks up, whether there is a GPU in this machine or not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from ..core.cleanup import register
from ..core.errors import UnavailableError, first_line
from ..core.hardware import usable_processes
from ..core.progress import Progress, silent
from ..encoder.config import FastViTHDConfig
from .dispatch import DEFAULTS, modes_for
from .launches import ALIGNED, Call, encoder_calls, existing, recording
from .table import Config, default_config, dtype_class

LIMIT_S = 60.0
"""Seconds that one launch may compile for; large tiles without room for them take minutes."""
START_S = 120.0
"""Seconds that a process may take to import PyTorch and Triton."""
NO_TIME = "no time left to compile"


@dataclass(frozen=True)
class Built:
    """One launch, compiled.

    Attributes:
        kernel: its name.
        seconds: that it took.
        cached: whether the cache had it.
        hash: its name in the cache, empty where it did not compile.
        shared: bytes of shared memory per block.
        registers: per thread; None if nobody asked.
        spills: bytes that a thread stores and loads for want of registers; None if nobody asked.
        error: why it did not compile, empty where it did.
    """

    kernel: str
    seconds: float
    cached: bool = False
    hash: str = ""
    shared: int = 0
    registers: int | None = None
    spills: int | None = None
    error: str = ""


def warm(
    wanted: Sequence[tuple[Call, Config]], arch: str, *, jobs: int | None = None, limit_s: float = LIMIT_S,
    resources: bool = False, progress: Progress = silent,
) -> list[tuple[Built, ...]]:  # fmt: skip
    """Compiles what calls launch, equal launches once.

    Args:
        wanted: calls, on any device, and the block sizes to launch them with.
        arch: of the GPU that will run them (`sm_90`).
        jobs: processes at most; as many as can run at once (see `usable_processes`) if not given.
        limit_s: seconds after which a launch that still compiles is given up.
        resources: also find registers and spills; for what the cache has already that takes another 0.3 s each.

    Returns what became of the launches of each pair. A pair that cannot be launched has one `Built` that says why.

    Raises UnavailableError where Triton's compiler is missing, or processes do not start.
    """
    with Compilers(jobs, limit_s) as compilers:
        return compilers.warm(wanted, arch, resources=resources, progress=progress)


class Compilers:
    """Processes that compile, kept between calls of `warm`: each takes seconds to start. They start when needed.

    Args:
        jobs: processes at most; as many as can run at once (see `usable_processes`) if not given.
        limit_s: seconds after which a launch that still compiles is given up.
    """

    def __init__(self, jobs: int | None = None, limit_s: float = LIMIT_S) -> None:
        self.jobs, self.limit_s = jobs or usable_processes(), limit_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def warm(
        self, wanted: Sequence[tuple[Call, Config]], arch: str, *, resources: bool = False,
        until: float = float("inf"), progress: Progress = silent,
    ) -> list[tuple[Built, ...]]:  # fmt: skip
        """As the function `warm`; launches that have not begun at `until` (of `time.monotonic`) are not compiled."""
        tasks: dict[bytes, int] = {}
        rows: list[list[int] | Built] = []
        for call, config in wanted:
            try:
                made = requests(call, config, arch, resources)
            except UnavailableError:
                raise
            except Exception as error:  # block sizes that a launcher refuses
                rows.append(Built(call.op, 0.0, error=first_line(error)))
            else:
                rows.append([tasks.setdefault(pickle.dumps(request), len(tasks)) for request in made])
        built: dict[int, Built] = {}
        for index, found in self._compile(list(tasks), until):
            built[index] = found
            progress(f"compile {found.kernel}", len(built), len(tasks))
        return [(row,) if isinstance(row, Built) else tuple(built[index] for index in row) for row in rows]

    def _compile(self, tasks: Sequence[bytes], until: float) -> Iterator[tuple[int, Built]]:
        """Results as they come, with the task's index."""
        waiting, left = deque(range(len(tasks))), len(tasks)
        while left:
            if time.monotonic() >= until:
                left -= len(waiting)
                yield from ((index, Built(_name(tasks[index]), 0.0, error=NO_TIME)) for index in waiting)
                waiting.clear()
            while len(self._workers) < min(self.jobs, left):
                self._workers.append(_Worker())
            for worker in self._workers:
                if waiting and worker.ready and worker.task is None:
                    worker.take(index := waiting.popleft(), tasks[index], self.limit_s)
            busy = [worker for worker in self._workers if worker.task is not None or not worker.ready]
            deadline = min([worker.deadline for worker in busy] + ([until] if waiting else []))
            if busy:
                wait([worker.connection for worker in busy], max(0.0, min(deadline - time.monotonic(), START_S)))
            for worker in busy:
                task = worker.task
                if (found := worker.answer(self.limit_s)) is not None and task is not None:
                    left -= 1
                    yield task, found
                if worker.ended:
                    worker.end()
                    self._workers.remove(worker)


def encoder_launches(
    config: FastViTHDConfig, sizes: Sequence[tuple[int, int, int]], dtypes: Sequence[torch.dtype], arch: str,
    names: Collection[str] = DEFAULTS,
) -> list[tuple[Call, Config]]:  # fmt: skip
    """What `warm` takes for a whole encoder: all its calls with the committed block sizes.

    Args:
        config: the architecture.
        sizes: (height, width, batch) of images.
        dtypes: of weights and activations.
        arch: of the GPU (`sm_90`).
        names: kernels and modes in use; kernels are all compiled, modes only if they are among these.
    """
    modes = modes_for(arch, names)
    return [
        (call, default_config(call.op, arch, dtype_class(dtype), call.sizes))
        for height, width, batch in sizes
        for dtype in dtypes
        for call in existing(encoder_calls(config, height, width, batch, dtype, modes=modes), arch, dtype)
    ]


# --- what is compiled, in a form that can be sent -----------------------------------------------------------


@dataclass(frozen=True)
class _Memory:
    """A tensor: what Triton specializes a pointer on."""

    dtype: torch.dtype
    aligned: bool


@dataclass(frozen=True)
class _Descriptor:
    """A `triton.tools.tensor_descriptor.TensorDescriptor`."""

    memory: _Memory
    block_shape: tuple[int, ...]
    padding: str


@dataclass(frozen=True)
class _Function:
    """A `triton.jit` function, as an argument or as what is launched."""

    module: str
    name: str


@dataclass(frozen=True)
class Request:
    """One launch to compile."""

    kernel: _Function
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    arch: int
    resources: bool


def requests(call: Call, config: Config, arch: str, resources: bool = False) -> list[Request]:
    """The launches that `call` makes with `config`; none is made. Raises what the launcher raises."""
    with recording():  # for its errors, and so that it is restored
        from triton.runtime.jit import JITFunction

        made: list[Request] = []

        def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            kept = {parameter.name for parameter in self.params if parameter.is_constexpr}
            packed = {name: _pack(value) for name, value in kwargs.items()}
            values = zip(self.arg_names, args, strict=False)
            packed_args = tuple(_pack(value) if name in kept else _pack(_class_of(value)) for name, value in values)
            number = int(arch.removeprefix("sm_"))
            made.append(Request(_pack(self), packed_args, tuple(packed.items()), number, resources))

        JITFunction.run = run
        call.launch(config)
    return made


def _class_of(value: Any) -> Any:
    """The same number for all that Triton compiles the same code for: of equal width, and multiples of 16 or not."""
    if type(value) is not int or value == 1:
        return value
    wide = 0 if -(2**31) <= value < 2**31 else 2**40
    return wide + (ALIGNED if value % ALIGNED == 0 else ALIGNED + 1)


def _pack(value: Any) -> Any:
    from triton.runtime.jit import JITFunction

    if isinstance(value, Tensor):
        return _Memory(value.dtype, value.device.type == "meta" or value.data_ptr() % ALIGNED == 0)
    if isinstance(value, JITFunction):
        return _Function(value.fn.__module__, value.fn.__name__)
    if type(value).__name__ == "TensorDescriptor":
        return _Descriptor(_pack(value.base), tuple(value.block_shape), value.padding)
    return value


def _unpack(value: Any) -> Any:
    from triton.runtime.jit import JITFunction, MockTensor

    if isinstance(value, _Memory):
        tensor = MockTensor(value.dtype)
        tensor.data_ptr = lambda: 0 if value.aligned else 1
        return tensor
    if isinstance(value, _Function):
        found = getattr(importlib.import_module(value.module), value.name)
        while not isinstance(found, JITFunction):  # what decorators wrapped around it
            found = found.fn
        return found
    if isinstance(value, _Descriptor):
        from triton.tools.tensor_descriptor import TensorDescriptor

        rank = len(value.block_shape)  # sizes are not specialized on; these pass the constructor's checks
        return TensorDescriptor(
            _unpack(value.memory), [16] * rank, [16] * (rank - 1) + [1], list(value.block_shape), value.padding
        )
    return value


# --- in the processes ---------------------------------------------------------------------------------------


def work(handle: int) -> None:
    """Entry point of a process: takes requests from a socket and answers each with a `Built`, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(1)
    connection = Connection(handle)
    connection.send(None)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(build(pickle.loads(connection.recv_bytes())))


def build(request: Request) -> Built:
    """Compiles one launch, in a process that never launches any: its Triton believes in another GPU from then on."""
    from triton import knobs
    from triton.runtime import driver

    driver.set_active(_Driver(request.arch))
    hits: list[bool] = []
    knobs.compilation.listener = lambda **found: hits.append(found["cache_hit"])
    knobs.nvidia.dump_ptxas_log = request.resources
    start, log = time.perf_counter(), io.StringIO()
    try:
        kwargs = {name: _unpack(value) for name, value in request.kwargs}
        kernel = _unpack(request.kernel)
        with contextlib.redirect_stdout(log):
            made = kernel.run(*map(_unpack, request.args), grid=(1,), warmup=True, **kwargs)
        registers = spills = None
        if request.resources:
            registers, spills = _resources(log.getvalue(), made.asm["ptx"], request.arch)
        _launcher(made)
    except Exception as error:
        return Built(request.kernel.name, time.perf_counter() - start, error=first_line(error))
    return Built(
        request.kernel.name, time.perf_counter() - start, all(hits), made.hash, made.metadata.shared, registers, spills
    )


def _resources(log: str, ptx: str, number: int) -> tuple[int, int]:
    """Registers and spilled bytes, from the log of ptxas, which is empty where the cache had the kernel."""
    from .aot import assemble, used

    registers, _, spills = used(log) or assemble(ptx, number)
    return registers, spills


def _launcher(made: Any) -> None:
    """Triton up to 3.6 also compiles a launcher in C for each signature; it links the driver's library."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        with contextlib.suppress(Exception):  # no driver or no C compiler: the first launch says so
            driver.CudaLauncher(made.src, made.metadata)


class _Driver:
    """What compiling asks a driver for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_current_device(self) -> int:
        return self.number  # functions keep their kernels by device, of which each architecture is one

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.number, 32)


# --- the processes themselves -------------------------------------------------------------------------------


class _Worker:
    """A process, and the task that it has.

    Attributes:
        ready: it takes tasks; before that it imports what it needs.
        task: the index and the kernel of what it compiles.
        deadline: when it is given up, of `time.monotonic`.
        ended: it compiles no more.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import work; work({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        self._forget = register(self.process.kill)
        self.connection = Connection(ours.detach())
        self.ready = self.ended = False
        self.task: int | None = None
        self.kernel = ""
        self.deadline = time.monotonic() + START_S

    def take(self, index: int, task: bytes, limit_s: float) -> None:
        self.task, self.kernel, self.deadline = index, _name(task), time.monotonic() + limit_s
        with contextlib.suppress(ConnectionError):  # a process that died is found when its answer is read
            self.connection.send_bytes(task)

    def answer(self, limit_s: float) -> Built | None:
        """What became of the task; None while it goes on, or if there was none.

        Raises UnavailableError for a process that did not start.
        """
        try:
            if self.connection.poll():
                found: Built | None = self.connection.recv()
                self.ready, self.task = True, None
                return found
            if time.monotonic() < self.deadline:
                return None
            reason = f"compiles for more than {limit_s:g} s"
        except (EOFError, ConnectionError):
            reason = "the compiler crashed"
        self.ended, self.task = True, None
        self.process.kill()
        status = self.process.wait()
        self._forget()
        if not self.ready:
            raise UnavailableError(f"a process that compiles kernels did not start (exit code {status})")
        return Built(self.kernel, limit_s, error=reason)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self._forget()


def _name(task: bytes) -> str:
    request: Request = pickle.loads(task)
    return request.kernel.name
