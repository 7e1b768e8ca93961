"""Model repositories, read by the server's own schema and, as its backend does, by onnxruntime."""

from __future__ import annotations

import errno
import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from fvexport.core.errors import ArtifactError, ConfigError, FvexportError, one_line
from fvexport.export import triton_server
from fvexport.export.artifact import Artifact
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.engine_section import EngineSection, Gpu
from fvexport.export.manifest import FileEntry, QuantizationSection
from fvexport.export.server_options import Served, ServerOptions
from fvexport.export.triton_server import artifact_bytes, check_repository, write_repository

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("tritonclient")


schema = runpy.run_path(str(Path(__file__).parents[1] / "triton_schema.py"))["load_schema"]()


def config(folder: Path) -> Any:
    """config.pbtxt, parsed; then checked as the server's core does before any backend sees it."""
    found = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), schema.ModelConfig())
    assert found.name == folder.name and found.backend in ("onnxruntime", "tensorrt")
    assert (folder / "1" / found.default_model_filename).is_file()
    for tensor_spec in (*found.input, *found.output):
        assert tensor_spec.name and tensor_spec.data_type != schema.TYPE_INVALID
        assert tensor_spec.dims and all(size == -1 or size > 0 for size in tensor_spec.dims)
    if found.HasField("dynamic_batching"):
        assert all(1 <= size <= found.max_batch_size for size in found.dynamic_batching.preferred_batch_size)
        assert found.max_batch_size > 1
    return found


def whole_shape(found: Any, tensor_spec: Any) -> list[int]:
    return [-1, *tensor_spec.dims] if found.max_batch_size > 0 else list(tensor_spec.dims)


TYPES = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(uint8)": "TYPE_UINT8"}
CASES: dict[str, dict[str, Any]] = {
    "static": {},
    "batch of 2, uint8 to half": {"batch": 2, "precision": "fp16", "input": "uint8", "io": "model"},
    "any batch, any size": {"batch": None, "dynamic_res": True},
}


@pytest.mark.parametrize("case", CASES)
def test_onnx_is_what_the_server_demands(exported: Callable[..., Artifact], tmp_path: Path, case: str) -> None:
    artifact = exported(**CASES[case])
    folder = write_repository(artifact, tmp_path / "models", name="eye")
    assert folder == tmp_path / "models" / "eye"
    assert sorted(file.name for file in (folder / "1").iterdir()) == ["encoder.onnx.data", "model.onnx"]
    found = config(folder)
    # onnxruntime_backend compares the whole of each shape with the file's own: -1 has to stand where the file is free.
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for ours, theirs in ((found.input, session.get_inputs()), (found.output, session.get_outputs())):
        (tensor_spec,), (entry,) = ours, theirs
        assert tensor_spec.name == entry.name
        assert schema.DataType.Name(tensor_spec.data_type) == TYPES[entry.type]
        assert whole_shape(found, tensor_spec) == [size if isinstance(size, int) else -1 for size in entry.shape]
    free = "any" in case
    assert found.max_batch_size == (8 if free else 0)
    assert found.HasField("dynamic_batching") == free
    assert [group.kind for group in found.instance_group] == [schema.ModelInstanceGroup.KIND_AUTO]


def test_it_computes_what_the_artifact_does(static: Artifact, tmp_path: Path) -> None:
    folder = write_repository(static, tmp_path, name="eye")
    x = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    outputs = [
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"pixel_values": x})[0]
        for path in (static.model_path, folder / "1" / "model.onnx")
    ]
    np.testing.assert_array_equal(*outputs)


def test_it_says_what_it_is(static: Artifact, tmp_path: Path) -> None:
    found = config(write_repository(static, tmp_path)).parameters
    assert found["fvexport.checkpoint"].string_value == "seeded:0"
    assert json.loads(found["fvexport.preprocessing"].string_value) == static.manifest.preprocessor.to_dict()
    assert found["fvexport.model_sha256"].string_value == static.manifest.files["encoder.onnx"].sha256


def test_batch_asked_for(static: Artifact, dynamic: Artifact, tmp_path: Path) -> None:
    assert config(write_repository(dynamic, tmp_path, name="a", max_batch_size=32)).max_batch_size == 32
    single = config(write_repository(dynamic, tmp_path, name="b", max_batch_size=1))
    assert single.max_batch_size == 1 and not single.HasField("dynamic_batching")
    with pytest.raises(ConfigError, match=r"batches of 1 alone.*--batch dynamic"):
        write_repository(static, tmp_path, name="c", max_batch_size=4)
    with pytest.raises(ConfigError, match="at least 1; found 0"):
        write_repository(dynamic, tmp_path, name="c", max_batch_size=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_where_instances_run(
    static: Artifact, tmp_path: Path, quantization_section: Callable[..., QuantizationSection]
) -> None:
    def kind(precision: str, quantized_for: str | None = None) -> str:
        section = quantization_section(target=quantized_for, float_precision="fp16") if quantized_for else None
        manifest = static.manifest.replace(precision=precision, quantization=section)
        folder = write_repository(Artifact(static.path, manifest), tmp_path, name="eye", force=True)
        (group,) = config(folder).instance_group
        return str(schema.ModelInstanceGroup.Kind.Name(group.kind))

    assert kind("fp16") == kind("int8", "tensorrt") == "KIND_AUTO"
    assert kind("bf16") == "KIND_GPU"
    assert kind("int8", "onnxruntime-cpu") == kind("int8", "openvino") == "KIND_CPU"
    with pytest.raises(ConfigError, match=r"FP8.*fvexport trt --fp8 --triton-server"):
        kind("fp8", "tensorrt")


def test_instances_and_threads(
    static: Artifact, tmp_path: Path, quantization_section: Callable[..., QuantizationSection]
) -> None:
    def written(**options: Any) -> Any:
        folder = write_repository(static, tmp_path, name="eye", server=ServerOptions(**options), force=True)
        return config(folder)

    found = written(kind="cpu", instances=3, intra_op_threads=2, inter_op_threads=4)
    (instances,) = found.instance_group
    assert (instances.count, schema.ModelInstanceGroup.Kind.Name(instances.kind)) == (3, "KIND_CPU")
    own = {key: value.string_value for key, value in found.parameters.items() if not key.startswith("fvexport.")}
    assert own == {"intra_op_thread_count": "2", "inter_op_thread_count": "4", "execution_mode": "1"}
    assert written(intra_op_threads=1).parameters["intra_op_thread_count"].string_value == "1"
    assert written(kind="gpu").instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert not [key for key in written(instances=2).parameters if "thread" in key]


@pytest.mark.parametrize(
    ("options", "served", "words"),
    [
        ({"instances": 0}, None, "1 to 1024 instances"),
        ({"intra_op_threads": 0}, None, "1 to 1024 threads"),
        ({"kind": "tpu"}, None, "auto, cpu, gpu"),
        ({"kind": "cpu"}, Served(precision="fp16", platform="plan"), "runs on a GPU"),
        ({"intra_op_threads": 2}, Served(precision="fp16", platform="plan"), "threads are for instances on a CPU"),
        ({"kind": "gpu", "inter_op_threads": 2}, Served(precision="fp32"), "threads are for instances on a CPU"),
        ({"kind": "cpu"}, Served(precision="bf16"), "no BF16 convolution"),
    ],
)
def test_instances_that_the_server_cannot_make(
    tmp_path: Path, options: dict[str, Any], served: Served | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_repository(tmp_path, "a", served or Served(precision="fp32"), server=ServerOptions(**options))


def test_the_size_that_is_asked_for(static: Artifact) -> None:
    weights = (static.path / "encoder.onnx.data").stat().st_size
    assert weights / 2 < artifact_bytes("fp32", static.manifest.architecture) < 1.5 * weights


# --- engines ----------------------------------------------------------------------------------------


@pytest.fixture
def with_engine(tmp_path: Path, engine_section: Callable[..., EngineSection]) -> Callable[..., Artifact]:
    """`with_engine(artifact, batch, flavour=…)`: a copy with a plan, whose bytes do not matter here."""

    def make(
        source: Artifact, batch: tuple[int, int, int] = (1, 1, 1), *, flavour: str = "tensorrt", strip: bool = False
    ) -> Artifact:
        folder = shutil.copytree(source.path, tmp_path / "with engine", dirs_exist_ok=True)
        (folder / "encoder.plan").write_bytes(b"a plan")
        engine = engine_section(
            flavour=flavour, version="10.13.3.9", gpu=Gpu(name="NVIDIA L4", compute_capability="8.9", driver="12.8"),
            options=EngineOptions(strip=strip), profile=Profile(batch=batch, height=(128,) * 3, width=(128,) * 3),
        )  # fmt: skip
        files = source.manifest.files | {"encoder.plan": FileEntry(bytes=6, sha256="0" * 64)}
        manifest = source.manifest.replace(engine=engine, files=files)
        (folder / "manifest.json").write_text(manifest.to_json())
        return Artifact.open(folder)

    return make


def test_an_engine_for_one_shape(static: Artifact, with_engine: Callable[..., Artifact], tmp_path: Path) -> None:
    folder = write_repository(with_engine(static), tmp_path / "models")
    assert folder.name == "with-engine"
    assert [(file.name, file.read_bytes()) for file in (folder / "1").iterdir()] == [("model.plan", b"a plan")]
    found = config(folder)
    assert found.backend == "tensorrt" and found.max_batch_size == 0
    assert list(found.input[0].dims) == [1, 3, 128, 128]
    assert found.optimization.cuda.graphs and not found.HasField("dynamic_batching")
    assert found.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert found.parameters["fvexport.tensorrt"].string_value == "10.13.3.9"
    assert found.parameters["fvexport.gpu"].string_value == "NVIDIA L4"


def test_an_engine_for_a_range(dynamic: Artifact, with_engine: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = with_engine(dynamic, (1, 4, 16))
    found = config(write_repository(artifact, tmp_path, name="a"))
    assert found.max_batch_size == 16 and list(found.dynamic_batching.preferred_batch_size) == [4]
    assert list(found.input[0].dims) == [3, -1, -1]
    assert not found.optimization.cuda.graphs
    small = config(write_repository(artifact, tmp_path, name="b", max_batch_size=2))
    assert small.max_batch_size == 2 and not small.dynamic_batching.preferred_batch_size
    for batch, asked, words in (((1, 4, 16), 32, "takes 16 images at most"), ((2, 4, 8), None, "--batch 1:4:8")):
        with pytest.raises(ConfigError, match=words):
            write_repository(with_engine(dynamic, batch), tmp_path, name="c", max_batch_size=asked)


def test_an_engine_that_the_server_cannot_load(
    static: Artifact, with_engine: Callable[..., Artifact], tmp_path: Path
) -> None:
    for kind, words in (({"flavour": "tensorrt-rtx"}, "TensorRT-RTX"), ({"strip": True}, "without --strip")):
        artifact = with_engine(static, **kind)
        with pytest.raises(ConfigError, match=words):
            write_repository(artifact, tmp_path / "models", name="a", platform="plan")
        assert not (tmp_path / "models").exists()
    assert config(write_repository(artifact, tmp_path / "models", name="b")).backend == "onnxruntime"
    with pytest.raises(ConfigError, match="it has none"):
        write_repository(static, tmp_path / "models", name="c", platform="plan")


# --- writing ----------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(static: Artifact, tmp_path: Path) -> None:
    folder = write_repository(static, tmp_path, name="eye")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").write_text("theirs")
    (folder / "1" / "model.plan").touch()
    with pytest.raises(ArtifactError, match="--force"):
        write_repository(static, tmp_path, name="eye")
    assert (folder / "1" / "model.plan").exists()
    write_repository(static, tmp_path, name="eye", force=True)
    assert not (folder / "1" / "model.plan").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photo.jpg").touch()
    for name in ("home", "other"):
        with pytest.raises(ArtifactError, match="no model that fvexport wrote"):
            write_repository(static, tmp_path, name=name, force=True)
    assert (tmp_path / "other" / "config.pbtxt").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eye", "home", "other"]


@pytest.mark.parametrize("mine", ["labels.txt", "1/model.py", "2/model.onnx", "1/model.onnx.bak/weights"])
def test_a_model_with_a_user_s_files_stays(static: Artifact, tmp_path: Path, mine: str) -> None:
    file = write_repository(static, tmp_path, name="eye") / mine
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(ArtifactError, match="holds other files too; move it away or choose another repository"):
        write_repository(static, tmp_path, name="eye", force=True)
    assert file.exists()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was(
    static: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    folder = write_repository(static, tmp_path, name="eye")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def fail(*_args: object) -> None:
        raise failure

    monkeypatch.setattr(triton_server.shutil, "copyfile", fail)
    with pytest.raises((ArtifactError, KeyboardInterrupt)):
        write_repository(static, tmp_path, name="eye", force=True)
    with pytest.raises((ArtifactError, KeyboardInterrupt)):
        write_repository(static, tmp_path, name="new")
    assert [path.name for path in tmp_path.iterdir()] == ["eye"]
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_checked_before_any_work(static: Artifact, tmp_path: Path) -> None:
    write_repository(static, tmp_path, name="a-128")
    (tmp_path / "file").touch()
    file, long = Served(precision="fp32"), "somewhere/" + "é" * 127
    bad = (
        (tmp_path, "somewhere/a 128", file, "--force"),
        (tmp_path, "somewhere/b", Served(precision="fp8"), "FP8"),
        (tmp_path / "file" / "models", None, file, "not a folder"),
        (tmp_path, "x" * 256, file, "255 bytes at most; found 256"),
        (tmp_path, "x" * 250, file, "name too long"),
        (tmp_path, None, Served(precision="fp32", size=1 << 60), "MB needed"),
    )
    for repository, artifact, served, words in bad:
        with pytest.raises(FvexportError, match=words):
            check_repository(repository, artifact, served)
    check_repository(tmp_path, "somewhere/a 128", file, force=True)
    check_repository(tmp_path, None, Served(precision="fp8", platform="plan"))
    check_repository(tmp_path, long, file)  # each letter becomes one hyphen, in all one
    with pytest.raises(ConfigError, match="255 bytes at most"):
        write_repository(static, tmp_path, name="x" * 256)
    for name in ("", "..", ".hidden", "a/b", "a b"):
        with pytest.raises(ConfigError, match="name is made of"):
            write_repository(static, tmp_path, name=name)


@pytest.mark.parametrize(
    ("repository", "artifact", "words"),
    [
        ("models", ".eye", r"does not begin with a dot; found '\.eye'"),
        ("models", "models/eye", "must lie apart"),
        ("models", "models/eye/eye", "must lie apart"),
        ("eye", "eye", "must lie apart"),
        ("eye/models", "eye", "must lie apart"),
        ("link/models", "eye", "must lie apart"),
        ("models/..", "eye", "must lie apart"),
        (".", None, "must lie apart"),
        ("", "eye", "name a folder"),
    ],
)
def test_a_place_that_it_cannot_have(
    static: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, artifact: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("eye")
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError, match=words):
        check_repository(repository, artifact, Served(precision="fp32"))
    if artifact is not None:
        made = tmp_path / artifact
        shutil.copytree(static.path, made)
        before = {path: path.stat().st_size for path in made.rglob("*")}
        with pytest.raises(ConfigError, match=words):
            write_repository(Artifact(Path(artifact), static.manifest), repository, force=True)
        assert {path: path.stat().st_size for path in made.rglob("*")} == before


@given(st.text(max_size=40))
def test_any_text_comes_back_from_the_config(text: str) -> None:
    written = f"name: {triton_server._quoted(text)}\n".encode(errors="replace").decode()
    found = text_format.Parse(written, schema.ModelConfig())
    assert found.name == one_line(text).encode(errors="replace").decode()
