"""Manifests as structs: round trips, what newer versions wrote, what earlier ones did, and wrong values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fvexport.calibration.findings import Fp16Plan, LayerNoise
from fvexport.core.errors import ArtifactError
from fvexport.core.records import Record, parse, plain
from fvexport.core.verdict import sections
from fvexport.core.verdict.figures import Figures
from fvexport.core.verdict.judging import Thresholds
from fvexport.core.verdict.sections import FiguresSection, LayerSection, ThresholdsSection, VerdictSection
from fvexport.encoder.checkpoint.load import CheckpointInfo
from fvexport.encoder.config import ConnectorConfig
from fvexport.encoder.preprocess import RELEASED
from fvexport.export import manifest as manifests
from fvexport.export.artifact import Artifact
from fvexport.export.engines import engine_section as engine_sections
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.engine_section import EngineSection, Gpu, TimingCacheUse
from fvexport.export.engines.summary import AttentionState, EngineSummary, Fallback
from fvexport.export.manifest import CheckpointSection, Manifest, QuantizationSection, RoundedHashes, Saturation
from fvexport.export.parity import LayerFigure, Verdict

OLD = Path(__file__).parents[1] / "data" / "manifests"
BY_NAME = {
    "$.files", "$.versions", "$.checkpoint.rounded", "$.quantization.blocks", "$.quantization.saturation.layers",
    "$.fp16.peaks", "$.engine.memory", "$.engine.layers.products", "$.engine.layers.others",
}  # fmt: skip
"""Objects whose entries are values by name."""
FIGURES = Figures(1e-3, 2e-3, 0.9, 0.8, 54.0, True, 3e-3, 50.5)
THRESHOLDS = Thresholds(
    over_torch=2, rel_l2_floor=1e-5, rel_l2_limit=1e-3, centred_floor=2e-5, centred_limit=2e-3, cosine_min=0.9
)
VERDICT = Verdict(
    status="pass", reason="well", precision="int8", figures=FIGURES, torch=FIGURES, thresholds=THRESHOLDS,
    images=["a.jpg"], resolutions=["64x64"], backend="openvino", layers=[LayerFigure("stem.0", 1e-3, None, 2e-3)],
    first_bad_layer="stem.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def full(
    static: Artifact, quantization_section: Callable[..., QuantizationSection],
    engine_section: Callable[..., EngineSection],
) -> Manifest:  # fmt: skip
    """A manifest with every section there is."""
    verdict = parse(VERDICT.to_dict(), VerdictSection)
    layers = EngineSummary(
        2, {"int8": 1}, {"fp16": 1}, 1, 8, [AttentionState("stages.3.blocks.0", ("a", "b"))],
        [Fallback("a/Conv", "int8", "fp16", "a")], [("stem", "fp16", [1, 8, 64, 64], 65536)],
    )  # fmt: skip
    engine = engine_section(
        gpu=Gpu(name="NVIDIA L4", compute_capability="8.9", driver="12.8"), capabilities=("8.9",),
        options=EngineOptions(flavour="tensorrt", workspace=1 << 30, timing_cache="here"),
        profile=Profile(batch=(1, 2, 4), height=(128,) * 3, width=(128,) * 3), memory={"plan": 9, "weights": 8},
        timing_cache=TimingCacheUse(file="here", loaded_bytes=3), layers=layers, parity=verdict, bound_to="a GPU",
    )  # fmt: skip
    quantization = quantization_section(
        quantized=("a.fc1",), kept_float=("a.fc2",), bound_db=36, bound_figure="stricter", predicted=verdict.torch,
        sensitivity=(LayerNoise("a.fc2", "fc2", float("inf"), 0.5),), blocks={"stem.0": 1e-3, "stem.1": None},
        saturation=Saturation(pairs=9, affected=1, layers={"a.fc1": 1}),
    )  # fmt: skip
    options = dataclasses.replace(
        static.manifest.options, precision="int8", target="tensorrt", connector=ConnectorConfig()
    )
    rounded = {"float16": RoundedHashes(sha256="0" * 64, connector_sha256=None)}
    return static.manifest.replace(
        precision="int8", checkpoint=msgspec.structs.replace(static.manifest.checkpoint, rounded=rounded),
        options=options, parity=verdict, quantization=quantization, engine=engine,
        fp16=Fp16Plan((0, 0, 0, -3, 0), ("stem.1",), {"stem.1": 9e4}, 8.0),
    )  # fmt: skip


def records(value: Any) -> Iterator[Record]:
    """All records within a value."""
    if isinstance(value, Record):
        yield value
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
        yield from records(inner)


def objects(data: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """All objects within plain data, with their paths."""
    if isinstance(data, dict):
        yield path, data
    for key, inner in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from objects(inner, f"{path}.{key}")


def test_round_trip_of_every_struct(full: Manifest) -> None:
    modules = (manifests, engine_sections, sections)
    kinds = [(kind, module) for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    found = {type(record) for record in records(full)}
    assert found == {kind for kind, module in kinds if issubclass(kind, Record) and kind.__module__ == module.__name__}
    again = Manifest.from_json(full.to_json(), "here")
    assert again == full and again.to_json() == full.to_json() and again.unknown == {}
    for record in records(full):
        if not isinstance(record, Manifest):
            assert parse(json.loads(json.dumps(plain(record))), type(record)) == record


def test_order_of_the_file(full: Manifest) -> None:
    assert list(full.to_dict()) == [
        "variant", "config", "checkpoint", "precision", "input", "output", "preprocessing", "tokens", "opset",
        "options", "graph", "files", "versions", "created", "parity", "quantization", "fp16", "engine",
        "schema_version",
    ]  # fmt: skip
    assert "float" in full.to_dict()["quantization"] and "kept_float" not in full.to_json()


def test_sections_have_the_fields_that_they_record() -> None:
    def names(kind: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    assert {*CheckpointSection.__struct_fields__} == names(CheckpointInfo) - {"preprocessing"} | {"rounded"}
    assert {*FiguresSection.__struct_fields__} == names(Figures)
    assert {*ThresholdsSection.__struct_fields__} == names(Thresholds)
    assert {*LayerSection.__struct_fields__} == names(LayerFigure)
    assert {*VerdictSection.__struct_fields__} == names(Verdict)


def test_entries_of_newer_versions_are_kept(full: Manifest) -> None:
    newer = json.loads(full.to_json())
    refused = ("$.config", "$.preprocessing")  # there they would change the features
    places = [each for path, each in objects(newer) if not path.startswith(refused) and path not in BY_NAME]
    assert len(places) > 25
    for place in places:
        place["a newer one"] = {"deep": [1, None]}
    found = Manifest.from_json(json.dumps(newer), "here")
    assert found.to_dict() == newer
    other = found.replace(engine=full.engine)
    assert other.to_dict() == newer | {"engine": full.to_dict()["engine"]}


@pytest.mark.parametrize("section", ["config", "preprocessing"])
def test_entries_that_would_change_the_features_are_refused(full: Manifest, section: str) -> None:
    newer = json.loads(full.to_json())
    newer[section]["newer"] = 3
    with pytest.raises(ArtifactError, match=rf"\$\.{section}: .*newer"):
        Manifest.from_json(json.dumps(newer), "here")


@pytest.mark.parametrize("name", sorted(path.stem for path in OLD.glob("*.json")))
def test_earlier_versions(name: str) -> None:
    """What was written then, by versions without targets, centred figures, or the checkpoint's preprocessing."""
    text = (OLD / f"{name}.json").read_text(encoding="utf-8")
    found, old = Manifest.from_json(text, "here"), json.loads(text)
    assert found.checkpoint.preprocessing_source is msgspec.UNSET and found.checkpoint.rounded == {}
    assert found.unknown == {"checkpoint": {"image_aspect_ratio": old["checkpoint"]["image_aspect_ratio"]}}
    mode = {"pad": "pad", "crop": "shortest"}[old["preprocessing"]["image_aspect_ratio"]]
    assert found.preprocessor.config == dataclasses.replace(RELEASED, resize=mode)
    assert found.preprocessor.height == old["preprocessing"]["crop_size"]["height"]
    assert found.options.reduce_range is None and found.options.attention_plugin is False
    if found.parity is not None:
        assert found.parity.figures.centred_rel_l2 is None and found.parity.thresholds.centred_limit is msgspec.UNSET
    if found.quantization is not None:
        assert found.quantization.bound_figure == "plain" and found.quantization.reduce_range is False
        assert found.quantization.saturation is msgspec.UNSET
    assert found.fp16 is None and found.engine is None
    assert Manifest.from_json(found.to_json(), "here") == found
    new = found.to_dict()
    for section in ("config", "input", "output", "graph", "files", "versions"):
        assert new[section] == old[section]


def test_engines_of_earlier_versions(full: Manifest) -> None:
    old = json.loads(full.to_json())
    del old["engine"]["capabilities"]
    assert Manifest.from_json(json.dumps(old), "here").engine == msgspec.structs.replace(full.engine, capabilities=None)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("opset", "20", "$.opset: expected int, found str"),
        ("graph.nodes", None, "$.graph.nodes: expected int, found null"),
        ("config.dims", [1], "$.config: FastViTHD has 5 stages"),
        ("config.depths", "x", "$.config.depths: expected array, found str"),
        ("preprocessing", [], "$.preprocessing: expected object, found list"),
        ("preprocessing.resample", 99, "$.preprocessing: resample must be one of"),
        ("preprocessing.crop_size.height", 64, "$.preprocessing: "),
        ("checkpoint.rounded.float16", {}, "$.checkpoint.rounded[...]: object missing required field sha256"),
        ("input.shape", [1, 3, 64, 64], "$.input.shape: expected 128 or height, found 64"),
        ("output.shape", [1.5, 4, 256], "$.output.shape[0]: expected int | str, found float"),
        ("options.precision", "fp7", "$.options.precision: unknown value 'fp7'"),
        ("options.connector.kind", "mlp", "$.options.connector: unknown connector 'mlp'"),
        ("quantization.float_precision", "int8", "$.quantization.float_precision: unknown value 'int8'"),
        ("quantization.sensitivity", [{"name": 3}], "$.quantization.sensitivity[0].name: expected str, found int"),
        ("quantization.predicted.rel_l2", None, "$.quantization.predicted.rel_l2: expected a number, found null"),
        ("quantization.bound_figure", "none", "$.quantization.bound_figure: unknown value 'none'"),
        ("fp16.exponents", [0.5], "$.fp16.exponents[0]: expected int, found float"),
        ("parity.figures.finite", 1, "$.parity.figures.finite: expected bool, found int"),
        ("engine.flavour", "trt", "$.engine.flavour: unknown value 'trt'"),
        ("engine.profile.batch", [3, 2, 1], "$.engine.profile: a profile goes MIN:OPT:MAX"),
        ("engine.options.strip", "no", "$.engine.options.strip: expected bool, found str"),
        ("engine.layers.layers", "many", "$.engine.layers.layers: expected int, found str"),
    ],
)
def test_wrong_values_name_their_path(full: Manifest, path: str, value: Any, message: str) -> None:
    data = json.loads(full.to_json())
    *above, last = path.split(".")
    place = data
    for name in above:
        place = place[name]
    place[last] = value
    with pytest.raises(ArtifactError) as caught:
        Manifest.from_json(json.dumps(data), "there")
    assert f"there is damaged ({message}" in str(caught.value)
    assert str(caught.value).endswith("; export it again with `fvexport onnx`") and "\n" not in str(caught.value)
