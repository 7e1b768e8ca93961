"""The command of the docs at a small size: its figures are those of a verdict, each worse than the last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fvexport.benchmarks.studies.torch_loss import main
from fvexport.export.export_options import ExportOptions
from fvexport.export.onnx_export import export_onnx

TRAINED = Path(__file__).parents[2] / "data" / "trained"


def test_losses_are_those_of_a_verdict(one_thread: None, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(TRAINED), "--res", "128", "--samples", "2", "--precision", "fp32,bf16,int8"]
    outcome = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "loss.json")])
    assert outcome.exit_code == 0, outcome.output
    rows = {row["precision"]: row for row in json.loads((tmp_path / "loss.json").read_text())["rows"]}
    assert [line.split()[0] for line in outcome.output.splitlines()[1:]] == list(rows) == ["fp32", "bf16", "int8"]
    options = ExportOptions(height=128, width=128, precision="bf16")
    verdict = export_onnx(TRAINED, tmp_path / "bf16", options=options).verdict
    assert verdict is not None
    for name, value in verdict.torch.to_dict().items():
        assert rows["bf16"][name] == pytest.approx(value, rel=1e-3)
    assert f"{rows['bf16']['centred_sqnr_db']:.1f}" in outcome.output
    losses = [row["centred_rel_l2"] for row in rows.values()]
    assert losses == sorted(losses) and losses[0] < 1e-4


def test_an_unknown_precision_is_named(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["--variant", "tiny", "--res", "64", "--precision", "fp12"])
    assert outcome.exit_code == 1 and "fp12" in outcome.output and "Traceback" not in outcome.output
