"""What may be loaded where: decided from the manifest, before TensorRT is handed a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fvexport.core.errors import ArtifactError, UnavailableError
from fvexport.core.hardware import has_cuda_gpu
from fvexport.export.engines.api import RTX_CAPABILITIES, Api
from fvexport.export.engines.binding import bound_to, check_binding, check_gpu, current_gpu
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.engine_section import EngineSection, Gpu


def card(name: str, compute_capability: str, driver: str) -> Gpu:
    return Gpu(name=name, compute_capability=compute_capability, driver=driver)


L4 = card("NVIDIA L4", "8.9", "12.8")
T4 = card("Tesla T4", "7.5", "12.8")
RTX_4090 = card("NVIDIA GeForce RTX 4090", "8.9", "12.8")
A100 = card("NVIDIA A100-SXM4-80GB", "8.0", "12.8")
H100 = card("NVIDIA H100 80GB HBM3", "9.0", "13.0")
V100 = card("Tesla V100-SXM2-32GB", "7.0", "12.8")
FULL, RTX = Api(None, "tensorrt", "10.13.3.9"), Api(None, "tensorrt-rtx", "1.7.1.116")


def engine(
    api: Api = FULL, gpu: Gpu | None = L4, capabilities: tuple[str, ...] | None = None, **flags: bool
) -> EngineSection:
    return EngineSection(
        flavour=api.flavour, version=api.version, gpu=gpu if api.flavour == "tensorrt" else None,
        capabilities=capabilities, options=EngineOptions(**flags),
        profile=Profile(batch=(1,) * 3, height=(64,) * 3, width=(64,) * 3), memory={},
        timing_cache=None, layers=None, parity=None, bound_to="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("section", "api", "gpu"),
    [
        (engine(), FULL, L4),
        (engine(hardware_compatible=True), FULL, RTX_4090),
        (engine(version_compatible=True), replace(FULL, version="10.14.0.1"), L4),
        (engine(RTX, None), RTX, RTX_4090),
        (engine(RTX, L4), RTX, RTX_4090),
        (engine(RTX, None), RTX, A100),
        (engine(gpu=H100), FULL, H100),
        (engine(hardware_compatible=True), FULL, H100),
    ],
)
def test_what_fits(section: EngineSection, api: Api, gpu: Gpu) -> None:
    check_binding("there", section, api, gpu)


@pytest.mark.parametrize(
    ("section", "api", "gpu", "words"),
    [
        (engine(RTX), FULL, L4, "holds an engine of tensorrt-rtx, not of tensorrt: take --backend tensorrt-rtx"),
        (engine(), RTX, L4, "holds an engine of tensorrt, not of tensorrt-rtx: take --backend tensorrt"),
        (engine(), replace(FULL, version="10.13.4"), L4, r"TensorRT 10\.13\.3\.9.*here is TensorRT 10\.13\.4: build"),
        (engine(version_compatible=True), replace(FULL, version="11.0.0"), L4, "3.9 or later.*here is TensorRT 11"),
        (engine(version_compatible=True), replace(FULL, version="10.12.0"), L4, "here is TensorRT 10.12.0"),
        (engine(), FULL, RTX_4090, r"for .*NVIDIA L4 \(compute capability 8\.9\); here is NVIDIA GeForce RTX 4090"),
        (engine(hardware_compatible=True), FULL, T4, r"any GPU from Ampere.*here is Tesla T4 \(compute"),
        (engine(RTX), RTX, T4, r"of compute capability 8\.0, .*here is Tesla T4: TensorRT-RTX does not run on .* 7\.5"),
        (engine(RTX), RTX, H100, r"here is NVIDIA H100 .*run on compute capability 9\.0, only on 8\.0, 8\.6, 8\.9, "
                                 r"12\.0, 12\.1; full TensorRT does: `fvexport trt --flavour tensorrt --force`"),
        (engine(gpu=V100), FULL, V100, r"TensorRT 10\.13\.3\.9 needs compute capability 7\.5 or later, and this"),
    ],
)  # fmt: skip
def test_what_does_not(section: EngineSection, api: Api, gpu: Gpu, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        check_binding("there", section, api, gpu)


def test_no_gpu() -> None:
    with pytest.raises(UnavailableError, match=r"there holds an engine for TensorRT-RTX .* and no NVIDIA GPU"):
        check_binding("there", engine(RTX), RTX, None)


def test_bound_to_is_told_in_words() -> None:
    assert bound_to(engine()) == "TensorRT 10.13.3.9, NVIDIA L4 (compute capability 8.9)"
    assert bound_to(engine(version_compatible=True, hardware_compatible=True)) == (
        "TensorRT 10, 10.13.3.9 or later, any GPU from Ampere (compute capability 8.0) on"
    )
    assert bound_to(engine(RTX)) == "TensorRT-RTX 1.7.1.116, GPUs of compute capability 8.0, 8.6, 8.9, 12.0, 12.1"
    assert bound_to(engine(RTX, capabilities=("8.9",))) == "TensorRT-RTX 1.7.1.116, GPUs of compute capability 8.9"


def test_rtx_is_asked_what_it_runs_on(tensorrt_rtx: Any) -> None:
    api = Api(tensorrt_rtx, "tensorrt-rtx", tensorrt_rtx.__version__)
    assert api.capabilities() == RTX_CAPABILITIES  # of 1.7; a later one may list more

    class Later:
        class ComputeCapability:
            __members__ = dict.fromkeys(["NONE", "CURRENT", "SM75", "SM121", "SM90", "SM89"])

    later = replace(api, trt=Later)
    assert later.capabilities() == ("8.9", "9.0", "12.1")
    assert later.why_not_on("9.0") is None and "only on 8.9, 9.0, 12.1" in str(later.why_not_on("12.0"))


@pytest.mark.parametrize(
    ("api", "capability", "reason"),
    [
        (replace(FULL, version="10.4.0"), "7.0", None),
        (replace(FULL, version="10.5.0"), "7.0", "TensorRT 10.5.0 needs compute capability 7.5 or later"),
        (replace(FULL, version="10.3.0"), "6.1", "TensorRT 10.3.0 needs compute capability 7.0 or later"),
        (replace(FULL, version="11.4.0.106"), "10.3", None),
        (RTX, "10.0", "TensorRT-RTX does not run on compute capability 10.0, only on 8.0"),
        (RTX, "12.1", None),
    ],
)
def test_what_runs_on_which_gpu(api: Api, capability: str, reason: str | None) -> None:
    found = api.why_not_on(capability)
    assert found == reason or (found is not None and reason is not None and found.startswith(reason))
    assert ("full TensorRT does" in str(found)) == (api is RTX and reason is not None)


def test_a_gpu_is_refused_before_a_build() -> None:
    for gpu in (None, RTX_4090, A100):
        check_gpu(RTX, gpu, runs=True)
    check_gpu(FULL, H100, runs=True)
    check_gpu(RTX, H100, runs=False)  # built for another
    with pytest.raises(UnavailableError, match=r"here is NVIDIA H100.*`pip install tensorrt.*or --no-parity to build"):
        check_gpu(RTX, H100, runs=True)
    for runs in (True, False):
        with pytest.raises(UnavailableError, match=r"needs compute capability 7\.5 .*Tesla V100.*or add --dry-run"):
            check_gpu(FULL, V100, runs=runs)


def test_the_gpu_here() -> None:
    gpu = current_gpu()
    assert (gpu is not None) == has_cuda_gpu()
    assert gpu is None or float(gpu.compute_capability) >= 5
