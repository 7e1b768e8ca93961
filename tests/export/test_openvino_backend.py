"""OpenVINO against the eager model: every kind of file, inner tensors, precision, refusals, and the command line."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors import safe_open

from fvexport.cli.main import main
from fvexport.core.errors import ArtifactError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.reparameterize import reparameterize
from fvexport.export.artifact import Artifact
from fvexport.export.manifest import QuantizationSection
from fvexport.export.parity import check_parity
from fvexport.export.parity_backends import EagerReference, ParityOpenVino, parity_backend
from fvexport.export.runtime import Encoder, OnnxRuntimeBackend, OpenVinoBackend

openvino = pytest.importorskip("openvino")

Export = Callable[..., Artifact]
Distance = Callable[[Any, Any], float]

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HALF_WORDS = "bfloat16" if HAS_BF16 else "float32"
ANY_SIZE: dict[str, Any] = {"batch": None, "dynamic_res": True}


def levels(batch: int = 1, height: int = 128, width: int = 128) -> np.ndarray:
    """Pixels 0..255, (B, 3, H, W)."""
    return np.random.default_rng(0).integers(0, 256, (batch, 3, height, width), dtype=np.uint8)


def exact(tiny: Checkpoint, *, projector: bool = False, rounded_to: torch.dtype = torch.float32) -> EagerReference:
    """PyTorch in float64, of weights as they stand in a file of that precision."""
    encoder: FastViTHD = reparameterize(tiny.encoder).to(rounded_to).double()
    return EagerReference(encoder, copy.deepcopy(tiny.connector).double() if projector and tiny.connector else None)


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({}, 1),
        ({"batch": 2}, 2),
        ({"batch": None}, 3),
        ({"projector": True}, 1),
        ({"input": "uint8"}, 1),
        (ANY_SIZE, 2),
    ],
    ids=str,
)
def test_every_kind_of_file(
    exported: Export, tiny: Checkpoint, distance: Distance, options: dict[str, Any], batch: int
) -> None:
    pixels = levels(batch)
    values = pixels.astype(np.float32) / 255
    backend = OpenVinoBackend(exported(**options))
    found = backend.run(pixels if "input" in options else values)
    assert found.dtype == np.float32
    assert distance(found, exact(tiny, projector="projector" in options).run(values)) < 1e-5
    kept = found.copy()
    backend.run(np.zeros_like(pixels if "input" in options else values))
    np.testing.assert_array_equal(found, kept)  # results are the caller's own


def test_one_file_at_many_sizes(dynamic: Artifact, tiny: Checkpoint, distance: Distance) -> None:
    backend = OpenVinoBackend(dynamic)
    for batch, height, width in ((1, 64, 192), (3, 128, 64), (1, 64, 192), (2, 192, 192)):
        values = levels(batch, height, width).astype(np.float32) / 255
        assert distance(backend.run(values), exact(tiny).run(values)) < 1e-5
        assert distance(backend.run(values), OnnxRuntimeBackend(dynamic).run(values)) < 1e-5


@pytest.mark.parametrize("io", ["fp32", "model"])
def test_fp16_is_computed_in_float32(exported: Export, tiny: Checkpoint, distance: Distance, io: str) -> None:
    backend = OpenVinoBackend(exported(precision="fp16", io=io))
    values = levels().astype(np.float32) / 256  # exact in float16
    wanted = exact(tiny, rounded_to=torch.float16).run(values)
    # A float16 output is rounded once more, to 11 bits.
    assert distance(backend.run(values), wanted) < (1e-5 if io == "fp32" else 2**-11)
    assert backend.computes == "float32"


@pytest.mark.parametrize(
    "options",
    # At 128 x 128 the last stage has four tokens and four heads.
    [{}, {"batch": None}, ANY_SIZE, {"height": 64}, {"input": "uint8", "io": "model"}],
    ids=str,
)
def test_bf16_loses_what_pytorch_loses(
    exported: Export, tiny: Checkpoint, distance: Distance, options: dict[str, Any]
) -> None:
    pixels = levels(options.get("batch", 1) or 3, options.get("height", 128), options.get("width", 128))
    values = pixels.astype(np.float32) / 255
    wanted = exact(tiny).run(values)
    own = distance(EagerReference(reparameterize(tiny.encoder), emulate_half=torch.bfloat16).run(values), wanted)
    backend = OpenVinoBackend(exported(precision="bf16", **options))
    assert distance(backend.run(pixels if "input" in options else values), wanted) < 2 * own
    assert backend.computes == HALF_WORDS


@pytest.mark.parametrize("heads", [24, 48])
def test_attention_is_fused_but_where_openvino_is_wrong(exported: Export, heads: int) -> None:
    """The released encoder's sizes: 24 heads at stride 32, 48 at stride 64."""
    from fvexport.encoder.config import FastViTHDConfig
    from fvexport.export.runtime.openvino_backend import _fuses_wrongly

    def wrong(height: int | str, width: int | str) -> bool:
        manifest = exported().manifest
        spec = replace(manifest.input, shape=(1, 3, height, width))
        return _fuses_wrongly(manifest.replace(architecture=FastViTHDConfig(), input=spec))

    assert wrong(*((128, 192) if heads == 24 else (512, 384)))
    assert not any(wrong(*size) for size in ((1024, 1024), (512, 512), (384, 384), (256, 256), ("height", "width")))


@pytest.mark.parametrize("io", ["fp32", "model"])
def test_only_other_outputs_are_converted(exported: Export, io: str) -> None:
    """A conversion from float32 to float32 would cost time."""
    from fvexport.export.runtime.openvino_backend import _float32_outputs

    read = openvino.Core().read_model(str(exported(precision="fp16", io=io).model_path))
    before = read.output(0).element_type
    made = _float32_outputs(read, openvino)
    assert (made is read) == (before == openvino.Type.f32) == (io == "fp32")
    assert made.output(0).element_type == openvino.Type.f32


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_it_computes_as_it_says(exported: Export, precision: str) -> None:
    backend = OpenVinoBackend(exported(precision=precision))
    nodes = [node.get_rt_info() for node in backend.model.get_runtime_model().get_ops()]
    used = {n["runtimePrecision"].astype(str) for n in nodes if n["layerType"].astype(str) == "Convolution"}
    assert used == {{"float32": "f32", "bfloat16": "bf16"}[backend.computes]}


@pytest.mark.parametrize("floats", ["fp32", "bf16"])
def test_quantized_files_say_what_the_rest_is(
    static: Artifact, quantization_section: Callable[..., QuantizationSection], floats: str
) -> None:
    def backend(precision: str) -> OpenVinoBackend:
        section = quantization_section(float_precision=floats)
        quantized = static.manifest.replace(precision=precision, quantization=section)
        return OpenVinoBackend(Artifact(static.path, quantized))

    int8 = backend("int8")
    assert int8.computes == f"int8, all else in {HALF_WORDS}"
    assert int8.model.get_property("INFERENCE_PRECISION_HINT").to_string() == ("bf16" if HAS_BF16 else "f32")
    words = HALF_WORDS if floats == "bf16" else "float32"
    assert backend("fp8").computes == f"{words}, rounded to FP8 at each Q/DQ pair"


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_taps(exported: Export, tiny: Checkpoint, distance: Distance, precision: str, bound: float) -> None:
    names = [name for name, _ in tiny.encoder.named_blocks()]
    values = levels().astype(np.float32) / 255
    wanted: dict[str, np.ndarray] = {}
    features = exact(tiny).run_taps(values, wanted.__setitem__)
    found, inner = parity_backend(exported(precision=precision), "openvino", taps=names).run_taps(values)
    assert distance(found, features) < bound
    assert list(inner) == names
    for name in names:
        assert inner[name].dtype == np.float32
        assert distance(inner[name], wanted[name]) < bound, name


def test_refusals(static: Artifact, exported: Export) -> None:
    with pytest.raises(ArtifactError, match=r"no tensor 'stages\.9' to compare"):
        ParityOpenVino(static, taps=["final_conv", "stages.9"])
    with pytest.raises(UnavailableError, match="takes bfloat16, which NumPy has not"):
        OpenVinoBackend(exported(precision="bf16", io="model"))


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.onnx.data"])
def test_damaged_files(static: Artifact, copied: Callable[[Artifact], Path], name: str) -> None:
    file = copied(static) / name
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"OpenVINO refuses .*export it again") as caught:
        OpenVinoBackend(Artifact(file.parent, static.manifest))  # opened before it was damaged
    assert "src/" not in str(caught.value)


def test_threads_and_missing_package(static: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(static, "openvino", threads=1)
    assert encoder.backend.model.get_property("INFERENCE_NUM_THREADS") == 1
    assert encoder.backend.model.get_property("NUM_STREAMS") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r'not installed; `pip install "fvexport\[openvino\]"`'):
        Encoder(static, "openvino")


@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "fp16"}, {"precision": "bf16", **ANY_SIZE}])
def test_parity(exported: Export, tiny: Checkpoint, options: dict[str, Any]) -> None:
    verdict = check_parity(exported(**options), checkpoint=tiny, backend="openvino", layers=True)
    assert (verdict.status, verdict.first_bad_layer) == ("pass", None)
    assert verdict.backend == f"openvino, computing {HALF_WORDS if options['precision'] == 'bf16' else 'float32'}"


def command(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[str | int | None, str, str]:
    """Exit code, stdout and stderr, with what the runtime's own code wrote there."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code, *capfd.readouterr()


def test_parity_command(static: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capfd, "parity", static.path, "--backend", "openvino", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["passed"] is True and answer["backend"] == "openvino, computing float32"


def test_encode_command(
    static: Artifact, photographs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    distance: Distance, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    photo, out = photographs["coffee"], tmp_path / "f.safetensors"
    args = ("encode", photo, "--artifact", static.path, "--out", out, "--backend", "openvino")
    code, _, err = command(capfd, *args)
    assert (code, err) == (0, "")
    with safe_open(out, "np") as file:
        assert distance(file.get_tensor(photo.as_posix()), Encoder(static)(photo)[0]) < 1e-5
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = command(capfd, *args, "--force")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: backend openvino cannot run here: openvino is not installed; `pip install")
