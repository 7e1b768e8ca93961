"""Ranges that `fvexport calibrate` wrote: the JSON, and the statistics beside it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import json_documents, json_files, safetensors_files

from fvexport.calibration.calibrate import calibrate, load_ranges
from fvexport.calibration.calibration_options import CalibrationOptions
from fvexport.calibration.equalize import equalize
from fvexport.calibration.observe import check_layers
from fvexport.calibration.policy import Policy
from fvexport.calibration.quantize import quantize
from fvexport.calibration.ranges_file import METADATA
from fvexport.core.hashing import file_sha256
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.reparameterize import reparameterize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> SimpleNamespace:
    """Ranges of the tiny encoder: the JSON, the statistics as header and values, and the fused model."""
    folder = tmp_path_factory.mktemp("ranges")
    checkpoint = load_checkpoint(variant="tiny")
    calibrate(checkpoint, folder / "r.json", height=64, width=64, options=CalibrationOptions(samples=1), cache=folder)
    (side,) = folder.glob("r-*.safetensors")
    content = side.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return SimpleNamespace(
        json=json.loads((folder / "r.json").read_text()), name=side.name, header=content[:end], values=content[end:],
        model=reparameterize(checkpoint.encoder),
    )  # fmt: skip


def use(path: Path, model: FastViTHD, target: Any = "onnxruntime-cpu") -> None:
    """Reads ranges as an export does, and quantizes with them."""
    stats = load_ranges(path)
    check_layers(stats, model)
    policy = Policy(target)
    equalized = equalize(model, stats, policy)
    quantize(equalized.model, equalized.stats, policy)


def test_sound_ranges_are_read(sound: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / sound.name).write_bytes(sound.header + sound.values)
    (tmp_path / "r.json").write_text(json.dumps(sound.json))
    use(tmp_path / "r.json", sound.model)


@fuzz(examples=60, data=st.data())
def test_json(data: st.DataObject, sound: SimpleNamespace, folder: Path) -> None:
    (folder / sound.name).write_bytes(sound.header + sound.values)
    (folder / "r.json").write_bytes(data.draw(json_files(sound.json)))
    with only_our_errors():
        load_ranges(folder / "r.json")


@st.composite
def statistics_headers(draw: st.DrawFn, header: bytes) -> bytes:
    """A header whose shapes and dtypes are changed, or whose metadata, which are JSON in a text, are."""
    if draw(st.booleans()):
        return draw(safetensors_files(header))
    entries = json.loads(header[8:])
    about = entries["__metadata__"]
    about[METADATA] = json.dumps(draw(json_documents(json.loads(about[METADATA]))))
    text = json.dumps(entries).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text


@fuzz(examples=60, data=st.data())
def test_statistics(data: st.DataObject, sound: SimpleNamespace, folder: Path) -> None:
    """Their hash is that of the JSON: an attacker can write both."""
    values = bytearray(sound.values)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(values) // 4 - 1)) * 4
        values[at : at + 4] = data.draw(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff" * 4, b"\0" * 4]))
    side = folder / sound.name
    side.write_bytes(data.draw(statistics_headers(sound.header)) + values)
    record = sound.json | {"statistics": {"file": side.name, "sha256": file_sha256(side)}}
    (folder / "r.json").write_text(json.dumps(record))
    with only_our_errors():
        use(folder / "r.json", sound.model, data.draw(st.sampled_from(["tensorrt", "onnxruntime-cpu", "openvino"])))
