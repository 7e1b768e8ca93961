"""What `benchmarks.kernels` would time, computed on the CPU: every candidate of a case gives the same."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from fvexport.benchmarks.kernels import OURS, Case, case_row, cases, floor_ms, gpu_environment, line, main, row_of
from fvexport.benchmarks.paired import Timing
from fvexport.encoder.config import get_variant


def timing(name: str, ms: float) -> Timing:
    return Timing(name, ms, ms, ms, 1.0, 1.0, 1.0)


def test_candidates_agree() -> None:
    seen = []
    for case in cases(get_variant("tiny"), 64, 2, torch.float32, "cpu"):
        results = {name: run() for name, run in case.candidates.items()}
        wanted = results.pop(OURS)
        assert results
        for name, found in results.items():
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
        seen.append(case.op)
    assert set(seen) == {"norm_linear", "attention", "linear_residual", "linear_gelu", "mlp", "depthwise"}
    assert seen.count("depthwise") == 3 * 2 + 2


def test_says_where_the_table_uses_a_kernel() -> None:
    used = {(case.op, case.sizes.get("c")): case.used for case in cases(get_variant("tiny"), 64, 1, torch.half, "cpu")}
    assert used["mlp", 8] and used["depthwise", 8] and used["attention", None]
    in_float32 = {case.op: case.used for case in cases(get_variant("tiny"), 64, 1, torch.float32, "cpu")}
    assert in_float32["depthwise"] and not in_float32["mlp"] and not in_float32["attention"]


def test_rows() -> None:
    case = Case("mlp", {"m": 64, "c": 96}, True, {})
    row = case_row(case, 1024, 1, [timing(OURS, 0.02), timing("slow", 0.05), timing("fast", 0.03)])
    assert row["best_rival"] == "fast" and row["speedup"] == pytest.approx(1.5) and row["resolution"] == 1024
    assert "1.50x fast" in line(row) and "SLOWER" not in line(row)
    slower = row_of("mlp", case.sizes, True, [timing(OURS, 0.04), timing("fast", 0.03)]) | {
        "resolution": 64,
        "batch": 8,
    }
    assert "used, SLOWER" in line(slower) and "SLOWER" not in line(slower | {"used": False})
    assert json.loads(json.dumps(row)) == row


def test_floor() -> None:
    assert floor_ms("fastvithd", 1024, 1, None) is None
    from fvexport.export.gpus import GPUS

    one, eight = (floor_ms("fastvithd", 512, batch, GPUS[0].name) for batch in (1, 8))
    assert one is not None and eight is not None and 4 * one < eight < 8.1 * one


def test_environment() -> None:
    found = gpu_environment()
    assert "torch" in found["versions"] and ("gpu" in found) == torch.cuda.is_available()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_it_needs_a_gpu() -> None:
    outcome = CliRunner().invoke(main, ["--res", "64", "--variant", "tiny"])
    assert outcome.exit_code == 1 and "cannot time kernels" in outcome.output


@pytest.mark.gpu
@pytest.mark.long
def test_on_a_gpu() -> None:
    outcome = CliRunner().invoke(main, ["--res", "64", "--batch", "1", "--variant", "tiny", "--rounds", "2"])
    assert outcome.exit_code == 0 and "encoder" in outcome.output
