"""A TensorRT engine as the manifest records it."""

from __future__ import annotations

from ...core.records import Record
from ...core.verdict.sections import VerdictSection
from .engine_options import EngineOptions, Flavour, Profile
from .summary import EngineSummary


class Gpu(Record, frozen=True, kw_only=True):
    """An NVIDIA GPU: its name, compute capability and the driver's version as CUDA numbers it."""

    name: str
    compute_capability: str
    driver: str


class TimingCacheUse(Record, frozen=True, kw_only=True):
    """The timing cache of a build: its file, and how many bytes of it the build began with."""

    file: str
    loaded_bytes: int


class EngineSection(Record, frozen=True, kw_only=True):
    """The TensorRT engine beside the ONNX file.

    Attributes:
        flavour, version: of TensorRT.
        gpu: that it is bound to; None of TensorRT-RTX.
        capabilities: compute capabilities that an engine of TensorRT-RTX runs on; None of TensorRT, and in artifacts
            of earlier versions.
        options: of the build.
        profile: input sizes.
        memory: bytes of the `plan`, and of `weights` and `activations` on the device where TensorRT tells.
        timing_cache: None without one.
        layers: what it was compiled to; None where TensorRT does not tell.
        parity: the engine's own verdict; None where it was not run.
        bound_to: what it needs to be loaded, in words.
    """

    flavour: Flavour
    version: str
    gpu: Gpu | None
    capabilities: tuple[str, ...] | None = None
    options: EngineOptions
    profile: Profile
    memory: dict[str, int]
    timing_cache: TimingCacheUse | None
    layers: EngineSummary | None
    parity: VerdictSection | None
    bound_to: str
