"""What may be loaded where: decided from the manifest, before TensorRT is handed a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fvexport.errors import ArtifactError, UnavailableError
from fvexport.export.targets import has_cuda_gpu
from fvexport.export.tensorrt.api import Api
from fvexport.export.tensorrt.binding import Gpu, bound_to, check_binding, current_gpu

L4 = Gpu("NVIDIA L4", "8.9", "12.8")
T4 = Gpu("Tesla T4", "7.5", "12.8")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "12.8")
FULL, RTX = Api(None, "tensorrt", "10.13.3.9"), Api(None, "tensorrt-rtx", "1.7.1.116")


def engine(api: Api = FULL, gpu: Gpu | None = L4, **flags: bool) -> dict[str, Any]:
    options = {"hardware_compatible": False, "version_compatible": False, "strip": False} | flags
    made_on = gpu.to_dict() if gpu and api.flavour == "tensorrt" else None
    return {"flavour": api.flavour, "version": api.version, "gpu": made_on, "options": options}


@pytest.mark.parametrize(
    ("section", "api", "gpu"),
    [
        (engine(), FULL, L4),
        (engine(hardware_compatible=True), FULL, RTX_4090),
        (engine(version_compatible=True), replace(FULL, version="10.14.0.1"), L4),
        (engine(RTX, None), RTX, RTX_4090),
        (engine(RTX, L4), RTX, RTX_4090),
    ],
)
def test_what_fits(section: dict[str, Any], api: Api, gpu: Gpu) -> None:
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
        (engine(RTX), RTX, T4, r"any RTX GPU from Ampere.*here is Tesla T4"),
    ],
)  # fmt: skip
def test_what_does_not(section: dict[str, Any], api: Api, gpu: Gpu, words: str) -> None:
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
    assert bound_to(engine(RTX)) == "TensorRT-RTX 1.7.1.116, any RTX GPU from Ampere (compute capability 8.0) on"


def test_the_gpu_here() -> None:
    gpu = current_gpu()
    assert (gpu is not None) == has_cuda_gpu()
    assert gpu is None or float(gpu.compute_capability) >= 5
