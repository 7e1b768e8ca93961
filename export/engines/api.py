"""The one module that knows TensorRT's versions and flavours apart: 10, 11, and TensorRT for RTX.

Everything else in this package calls what all of them have. What differs, and is settled here:

    precision           strongly typed networks on all: a flag on 10, the only kind on 11
    inspector's JSON    `Bindings` on 10, `I/O Tensors` on 11
    where it builds     full TensorRT on the GPU that will run the engine; RTX anywhere, for the GPUs that it lists
    where it runs       full TensorRT from Turing on (Volta before 10.5); RTX on the compute capabilities that it lists
    first runs          RTX specializes kernels for a shape in the background, unless told to do so at once
    what it offers      RTX has no compatibility levels (its engines always are), and measures nothing to be cached

Sources: NVIDIA's "Porting Guide for TensorRT Applications" and "CPU-Only AOT and TensorRT-RTX Engines"
(docs.nvidia.com/deeplearning/tensorrt-rtx), the API references of TensorRT 10.13 and 11.4, the release notes of 10.5.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import UnavailableError, first_line
from ...core.hardware import cuda_version, has_cuda_gpu
from .engine_options import FLAVOURS, EngineOptions, Flavour

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = (10, 0)
"""Strongly typed networks, `execute_async_v3` and V2 memory sizes."""

WITHOUT_VOLTA = (10, 5)
"""The first full TensorRT that needs Turing."""
VOLTA, TURING, AMPERE = (7, 0), (7, 5), (8, 0)
"""Compute capabilities. Engines of TensorRT-RTX run from Ampere on, unless they are built for Turing alone."""

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that engines of TensorRT-RTX 1.7 run on, for when the library is not there to be asked.

It lists 7.5 too, but for engines that are built for Turing alone. Hopper (9.0) and the data-centre Blackwells (10.0,
10.3) are not among them.
"""


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

    def why_not_on(self, capability: str) -> str | None:
        """None if engines run on GPUs of a compute capability such as `9.0`, else the reason."""
        if self.flavour == "tensorrt-rtx":
            if capability in (known := self.capabilities()):
                return None
            full = "; full TensorRT does" if version_tuple(capability) >= TURING else ""
            return f"TensorRT-RTX does not run on compute capability {capability}, only on {', '.join(known)}{full}"
        oldest = VOLTA if version_tuple(self.version) < WITHOUT_VOLTA else TURING
        return None if version_tuple(capability) >= oldest else (
            f"{self.title} needs compute capability {oldest[0]}.{oldest[1]} or later, and this GPU has {capability}"
        )  # fmt: skip

    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that TensorRT-RTX's engines run on, by its own list; `8.0`, `8.6`, … in order."""
        listed = getattr(self.trt, "ComputeCapability", None)
        if listed is None:
            return RTX_CAPABILITIES
        numbers = [re.fullmatch(r"SM(\d+)(\d)", name) for name in listed.__members__]
        found = sorted((int(n[1]), int(n[2])) for n in numbers if n)
        return tuple(f"{major}.{minor}" for major, minor in found if (major, minor) >= AMPERE)

    def create_context(self, engine: Any) -> Any:
        """An execution context whose first run already has the kernels of all later ones.

        By default TensorRT-RTX starts a new shape on kernels for any shape, and replaces them by ones for this shape
        when those are compiled. A CUDA graph would keep the first for ever, and results would change on the way.
        """
        if self.flavour != "tensorrt-rtx" or not hasattr(self.trt, "DynamicShapesKernelSpecializationStrategy"):
            return engine.create_execution_context()
        runtime_config = engine.create_runtime_config()
        strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.dynamic_shapes_kernel_specialization_strategy = strategy
        return engine.create_execution_context(runtime_config)

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
        meanwhile = "; --dry-run writes the ONNX file and prints the trtexec line without it" if to_build else ""
        raise UnavailableError(f"{_wanted(flavour)} is not installed: `{install_command(flavour)}`{meanwhile}")
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


def _wanted(flavour: Flavour | None) -> str:
    return {"tensorrt-rtx": "TensorRT-RTX"}.get(flavour or "", "TensorRT")


def _is_jetson() -> bool:
    return platform.machine() == "aarch64" and Path("/etc/nv_tegra_release").exists()
