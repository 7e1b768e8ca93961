"""What a plan is bound to, and whether it may be loaded here: checked before TensorRT is handed the file."""

from __future__ import annotations

import ctypes

from ...core.errors import ArtifactError, UnavailableError
from ...core.hardware import cuda_driver, cuda_version
from .api import AMPERE, RTX_CAPABILITIES, Api, install_command, version_tuple
from .engine_section import EngineSection, Gpu

REBUILD = "build it again with `fvexport trt --force`"


def current_gpu() -> Gpu | None:
    """The GPU that torch or the driver would use first; None without one."""
    driver, cuda = cuda_driver(), cuda_version()
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if driver is None or cuda is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        driver=f"{cuda[0]}.{cuda[1]}",
    )


def bound_to(section: EngineSection) -> str:
    """What an engine needs to be loaded, in words, from its section of the manifest."""
    title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[section.flavour]
    flags = section.options
    if section.flavour == "tensorrt-rtx":
        known = section.capabilities or RTX_CAPABILITIES  # older manifests have no list
        return f"{title} {section.version}, GPUs of compute capability {', '.join(known)}"
    release = f"{title} {version_tuple(section.version)[0]}, {section.version} or later" if (
        flags.version_compatible
    ) else f"{title} {section.version}"  # fmt: skip
    if flags.hardware_compatible:
        return f"{release}, any GPU from Ampere (compute capability 8.0) on"
    if section.gpu is None:
        return f"{release}, the GPU it was built on (compute capability ?)"
    return f"{release}, {section.gpu.name} (compute capability {section.gpu.compute_capability})"


def check_gpu(api: Api, gpu: Gpu | None, *, runs: bool) -> None:
    """Refuses a GPU that engines do not run on, before one is built.

    Args:
        api: the TensorRT that would build.
        gpu: the one here; none is fine for TensorRT-RTX, which needs none to build.
        runs: whether the engine would be run here too, and not only built.

    Raises:
        UnavailableError: this TensorRT does not support the GPU.
    """
    if gpu is None or (reason := api.why_not_on(gpu.compute_capability)) is None:
        return
    if api.flavour == "tensorrt":
        raise UnavailableError(f"{reason} ({gpu.name}); run this on a newer GPU, or add --dry-run")
    if runs:
        raise UnavailableError(
            f"{reason} (here is {gpu.name}): `{install_command('tensorrt')}`, or --no-parity to build for another GPU"
        )


def check_binding(where: str, section: EngineSection, api: Api, gpu: Gpu | None) -> None:
    """Refuses a plan that this TensorRT or this GPU cannot load.

    Args:
        where: the artifact, for the message.
        section: its manifest's section.
        api: the TensorRT that would load it.
        gpu: the GPU that would run it.

    Raises:
        ArtifactError: another flavour, version or GPU.
        UnavailableError: no GPU.
    """
    if api.flavour != section.flavour:
        backend = section.flavour
        raise ArtifactError(f"{where} holds an engine of {backend}, not of {api.flavour}: take --backend {backend}, "
                            f"or {REBUILD}")  # fmt: skip
    flags, built = section.options, version_tuple(section.version)
    here = version_tuple(api.version)
    fits = here[0] == built[0] and here >= built if flags.version_compatible else here == built
    if not fits:
        raise ArtifactError(f"{where} holds an engine of {bound_to(section)}; here is {api.title}: {REBUILD}")
    if gpu is None:
        raise UnavailableError(f"{where} holds an engine for {bound_to(section)}, and no NVIDIA GPU was found here")
    if (reason := api.why_not_on(gpu.compute_capability)) is not None:
        other = ": `fvexport trt --flavour tensorrt --force`" if api.flavour == "tensorrt-rtx" else ""
        raise ArtifactError(f"{where} holds an engine for {bound_to(section)}; here is {gpu.name}: {reason}{other}")
    if api.flavour == "tensorrt-rtx":
        return
    built_on = section.gpu and (section.gpu.name, section.gpu.compute_capability)
    same = (gpu.name, gpu.compute_capability) == built_on
    if version_tuple(gpu.compute_capability) < AMPERE if flags.hardware_compatible else not same:
        raise ArtifactError(f"{where} holds an engine for {bound_to(section)}; here is {gpu.name} (compute capability "
                            f"{gpu.compute_capability}): {REBUILD} on it")  # fmt: skip
