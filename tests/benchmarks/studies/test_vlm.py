"""The benchmark of the whole model, on the tiny variant: every part runs, and its figures hang together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fvexport.benchmarks.studies import vlm
from fvexport.benchmarks.studies.vlm import TOWERS, Setting, agreement, make_fastvlm, photograph_crops
from fvexport.benchmarks.tasks import ttft
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ttft.DIMENSIONS, "qwen2-0.5b", SMALL)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 under both names: quick to make, and what agrees must agree always."""
    folder = tmp_path_factory.mktemp("vlm")
    setting = Setting(folder, res=128, variant="tiny")
    export_onnx(setting.checkpoint, setting.path("fp32"), options=ExportOptions(height=128, width=128), parity=False)
    shutil.copytree(setting.path("fp32"), setting.path("int8"))
    return folder


def figures(folder: Path, out: Path) -> dict[str, Any]:
    """What the command writes, run in this process, where the small language model is known."""
    options = ["--res", "128", "--variant", "tiny", "--threads", "1", "--rounds", "2", "--crops", "3", "--samples", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm, "peak_memory", vlm._answer_alone)  # the peak is then of all before it
        done = CliRunner().invoke(vlm.main, [*options, "--artifacts", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text())


def test_figures(artifacts: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in artifacts.iterdir()}
    found = figures(artifacts, tmp_path / "figures.json")
    assert {path: path.stat().st_mtime_ns for path in artifacts.iterdir()} == before  # kept, not made again
    assert [row["tower"] for row in found["memory"]] == list(TOWERS) == [row["tower"] for row in found["ttft"]]
    for row in found["memory"]:
        assert row["visual_tokens"] == 4 and row["tokens"] == 16
        assert row["peak_mib"] is None or row["peak_mib"] > 100  # None but on Linux
    for row in found["ttft"]:
        assert row["visual_tokens"] == 4 and row["prompt_tokens"] == 32 and row["rounds"] == 2
        assert row["ttft_ms"] > row["encoder_ms"] > 0
    assert found["ttft"][0]["encoder_speedup"] == found["ttft"][0]["ttft_speedup"] == 1
    for row in found["agreement"]:
        assert (row["same_first_token"], row["crops"]) == (3, 3) and row["mean_rel_l2_percent"] < 0.01
        assert 1 <= row["first_tokens"] <= 3


@pytest.mark.long
def test_int8_is_made_and_differs(tmp_path: Path) -> None:
    fp32, int8 = figures(tmp_path / "made", tmp_path / "figures.json")["agreement"]
    assert fp32["same_first_token"] == 3 and fp32["mean_rel_l2_percent"] < 0.01
    assert 0.1 < int8["mean_rel_l2_percent"] < 30


def test_agreement_sees_another_encoder(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(artifacts, res=128, threads=1, samples=2, variant="tiny")
    make = vlm.make_tower

    class Blind:
        name, projected, resolution = "blind", False, None

        def encode(self, pixels):
            return -3 * make(setting, "eager").encode(pixels)

    monkeypatch.setattr(vlm, "make_tower", lambda s, name: make(s, name) if name == "eager" else Blind())
    rows = agreement(setting, 4)
    assert all(row["same_first_token"] < 4 and row["mean_rel_l2_percent"] == pytest.approx(400) for row in rows)


def test_artifacts_stand_without_an_eager_encoder(artifacts: Path) -> None:
    setting = Setting(artifacts, res=128, threads=1, variant="tiny")
    whole, tower = make_fastvlm(setting, "int8")
    assert whole.tower is None and "checkpoint" not in setting.__dict__  # the eager weights were never made
    assert whole.encode_images([np.zeros((9, 9, 3), np.uint8)], tower=tower).counts == (4,)


def test_crops_are_equal_for_equal_and_differ() -> None:
    first, again = list(photograph_crops(9, 64)), list(photograph_crops(9, 64))
    assert all(crop.shape == (3, 64, 64) and crop.dtype == np.uint8 for crop in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({crop.tobytes() for crop in first}) == 9
