"""From an ONNX file to a plan: one build, cancellable, with what TensorRT said of it."""

from __future__ import annotations

import concurrent.futures
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...core.errors import ExportError, first_line
from ...core.progress import Progress
from ...core.utf8_path import utf8_path
from ..tensor_names import INPUT_NAME
from .api import Api
from .engine_options import EngineOptions, Profile
from .engine_section import TimingCacheUse
from .layers import EngineLayer, from_inspector, from_log
from .timing_cache import TimingCache

T = TypeVar("T")

MEMORY = {"weights": r"Total Weights Memory: (\d{1,18})", "activations": r"Total Activation Memory: (\d{1,18})"}
"""What a build's log says of device memory, in bytes."""


@dataclass
class Built:
    """What a build gave.

    Attributes:
        plan: the serialized engine.
        layers: that it was compiled to; empty where TensorRT did not tell.
        memory: bytes of `weights` and `activations` on the device, where TensorRT told.
        notices: TensorRT's own warnings, each once, and what became of the timing cache.
        cache: the timing cache's file, and how many bytes of it this build began with; None without one.
    """

    plan: bytes
    layers: list[EngineLayer]
    memory: dict[str, int]
    notices: list[str]
    cache: TimingCacheUse | None


@dataclass
class Log:
    """What TensorRT's logger said that somebody may want to read."""

    warnings: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    layer_lines: list[str] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    def add(self, severity: str, message: str) -> None:
        """Takes one message; `severity` is the name of TensorRT's."""
        if "logger passed into" in message:
            return  # one logger serves a process, the first; every later object is told so
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity == "WARNING":
            self.warnings[message.strip()] = self.warnings.get(message.strip(), 0) + 1
        elif "LayerType: " in message:
            self.layer_lines += message.splitlines()
        else:
            for name, pattern in MEMORY.items():
                if match := re.search(pattern, message):
                    self.memory[name] = int(match[1])

    def refused_cache(self) -> bool:
        """Whether it spoke of a timing cache that TensorRT cannot read; what it said of that is then told by us."""
        spoken = [text for text in self.warnings if "timing cache" in text.lower()]
        for text in spoken:
            del self.warnings[text]
        self.errors.clear()
        return bool(spoken)

    def notices(self) -> list[str]:
        """Each warning once, with how often it came."""
        return [
            f"TensorRT: {text}" + (f" ({count} times)" if count > 1 else "") for text, count in self.warnings.items()
        ]

    def reason(self) -> str:
        """The last error, or that there was none."""
        # The first names the cause; what follows it says that something failed.
        return first_line(Exception(self.errors[0]), 400) if self.errors else "TensorRT gives no reason"


def build_plan(
    api: Api, model: Path, profile: Profile, options: EngineOptions, cache: TimingCache | None, progress: Progress
) -> Built:
    """Builds the engine of an ONNX file.

    Interrupted (Ctrl-C), it asks TensorRT to stop, waits until it has, and raises KeyboardInterrupt.

    Args:
        api: which TensorRT.
        model: the ONNX file; its weights lie beside it.
        profile: input sizes.
        options: memory, compatibility.
        cache: read before, written after; None for a TensorRT that times nothing.
        progress: called with TensorRT's own phases and steps.

    Raises:
        ExportError: TensorRT refuses the file (naming node, operator and block) or finds no engine for it.
        UnavailableError: see `Api.check`.
    """
    api.check(options)
    trt, log = api.trt, Log()
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = api.create_network(builder)
    parser = trt.OnnxParser(network, logger)
    progress("parse", 0, None)
    with utf8_path(model) as file:
        parsed = parser.parse_from_file(file)
    if not parsed:
        raise ExportError(f"{api.title} refuses {model}: {parser_errors(parser)}")
    config = _config(trt, builder, network, profile, options)
    if cache is not None:
        cache.attach(config, log.refused_cache)
    cancelled = threading.Event()
    config.progress_monitor = monitor = _monitor(trt, cancelled, progress)
    plan = _cancellable(lambda: builder.build_serialized_network(network, config), cancelled)
    del monitor  # outlives the build, as TensorRT asks
    if plan is None:
        raise ExportError(f"{api.title} could not build the engine: {log.reason()}{_hint(log, options)}")
    if cache is not None:
        cache.save(config)
    data = bytes(plan)
    layers = _inspected(trt, logger, data) or from_log(log.layer_lines)
    notices = [*(cache.notices if cache else ()), *log.notices()]
    return Built(data, layers, log.memory, notices, cache.use if cache else None)


def parser_errors(parser: Any) -> str:
    """What the parser refused: node, operator and block of each error, in one line."""
    told = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = error.node_name(), error.node_operator()
        block = node.rpartition("/")[0]
        where = (
            f"node {node} ({operator}), in block {block}: " if block else f"node {node} ({operator}): " if node else ""
        )
        told.append(where + first_line(Exception(error.desc()), 300))
    return "; ".join(dict.fromkeys(told)) or "its parser gives no reason"


def _config(trt: Any, builder: Any, network: Any, profile: Profile, options: EngineOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: products of float32 would keep 10 bits of their inputs
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if not profile.static or -1 in tuple(network.get_input(0).shape):
        shapes = builder.create_optimization_profile()
        shapes.set_shape(INPUT_NAME, *profile.shapes())
        config.add_optimization_profile(shapes)
    return config


def _hint(log: Log, options: EngineOptions) -> str:
    said = " ".join(log.errors).lower()
    if options.workspace is not None and ("workspace" in said or "memory" in said or not log.errors):
        return f"; --workspace {options.workspace} may be too small: raise it or leave it out"
    return ""


def _logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # known at run time alone
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(severity.name, message)

    return Logger()


def _monitor(trt: Any, cancelled: threading.Event, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # known at run time alone
        """Called from TensorRT's threads; nested phases are shown one at a time, the innermost."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.steps[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                if phase_name in self.steps:
                    progress(phase_name, step + 1, self.steps[phase_name])
            return not cancelled.is_set()

    return Monitor()


def _cancellable(work: Callable[[], T], cancelled: threading.Event) -> T:
    """Runs `work` in a thread, so that Ctrl-C reaches this one at once; then waits for it to stop."""
    begin, ended = threading.Event(), threading.Event()
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        begin.wait()  # not before `start` has returned: what Ctrl-C interrupts there would be waited for by nobody
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)
        ended.set()

    try:
        threading.Thread(target=run, daemon=True).start()
        begin.set()
        while not ended.wait(0.1):
            pass
        return outcome.result()
    except BaseException:
        cancelled.set()
        if begin.is_set():
            ended.wait()
        raise


def _inspected(trt: Any, logger: Any, plan: bytes) -> list[EngineLayer]:
    """Layers by the engine's own inspector; none where the engine cannot be loaded here, for want of a GPU."""
    from ...core.hardware import has_cuda_gpu

    if not has_cuda_gpu():
        return []
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    try:
        return from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except ValueError:  # another release's form
        return []
