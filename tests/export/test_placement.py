"""Which backend `auto` takes, and what is said of artifacts that are made for another place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from fvexport.core.errors import PlacementWarning, UnavailableError
from fvexport.export import backend_table, placement
from fvexport.export.artifact import Artifact
from fvexport.export.backend_table import QuantChoice, fastest_quant_target, get_backend
from fvexport.export.engines.engine_section import EngineSection
from fvexport.export.export_options import ExportOptions
from fvexport.export.manifest import QuantizationSection, Saturation
from fvexport.export.placement import choose_backend, export_notices, runs_on, runtime_notices
from fvexport.export.runtime.encoder import Encoder

EVERYTHING = {row.name for row in backend_table.BACKENDS}
CPU = {"onnxruntime-cpu", "openvino", "eager"}
Like = Callable[..., Artifact]


class Machine:
    """Which backends run, and whether there is a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setattr
        self(CPU, gpu=False)

    def __call__(self, runs: set[str], *, gpu: bool, saturates: bool = False) -> None:
        for module in (placement, backend_table):
            self._set(module, "why_absent", lambda row: None if row.name in runs else f"{row.name} is not installed")
            self._set(module, "has_cuda_gpu", lambda: gpu)
        self._set(backend_table, "_why_not_this_gpu", lambda module: None)
        self._set(placement, "_cuda_sessions_work", lambda: True)
        self._set(placement, "_why_no_engine", lambda artifact, engine: None if gpu else "no GPU")
        self._set(placement, "products_saturate", lambda: saturates)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def like(
    static: Artifact, quantization_section: Callable[..., QuantizationSection],
    engine_section: Callable[..., EngineSection],
) -> Like:  # fmt: skip
    """`like(precision, target, engine)`: `static` under the manifest of another precision."""

    def make(precision: str, target: str | None = None, engine: str | None = None) -> Artifact:
        affected = Saturation(pairs=9, affected=4, layers={"stages.0.blocks.0.mlp.fc1": 4})
        manifest = static.manifest.replace(
            precision=precision,
            quantization=quantization_section(target=target, saturation=affected) if target else None,
            engine=engine_section(flavour=engine) if engine else None,
        )
        return Artifact(static.path, manifest)

    return make


@pytest.mark.parametrize(
    ("precision", "target", "engine", "gpu", "expected", "judge"),
    [
        ("fp32", None, None, False, "onnxruntime-cpu", "onnxruntime-cpu"),
        ("fp16", None, None, False, "onnxruntime-cpu", "onnxruntime-cpu"),
        ("bf16", None, None, False, "openvino", "onnxruntime-cpu"),
        ("int8", "openvino", None, False, "openvino", "openvino"),
        ("int8", "onnxruntime-cpu", None, False, "onnxruntime-cpu", "onnxruntime-cpu"),
        ("int8", "tensorrt", None, False, "onnxruntime-cpu", "onnxruntime-cpu"),
        ("int8", "tensorrt", "tensorrt-rtx", False, "onnxruntime-cpu", "onnxruntime-cpu"),
        ("fp8", "tensorrt", None, False, "onnxruntime-cpu", "onnxruntime-cpu"),
        ("int8", "tensorrt", "tensorrt-rtx", True, "tensorrt-rtx", "tensorrt-rtx"),
        ("fp16", None, "tensorrt", True, "tensorrt", "tensorrt"),
        ("fp32", None, None, True, "onnxruntime-cuda", "onnxruntime-cuda"),
        ("bf16", None, None, True, "onnxruntime-cuda", "onnxruntime-cuda"),
        ("int8", "openvino", None, True, "openvino", "openvino"),
    ],
)
def test_auto(
    machine: Machine, like: Like, precision: str, target: str | None, engine: str | None, gpu: bool,
    expected: str, judge: str,
) -> None:  # fmt: skip
    machine(EVERYTHING if gpu else CPU, gpu=gpu)
    artifact = like(precision, target, engine)
    found = choose_backend(artifact)
    assert found.name == expected and found.why and str(found) == f"{expected} ({found.why})"
    assert choose_backend(artifact, judging=True).name == judge
    assert get_backend(choose_backend(artifact, judging=True, taps=True).name).taps


def test_auto_where_something_is_missing(
    machine: Machine, static: Artifact, like: Like, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine({"onnxruntime-cpu"}, gpu=False)
    assert choose_backend(like("int8", "openvino")).name == "onnxruntime-cpu"
    assert choose_backend(like("bf16")).name == "onnxruntime-cpu"
    machine({"openvino"}, gpu=False)
    assert choose_backend(static).name == "openvino"
    machine(set(), gpu=False)
    assert choose_backend(static).name == "onnxruntime-cpu"  # which then says what to install
    machine({"onnxruntime-cpu", "onnxruntime-cuda"}, gpu=True)
    monkeypatch.setattr(placement, "_cuda_sessions_work", lambda: False)
    assert choose_backend(static).name == "onnxruntime-cpu"


@pytest.mark.parametrize(
    ("alias", "name"),
    [("cpu", "onnxruntime-cpu"), ("cuda", "onnxruntime-cuda"), ("gpu", "onnxruntime-cuda"), ("trt", "tensorrt")],
)
def test_aliases(static: Artifact, alias: str, name: str) -> None:
    assert get_backend(alias).name == choose_backend(static, alias).name == name
    assert str(choose_backend(static, alias)) == name


def test_trt_is_the_engines_tensorrt(static: Artifact, like: Like) -> None:
    assert choose_backend(like("int8", "tensorrt", "tensorrt-rtx"), "trt").name == "tensorrt-rtx"
    with pytest.raises(UnavailableError, match="did you mean 'openvino'"):
        choose_backend(static, "openvin")


# --- quantization targets ------------------------------------------------------------------------


def test_the_fastest_target(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_table, "is_x86", lambda: True)
    monkeypatch.setattr(backend_table, "products_saturate", lambda: False)
    found = fastest_quant_target()
    assert found.target == "openvino" and "no NVIDIA GPU found" in found.why
    monkeypatch.setattr(backend_table, "products_saturate", lambda: True)
    assert fastest_quant_target().target == "onnxruntime-cpu" and "VNNI" in fastest_quant_target().why
    monkeypatch.setattr(backend_table, "products_saturate", lambda: False)
    machine({"onnxruntime-cpu"}, gpu=False)
    assert fastest_quant_target().target == "onnxruntime-cpu"
    assert "openvino is not installed" in fastest_quant_target().why
    machine(EVERYTHING, gpu=True)
    assert fastest_quant_target().target == "tensorrt"
    assert fastest_quant_target(cpu_only=True).target == "openvino"
    monkeypatch.setattr(backend_table, "_why_not_this_gpu", lambda module: "the GPU is too old")
    assert fastest_quant_target().target == "openvino"
    monkeypatch.setattr(backend_table, "is_x86", lambda: False)
    assert fastest_quant_target().target == "onnxruntime-cpu"


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({}, [["quantized for openvino", "--target takes another"], ["-64 to 64", "--no-reduce-range"]]),
        ({"reduce_range": True}, [["quantized for openvino"]]),
        ({"target": "openvino", "reduce_range": False}, []),
        ({"target": "tensorrt"}, [["made for TensorRT", "longer than an FP32 one", "openvino"]]),
        ({"target": "onnxruntime-cpu", "reduce_range": False}, [["made for onnxruntime-cpu", "openvino"]]),
        ({"precision": "fp8"}, []),
        ({"precision": "fp16"}, []),
        ({"precision": "bf16"}, [["NOT_IMPLEMENTED", "OpenVINO"]]),
    ],
)
def test_what_an_export_says(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], parts: list[list[str]]
) -> None:
    chosen = QuantChoice("openvino", "it is fast")
    monkeypatch.setattr(backend_table, "fastest_quant_target", lambda **_: chosen)
    monkeypatch.setattr(placement, "fastest_quant_target", lambda **_: chosen)
    monkeypatch.setattr("fvexport.export.export_options.products_saturate", lambda: True)
    options = ExportOptions(**{"precision": "int8", **asked})
    found = export_notices(options, options.resolved())
    assert len(found) == len(parts)
    for notice, words in zip(found, parts, strict=True):
        assert all(word in notice for word in words), notice


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "target", "backend", "words"),
    [
        ("int8", "tensorrt", "onnxruntime-cpu", ["made for TensorRT", "slow", "fvexport trt --artifact", "--target"]),
        ("int8", "tensorrt", "openvino", ["made for TensorRT", "slow"]),
        ("int8", "openvino", "onnxruntime-cpu", ["made for OpenVINO", "take --backend openvino"]),
        ("fp8", "tensorrt", "onnxruntime-cpu", ["made for TensorRT", "fvexport trt --artifact"]),
        ("bf16", None, "onnxruntime-cpu", ["BF16", "slowly"]),
        ("int8", "openvino", "openvino", []),
        ("int8", "onnxruntime-cpu", "openvino", []),
        ("int8", "tensorrt", "tensorrt-rtx", []),
        ("int8", "tensorrt", "onnxruntime-tensorrt", []),
        ("fp8", "tensorrt", "triton", []),
        ("fp32", None, "onnxruntime-cpu", []),
        ("bf16", None, "openvino", []),
    ],
)
def test_what_is_slow_here(
    machine: Machine, like: Like, precision: str, target: str | None, backend: str, words: list[str]
) -> None:
    found = runtime_notices(like(precision, target), backend)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words), found


@pytest.mark.parametrize(("form", "told"), [("timm", True), ("mobileclip", True), ("llava", False)])
def test_artifacts_from_before_preprocessing_was_followed(static: Artifact, form: str, told: bool) -> None:
    own = replace(static.manifest.checkpoint, form=form)
    current = Artifact(static.path, static.manifest.replace(checkpoint=own))
    assert runtime_notices(current, "openvino") == []
    own = replace(own, preprocessing_source=UNSET)
    found = runtime_notices(Artifact(static.path, static.manifest.replace(checkpoint=own)), "openvino")
    assert len(found) == told
    assert all(f"for {form} checkpoints too" in text and "export it again" in text for text in found)


def test_the_encoder_warns_once(machine: Machine, static: Artifact, like: Like) -> None:
    slow = like("int8", "openvino")
    with pytest.warns(PlacementWarning, match="made for OpenVINO") as caught:
        encoder = Encoder(slow, "cpu")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert encoder.chosen.name == encoder.backend.name == "onnxruntime-cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Encoder(static).chosen.name == "onnxruntime-cpu"


@pytest.mark.parametrize(
    ("precision", "target", "words"),
    [
        ("bf16", None, "not stock onnxruntime on a CPU"),
        ("int8", "openvino", "OpenVINO; elsewhere more slowly"),
        ("fp8", "tensorrt", "TensorRT on Hopper"),
        ("fp32", None, "onnxruntime, OpenVINO, TensorRT"),
    ],
)
def test_where_files_run(static: Artifact, like: Like, precision: str, target: str | None, words: str) -> None:
    assert words in runs_on(like(precision, target).manifest)
