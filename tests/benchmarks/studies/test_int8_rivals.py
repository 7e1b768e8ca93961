"""What the comparison with other INT8 tools does without them: data, outliers, bookkeeping, and onnxruntime's own."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from fvexport.benchmarks.peers.photos import CALIBRATION, TEST, Photographs
from fvexport.benchmarks.peers.tool_files import MADE_FILE, Job, Tool, make
from fvexport.benchmarks.studies import int8_rivals
from fvexport.benchmarks.studies.rivals import measure as measuring
from fvexport.benchmarks.studies.rivals.candidates import BASELINE, CANDIDATES, Row, chosen
from fvexport.benchmarks.studies.rivals.outliers import with_outliers
from fvexport.benchmarks.studies.rivals.quantizers import TOOLS
from fvexport.core.errors import ConfigError, UnavailableError
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from fvexport.encoder.fastvithd import AttentionBlock, ConvFFN, FastViTHD
from fvexport.encoder.reparameterize import merge_branches, reparameterize


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture(scope="module")
def exact() -> Checkpoint:
    """Tiny, in float64."""
    checkpoint = load_checkpoint(variant="tiny")
    return Checkpoint(checkpoint.encoder.double(), checkpoint.connector, checkpoint.info)


def pixels() -> Tensor:
    return torch.rand(1, 3, 128, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# --- outliers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["train", "released"])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_outliers_leave_the_function_alone(exact: Checkpoint, form: str, sigma: float) -> None:
    encoder = exact.encoder if form == "train" else merge_branches(exact.encoder)
    changed = with_outliers(replace(exact, encoder=encoder), sigma).encoder
    with torch.inference_mode():
        wanted, found = encoder(pixels()), changed(pixels())
    assert (found - wanted).norm() < 1e-11 * wanted.norm()


def test_outliers_spread_the_channels(exact: Checkpoint) -> None:
    def outputs(encoder: FastViTHD) -> list[Tensor]:
        seen: list[Tensor] = []
        for module in encoder.modules():
            inner = (
                module.conv if isinstance(module, ConvFFN) else module.norm if isinstance(module, AttentionBlock) else 0
            )
            if isinstance(inner, nn.Module):
                inner.register_forward_hook(lambda _m, _x, y: seen.append(y if y.ndim == 4 else y.mT))
        with torch.inference_mode():
            encoder(pixels())
        return [y.flatten(2)[0] for y in seen]  # (C, N)

    before, after = outputs(with_outliers(exact, 0).encoder), outputs(with_outliers(exact, 0.5).encoder)
    assert len(before) == len(after) == 8  # six ConvFFN, two LayerNorm
    logs = []
    for a, b in zip(before, after, strict=True):
        gain = b / a
        assert torch.allclose(gain, gain[:, :1].expand_as(gain), rtol=1e-6)  # one per channel
        logs.append(gain[:, 0].log())
    spread = torch.cat(logs)
    assert 0.4 < spread.std() < 0.6
    assert spread.mean().abs() < 0.1
    assert not torch.allclose(logs[4][:64], logs[5][:64])  # each module has its own


def test_outliers_copy_the_checkpoint(exact: Checkpoint) -> None:
    before = weights_sha256(exact.encoder)
    once, again, other = with_outliers(exact, 0.5), with_outliers(exact, 0.5), with_outliers(exact, 0.5, seed=1)
    assert weights_sha256(exact.encoder) == before
    assert once.info.sha256 == again.info.sha256 == weights_sha256(once.encoder)
    assert len({before, once.info.sha256, other.info.sha256}) == 3
    assert once.info.source == "seeded:0, outliers 0.5"


def test_outliers_refuse_what_they_cannot_do(exact: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"0 or more; found -0\.5"):
        with_outliers(exact, -0.5)
    with pytest.raises(ConfigError, match="found the fused form"):
        with_outliers(replace(exact, encoder=reparameterize(exact.encoder)), 0.5)


# --- data --------------------------------------------------------------------------------------


def test_no_scene_calibrates_and_tests(photographs: dict[str, Path], tmp_path: Path) -> None:
    assert not set(CALIBRATION) & set(TEST)
    assert {*CALIBRATION, *TEST} == set(photographs)
    assert len({"motorcycle_left", "motorcycle_right"} & set(TEST)) != 1
    shown = Photographs.write(tmp_path / "list.txt", 11, 64)
    assert {p.path.stem for p in shown.calibration.pictures} == set(CALIBRATION)
    assert [p.crop is None for p in shown.calibration.pictures] == [True] * 8 + [False] * 3
    assert list(shown.tests()) == list(TEST)


def test_samples_are_prepared_like_tests(photographs: dict[str, Path], tmp_path: Path) -> None:
    shown = Photographs.write(tmp_path / "list.txt", 8, 64)
    first = shown.calibration.pictures[0].path
    listing = tmp_path / "first.txt"
    listing.write_text(f"{first}\n")
    wanted = shown._preprocessor(first)
    assert shown.sample(0).dtype == np.float32
    np.testing.assert_array_equal(shown.sample(0), wanted)
    assert wanted.max() > 0.5


# --- which, and bookkeeping --------------------------------------------------------------------


def test_choice_of_candidates() -> None:
    assert chosen(None) == list(CANDIDATES)
    assert chosen(" ort-best,fp32-openvino") == [BASELINE, "fp32-openvino", "ort-best"]
    with pytest.raises(ConfigError, match="unknown candidate 'ort' in --only; known are fp32-onnxruntime, "):
        chosen("ort")
    assert {c.tool for c in CANDIDATES.values()} == set(TOOLS)


def job(folder: Path) -> Job:
    return Job(Photographs.write(folder / "list.txt", 2, 64), lambda: load_checkpoint(variant="tiny"), folder / "x")


def writes(calls: list[str], broken: bool = False) -> Callable[[Job, Path], Path]:
    def tool(job: Job, folder: Path) -> Path:
        sys.stderr.write(f"progress bar {sys.stdout.write('remark')}")
        calls.append(folder.name)
        assert not list(folder.iterdir())
        (folder / "model.onnx").write_bytes(b"12345")
        (folder / "model.onnx.data").write_bytes(b"678")
        (folder / "other").write_bytes(b"9")
        if broken:
            raise RuntimeError("no such operator\nat line 3")
        return folder / "model.onnx"

    return tool


def test_a_file_is_made_once_for_each_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    tool = Tool("a", writes(calls))
    made = [make(t, job(tmp_path), tmp_path / "t") for t in (tool, tool, replace(tool, settings="b"), tool)]
    assert [m.reused for m in made] == [False, True, False, False]
    assert len(calls) == 3
    assert {(m.path, m.size) for m in made} == {(tmp_path / "t" / "model.onnx", 8)}
    assert made[0].versions == made[1].versions and "torch" in made[0].versions
    assert capsys.readouterr() == ("", "")


def test_a_file_half_made_is_not_taken(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(RuntimeError):
        make(Tool("a", writes(calls, broken=True)), job(tmp_path), tmp_path / "t")
    assert not (tmp_path / "t" / MADE_FILE).exists()
    assert not make(Tool("a", writes(calls)), job(tmp_path), tmp_path / "t").reused


def test_an_absent_tool_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_tool").mkdir()  # a folder is no module
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("no_such_tool", "nor_this"):
        tool = Tool("a", writes([]), (name,), "pip install it")
        with pytest.raises(UnavailableError, match=f"{name} is not installed: pip install it"):
            make(tool, job(tmp_path), tmp_path / "t")


# --- the whole way -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """onnxruntime's tool with both settings, beside one tool that fails and one that is not installed."""
    work = tmp_path_factory.mktemp("work")
    names = "ort-default,ort-best,nncf-default,modelopt-onnxruntime"
    options = ["--variant", "tiny", "--res", "64", "--samples", "9", "--rounds", "2", "--threads", "1", "--only", names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOOLS, "nncf-default", Tool("broken", writes([], broken=True)))
        patch.setitem(TOOLS, "modelopt", Tool("absent", writes([]), ("nor_this",), "pip install it"))
        result = CliRunner().invoke(int8_rivals.main, [*options, "--work", str(work), "--out", str(work / "o.json")])
    assert result.exit_code == 0, result.output
    return work, result.stdout, json.loads((work / "o.json").read_text())


def test_the_run_reports_all(run: tuple[Path, str, dict[str, Any]]) -> None:
    _, table, result = run
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [BASELINE, "ort-default", "ort-best", "nncf-default", "modelopt-onnxruntime"]
    assert rows["nncf-default"]["skipped"] == "RuntimeError: no such operator"
    assert rows["modelopt-onnxruntime"]["skipped"] == "nor_this is not installed: pip install it"
    assert [line.split()[0] for line in table.splitlines()] == ["candidate", *rows]
    assert "skipped: RuntimeError: no such operator" in table
    assert result["settings"]["test"] == list(TEST) and result["settings"]["threads"] == 1
    assert {"cpu", "date", "versions"} <= set(result["environment"])


def test_the_run_measures_what_it_made(run: tuple[Path, str, dict[str, Any]]) -> None:
    _, _, result = run
    rows = {row["name"]: row for row in result["rows"]}
    assert rows[BASELINE]["accuracy"]["f32"]["sqnr_db_worst"] > 90
    assert rows[BASELINE]["timing"]["speedup"] == 1
    for name in ("ort-default", "ort-best"):
        row = rows[name]
        assert row["skipped"] is None and row["hint"] == "f32" and not row["probe_ms"]
        assert row["timing"]["median_ms"] > 0 and row["timing"]["speedup"] > 0
        assert row["bytes"] < 0.5 * rows[BASELINE]["bytes"]
        values = row["accuracy"]["f32"]["sqnr_db"]
        assert list(values) == list(TEST)
        assert row["accuracy"]["f32"]["sqnr_db_worst"] == min(values.values()) > 3
        assert math.isclose(row["accuracy"]["f32"]["sqnr_db_mean"], sum(values.values()) / 8)
        assert row["accuracy"]["f32"]["sqnr_db_mean"] < 50  # eight bits were used


def test_settings_reach_quantize_static(run: tuple[Path, str, dict[str, Any]]) -> None:
    place = run[0] / "tiny-64-samples9-outliers0"

    def kinds(tool: str) -> tuple[set[int], set[int], set[str]]:
        """Element types of activations, sizes of weight scales, operators that are fed by DequantizeLinear alone."""
        graph = onnx.load(place / tool / "model.onnx").graph
        constants = {t.name: t for t in graph.initializer}
        dequantized = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
        activations = {
            constants[n.input[2]].data_type for n in graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2
        }
        weights = [dequantized[n.input[1]] for n in graph.node if n.op_type == "Conv"]
        scales = {len(constants[w.input[1]].float_data or constants[w.input[1]].raw_data) for w in weights}
        kinds = {n.op_type for n in graph.node}
        quantized = {k for k in kinds if all(dequantized.keys() >= set(n.input) for n in graph.node if n.op_type == k)}
        return activations, scales, quantized

    default, best = kinds("ort-default"), kinds("ort-best")
    assert default[0] == {onnx.TensorProto.INT8} and best[0] == {onnx.TensorProto.UINT8}
    assert len(default[1]) == 1 < len(best[1])  # one scale per tensor; one per channel
    assert {"Conv", "MatMul", "Add"} <= default[2]
    assert {"Conv", "MatMul"} <= best[2] and "Add" not in best[2]
    assert not (place / "ort-best" / "prepared.onnx").exists()


def test_unknown_names_end_the_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(int8_rivals.main, ["--only", "nobody", "--work", str(tmp_path)])
    assert result.exit_code == 1
    assert "Error: unknown candidate 'nobody'" in result.output
    assert not list(tmp_path.iterdir())


def test_the_faster_hint_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: Any) -> Any:
        time.sleep(0.02)
        return x

    row = Row("nncf-default")
    x = np.ones((1, 2, 3), np.float32)
    assert measuring._faster(row, {"f32": slow, "bf16": lambda x: x}, x) == "bf16"
    assert row.probe_ms["f32"] > 15 > row.probe_ms["bf16"]
    assert measuring._faster(row, {"bf16": slow, "f32": lambda x: x}, x) == "f32"
