"""The one module that knows TensorRT's versions and flavours apart: 10, 11, and TensorRT for RTX.

Everything else in this package calls what all of them have. What differs, and is settled here:

    precision           strongly typed networks on all: a flag on 10, the only kind on 11
    inspector's JSON    `Bindings` on 10, `I/O Tensors` on 11
    where it builds     full TensorRT on the GPU that will run the engine; RTX anywhere, for Ampere and later
    what it offers      RTX has no compatibility levels (its engines always are), and measures nothing to be cached

Sources: NVIDIA's "Porting Guide for TensorRT Applications" and "CPU-Only AOT and TensorRT-RTX Engines"
(docs.nvidia.com/deeplearning/tensorrt-rtx), the API references of TensorRT 10.13 and 11.4.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UnavailableError, first_line
from ...hardware import cuda_version
from ..targets import has_cuda_gpu
from .options import FLAVOURS, EngineOptions, Flavour

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = (10, 0)
"""Strongly typed networks, `execute_async_v3` and V2 memory sizes."""


@dataclass(frozen=True)
class Api:
    """An imported TensorRT.

    Attributes:
        trt: the module.
        flavour: what its libraries are.
        version: of the module, as text.
    """

    trt: Any
    flavour: Flavour
    version: str

    @property
    def title(self) -> str:
        """`TensorRT 10.13.3.9`, `TensorRT-RTX 1.7`."""
        return f"{'TensorRT-RTX' if self.flavour == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network: types stand in the ONNX file, no builder flag changes them."""
        return builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def check(self, options: EngineOptions) -> None:
        """Raises UnavailableError for an option that this TensorRT would refuse in the middle of a build, or ignore."""
        if self.flavour != "tensorrt-rtx":
            return
        reasons = {
            "--hardware-compatible": (
                options.hardware_compatible,
                "its engines run on any GPU from Ampere on",
            ),
            "--version-compatible": (options.version_compatible, "an engine of it runs on the same release alone"),
            "--timing-cache": (options.timing_cache, "it chooses kernels where the engine runs, and times none before"),
            "--strip": (options.strip and not has_cuda_gpu(), "it leaves weights out only where it sees a GPU"),
        }
        for option, (asked, why) in reasons.items():
            if asked:
                raise UnavailableError(f"{self.title} has no {option} here: {why}; leave it out")


def is_installed(flavour: Flavour) -> bool:
    """Whether its module can be found; imports nothing."""
    return importlib.util.find_spec(MODULES[flavour]) is not None


def load_api(flavour: Flavour | None = None, *, to_build: bool = True) -> Api:
    """Imports TensorRT, and makes sure that it can do what is wanted.

    Args:
        flavour: which one; None for the full one where there is a GPU for it, else the one that is installed.
        to_build: full TensorRT builds on a GPU alone; with False it is only imported.

    Raises:
        UnavailableError: none is installed (with the command that installs it here), it does not import, is too old, or
            needs a GPU that is not there.
    """
    if flavour == "tensorrt" and to_build and not has_cuda_gpu():
        raise UnavailableError(
            "full TensorRT builds an engine on the GPU that will run it, and no NVIDIA GPU was found here; "
            f"TensorRT-RTX builds anywhere: `{install_command('tensorrt-rtx')}`, or run this on the GPU's machine"
        )
    gpu = has_cuda_gpu()
    order: tuple[Flavour, ...] = (flavour,) if flavour else FLAVOURS if gpu or not to_build else ("tensorrt-rtx",)
    found = next((name for name in order if is_installed(name)), None)
    if found is None:
        raise UnavailableError(f"{_wanted(flavour)} is not installed: `{install_command(flavour)}`")
    try:
        trt = importlib.import_module(MODULES[found])
        version = str(trt.__version__)
    except Exception as error:  # missing CUDA libraries and the like, in many guises
        raise UnavailableError(
            f"{MODULES[found]} is installed and does not import ({first_line(error)}): `{install_command(found)}`"
        ) from error
    api = Api(trt, found, version)
    if api.flavour == "tensorrt" and version_tuple(version)[:2] < OLDEST:
        raise UnavailableError(f"TensorRT {version} is too old, 10.0 is the first: `{install_command('tensorrt')}`")
    return api


def version_tuple(version: str) -> tuple[int, ...]:
    """`10.13.3.9` -> (10, 13, 3, 9); what follows a part that is no number is left out."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)


def install_command(flavour: Flavour | None = None) -> str:
    """What installs TensorRT on this machine."""
    if flavour == "tensorrt-rtx" or (flavour is None and not has_cuda_gpu() and not _is_jetson()):
        cuda = cuda_major()
        return f"pip install tensorrt-rtx-cu{cuda if cuda == 12 else 13}"
    if _is_jetson():
        return "sudo apt-get install nvidia-tensorrt python3-libnvinfer"
    cuda = cuda_major()
    return f"pip install tensorrt-cu{cuda}" if cuda else "pip install tensorrt"


def cuda_major() -> int | None:
    """The major CUDA version that this machine's driver runs, or None without a driver."""
    found = cuda_version()
    return found[0] if found else None


def io_tensors(inspected: dict[str, Any]) -> list[Any]:
    """Inputs and outputs in an inspector's JSON, under the name of either version."""
    return list(inspected.get("I/O Tensors", inspected.get("Bindings", [])))


def _wanted(flavour: Flavour | None) -> str:
    return {"tensorrt-rtx": "TensorRT-RTX"}.get(flavour or "", "TensorRT")


def _is_jetson() -> bool:
    return platform.machine() == "aarch64" and Path("/etc/nv_tegra_release").exists()
