"""What `fvexport doctor` finds out. Nothing here may fail: whatever is broken is what it is asked about."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import hardware
from ..core.errors import first_line
from ..core.hardware import has_cuda_gpu
from ..core.progress import Progress, silent
from ..core.versions import version_of
from ..export.backend_table import (
    BACKENDS,
    BROKEN_ORT,
    ORT_PACKAGE,
    REINSTALL_ORT,
    BackendInfo,
    fastest_quant_target,
    get_backend,
    import_openvino,
    why_absent,
)
from ..export.engines.api import load_api
from ..export.engines.binding import current_gpu
from ..export.precision import PRECISIONS

REQUIRED = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "huggingface_hub", "PIL")
OPTIONAL = {
    "onnxsim": "simpler ONNX graphs",
    "skimage": "photographs for parity without --images",
    "transformers": "the language model",
    "matplotlib": "plots of a sweep's report",
    "jinja2": "a sweep's report",
    "pyarrow": "datasets that encode reads and writes",
    "ray": "encode on many machines",
    "openvino": "Intel CPUs and GPUs",
    "tensorrt": "NVIDIA engines",
    "tensorrt_rtx": "the same for RTX GPUs, built anywhere",
    "triton": "our own GPU kernels",
}
INSTALLS = {
    "onnxsim": "pip install onnxsim",
    "scikit-image": "pip install scikit-image",
    "transformers": 'pip install "fvexport[vlm]"',
    "matplotlib": 'pip install "fvexport[report]"',
    "jinja2": 'pip install "fvexport[report]"',
    "pyarrow": 'pip install "fvexport[data]"',
    "ray": 'pip install "fvexport[ray]"',
}
"""The commands that install optional packages which no backend names."""
LABELS = {"skimage": "scikit-image", "PIL": "pillow"}
"""What a package is called where it is not called as it is imported."""


@dataclass(frozen=True)
class Package:
    """A Python package: its version, None where it is not installed, and why it cannot be used."""

    name: str
    version: str | None
    required: bool
    problem: str | None
    note: str = ""

    @property
    def usable(self) -> bool:
        return self.version is not None and self.problem is None


@dataclass(frozen=True)
class TargetState:
    """A row of the table of backends, and what keeps it from running here, if anything does."""

    name: str
    precisions: tuple[str, ...]
    why_not: str | None
    install: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything `doctor` reports.

    Attributes:
        packages: fvexport and Python, required ones, then optional ones.
        providers: of onnxruntime.
        gpus: name and memory of each NVIDIA GPU.
        cpu: model, cores, cores usable by this process, features worth knowing, a container's quota in processors.
        memory_bytes, disk_bytes: available; free in the current folder. None where unknown.
        memory_limit_bytes: the container's limit, or None.
        threads: what a computation takes by default.
        targets: where an artifact can run.
        int8_target: what `--int8` is for here, and why.
        products_saturate: whether 8-bit products are cut to 16 bits (no VNNI).
        commands: command -> what it can do here.
        hub_offline: whether HF_HUB_OFFLINE forbids downloads.
        problems: sentences on what is broken.
        installs: commands that install what is missing.
    """

    packages: list[Package]
    providers: list[str]
    gpus: list[str]
    cpu: dict[str, Any]
    memory_bytes: int | None
    memory_limit_bytes: int | None
    threads: int
    disk_bytes: int | None
    targets: list[TargetState]
    int8_target: str
    products_saturate: bool
    commands: dict[str, str]
    hub_offline: bool
    problems: list[str]
    installs: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        versions = {package.name: package.version for package in self.packages}
        return {"platform": platform.platform(), "versions": versions} | asdict(self)


def examine(progress: Progress = silent) -> Machine:
    """Looks at this machine; imports every package, which takes seconds. Raises nothing."""
    packages = [Package("fvexport", __version__, True, None), Package("python", platform.python_version(), True, None)]
    names = [*REQUIRED, *OPTIONAL]
    for done, name in enumerate(names):
        progress(f"import {name}", done, len(names))
        packages.append(_package(name))
    targets = [_target(row) for row in BACKENDS]
    found = {p.name: p for p in packages}
    problems = [f"{p.name}: {p.problem}" for p in packages if p.problem]
    both = [d for d in ("onnxruntime", "onnxruntime-gpu") if version_of(d)]
    if len(both) > 1:
        problems.append(f"{' and '.join(both)} overwrite one another: uninstall both, then install {ORT_PACKAGE}")
    disk = None
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(Path.cwd()).free
    missing = [p.name for p in packages if p.required and not p.usable]
    installs = [f"pip install {ORT_PACKAGE if name == 'onnxruntime' else name}" for name in missing]
    gpu = has_cuda_gpu()
    for row in targets:
        lacks_gpu = get_backend(row.name).gpu and not gpu  # no package brings one
        if row.why_not and row.why_not != BROKEN_ORT and not lacks_gpu and row.install not in installs:
            installs.append(row.install)
    if any(t.why_not == BROKEN_ORT for t in targets):
        problems.append(BROKEN_ORT)
        installs.insert(0, REINSTALL_ORT)
    installs += dict.fromkeys(command for name, command in INSTALLS.items() if not found[name].usable)
    return Machine(
        packages=packages,
        providers=_providers(),
        gpus=hardware.gpus(),
        cpu=hardware.cpu(),
        memory_bytes=hardware.memory_available(),
        memory_limit_bytes=hardware.memory_limit(),
        threads=hardware.usable_threads(),
        disk_bytes=disk,
        targets=targets,
        int8_target=_int8_target(),
        products_saturate=hardware.products_saturate(),
        commands=_commands(found, targets),
        hub_offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        problems=problems,
        installs=installs,
    )


def _package(module: str) -> Package:
    name, required = LABELS.get(module, module), module in REQUIRED
    note = "required" if required else OPTIONAL[module]
    logging.disable(logging.WARNING)  # matplotlib says where it cannot write before it raises
    try:
        if importlib.util.find_spec(module) is None:
            return Package(name, None, required, None, f"not installed ({note})")
        imported = import_openvino() if module == "openvino" else importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a broken package fails in any way at all
        problem = f"fails to import: {_reason(error)}"
        return Package(name, version_of(name), required, problem, f"broken ({note})")
    finally:
        logging.disable(logging.NOTSET)
    # Its own word first: onnxruntime and others are published under several names.
    version = getattr(imported, "__version__", None) or version_of(name) or "unknown"
    return Package(name, str(version).removeprefix("v"), required, None, note)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def _target(row: BackendInfo) -> TargetState:
    try:
        why_not = why_absent(row)
    except (Exception, SystemExit) as error:  # it imports its runtime
        why_not = f"{row.module} fails to import: {_reason(error)}"
    return TargetState(row.name, tuple(row.precisions), why_not, row.install, row.note)


def _int8_target() -> str:
    try:
        found = fastest_quant_target()
    except (Exception, SystemExit) as error:  # it imports runtimes
        return f"unknown: {_reason(error)}"
    return f"{found.target} ({found.why})"


def _commands(found: dict[str, Package], targets: list[TargetState]) -> dict[str, str]:
    def without(*names: str) -> str | None:
        missing = [name for name in names if not found[name].usable]
        return f"not here: {', '.join(missing)} missing or broken" if missing else None

    ready = [t.name for t in targets if t.why_not is None]
    through = f"through {', '.join(ready)}" if ready else "not here: no target can run"
    photographs = "" if found["scikit-image"].usable else "; name photographs with --images"
    writes = f"writes {', '.join(PRECISIONS)}" + ("" if found["onnxsim"].usable else ", not simplified (no onnxsim),")
    checks = f" and checks them {through}{photographs}" if ready else "; with --no-parity alone, no target can run"
    return {
        "onnx": without("torch", "onnx", "onnxscript", "onnxruntime", "pillow") or writes + checks,
        "trt": without("torch", "onnx", "onnxscript", "onnxruntime", "pillow") or _builds(),
        "parity": without("torch", "onnx", "pillow") or through + (photographs if ready else ""),
        "inspect": without("onnx") or "reads any artifact",
        "encode": without("onnx", "pillow") or through,
        "ask": without("torch", "transformers", "pillow") or "with PyTorch's encoder, or an artifact " + through,
        "eval": without("torch", "transformers", "pillow") or "with PyTorch's encoder, and artifacts " + through,
    }


def _builds() -> str:
    try:
        api = load_api()
        gpu = current_gpu()
        why_not = None if gpu is None else api.why_not_on(gpu.compute_capability)
        if why_not is not None and api.flavour == "tensorrt":
            return f"not here: {why_not}; --dry-run writes the ONNX file"
        return f"builds engines with {api.title}" + (f", for other GPUs with --no-parity: {why_not}" if why_not else "")
    except (Exception, SystemExit) as error:  # it imports TensorRT
        reason = first_line(error, 400)
        return f"not here: {reason}" + ("" if "--dry-run" in reason else "; --dry-run writes the ONNX file")


def _providers() -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except (Exception, SystemExit):
        return []
