"""The report, the verdict and the committed files of a GPU proof, from facts that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fvexport.benchmarks.studies.gpu import commands, facts
from fvexport.benchmarks.studies.gpu.commit import convert, measured_on, short_name, tuned_rows
from fvexport.benchmarks.studies.gpu.facts import Facts
from fvexport.benchmarks.studies.gpu.report import correct, table
from fvexport.core.errors import ArtifactError
from fvexport.kernels.table import Config, key_of

ENVIRONMENT: dict[str, Any] = {
    "date": "2000-01-01T00:00:00+00:00", "cpu": "a CPU", "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0"},
    "gpu": {"name": "NVIDIA H100 80GB HBM3"},
}  # fmt: skip
OPERATOR = {"op": "mlp", "kernel": "mlp", "size": "1024 b1", "dtype": "float16", "checks": 3, "failed": 0}
MODEL = {"name": "kernels, graph", "dtype": "float16", "size": "1024 b1", "error": 1e-3, "own": 1e-3, "problem": ""}


def latency(name: str, size: str, ms: float) -> dict[str, Any]:
    return {"kind": "latency", "name": name, "size": size, "dtype": "float16", "ms": ms, "t": 0}


def found() -> list[dict[str, Any]]:
    """A whole run in which everything is right."""
    return [
        {"kind": "environment", "t": 1.0, **ENVIRONMENT},
        {"kind": "ceilings", "copy_bytes_s": 3e12, "matmul_flops": 8e14, "dtype": "bfloat16"},
        {"kind": "phase", "name": "operators", "status": "ok"}, {"kind": "phase", "name": "models", "status": "ok"},
        {"kind": "operators", **OPERATOR}, {"kind": "operators-done", "whole": True}, {"kind": "model", **MODEL},
        {"kind": "predicted", "name": "ours", "size": "1024 b1", "ms": 1.9},
        {"kind": "predicted", "name": "-pdl", "size": "1024 b1", "ms": 2.1},
        latency("ours", "1024 b1", 2.2), latency("ours", "256 b8", 1.6), latency("ours, tuned", "1024 b1", 1.8),
        latency("torch.compile reduce-overhead", "1024 b1", 3.0),
        latency("torch.compile max-autotune", "1024 b1", 2.7),
        {"kind": "toggle", "name": "-pdl", "size": "1024 b1", "ms": 2.4, "times_baseline": 2.2 / 2.4},
        {"kind": "toggle-failed", "name": "+stem", "size": "1024 b1", "problem": "no such thing"},
        {"kind": "profile", "file": "profile-ours.json", "total_us": 2200.0, "launches": 215.0,
         "parts": [{"part": "stage 3 ConvFFN", "us": 700.0}]},
        {"kind": "kernel", "op": "attention", "part": "attention", "sizes": {"tokens": 1024}, "count": 4,
         "speedup": 0.8, "times_ms": {"attention": 0.02, "other": 0.018, "FLASH_ATTENTION": 0.016},
         "chosen": "attention",
         "fastest_kernel": "other", "best_rival": "FLASH_ATTENTION"},
        {"kind": "phase", "name": "tune", "status": "over the limit", "t": 400.0},
    ]  # fmt: skip


def test_table() -> None:
    text = table(found())
    lines = text.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 118
    assert "H100 80GB HBM3, torch 2.11.0+cu130" in lines[0] and "copy 3 TB/s, bfloat16 products 800 TFLOP/s" in text
    assert "2 of 3 ok in 400 s: tune: over the limit" in text
    assert "operators: 3 checks, 0 wrong; models: 1 checks, 0 wrong" in text
    assert [line.split()[-1] for line in lines if line.startswith("  ours, predicted")] == ["1.900"]
    assert "best torch.compile over ours" in text and "1.50x" in text
    assert "1024 b1 1.800 ms (<= 2.0 ms: met); 1.50x torch.compile (>= 1.3x: met)" in text
    assert "256 b8 5000 images/s (>= 4000: met)" in text
    assert "switched, ms at 1024 b1 (predicted): -pdl +0.200 (+0.200)" in text
    assert "FAILED     +stem at 1024 b1: no such thing" in text
    assert "stage 3 ConvFFN 700" in text
    assert "1 timed that the policy chose: 1 slower than PyTorch, 1 slower than another kernel" in text
    assert "SLOWER     attention tokens=1024 attention 0.80x FLASH_ATTENTION" in text
    assert "FASTER     attention tokens=1024 attention 20.0 us, other 18.0 us" in text


def test_missed_targets() -> None:
    rows = [latency("ours", "1024 b1", 2.5), latency("ours", "256 b8", 4.0), latency("torch.compile x", "1024 b1", 2.5)]
    text = " ".join(table(rows).split())
    assert "2.500 ms (<= 2.0 ms: MISSED); 1.00x torch.compile (>= 1.3x: MISSED); 256 b8 2000 images/s" in text


def test_table_of_nothing() -> None:
    assert table([]) == "" and not correct([])


def test_facts_that_cannot_be_shown_hide_no_others() -> None:
    text = table([*found(), {"kind": "kernel", "chosen": "mlp", "speedup": 0.5}])
    assert "kernels: cannot be shown (KeyError: 'fastest_kernel')" in text and "1024 b1 1.800 ms" in text


def test_correct() -> None:
    assert correct(found())
    assert correct([f for f in found() if f["kind"] != "latency"])  # how fast it is does not matter


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "operator-problem", "op": "mlp", "kernel": "mlp", "what": "m=1", "problem": "a race"},
        {"kind": "operators-skipped", "size": [1, 1, 1]},
        {"kind": "operators-done", "whole": False},
        {"kind": "models-skipped", "size": "1024 b8"},
        {"kind": "warm-problem", "kernel": "mlp", "dtype": "float16", "problem": "out of shared memory"},
        {"kind": "model", **MODEL, "problem": "some features are not finite"},
        {"kind": "phase", "name": "operators", "status": "signal 11"},
        {"kind": "phase", "name": "models", "status": "over the limit"},
    ],
)
def test_anything_wrong_or_unchecked_is_not_correct(wrong: dict[str, Any]) -> None:
    assert not correct([*found(), wrong])
    if "problem" in wrong:
        assert wrong["problem"] in table([*found(), wrong])


@pytest.mark.parametrize("kind", ["operators", "model"])
def test_phases_without_results_are_not_correct(kind: str) -> None:
    assert not correct([f for f in found() if f["kind"] != kind])


# --- the committed files --------------------------------------------------------------------------------


def write(folder: Path, *, dry: bool = False) -> None:
    note = Facts(folder / facts.FILE, "run", 0.0)
    for fact in found():
        values = {name: value for name, value in fact.items() if name not in ("kind", "t")}
        note(fact["kind"], **values, **({"dry": dry} if fact["kind"] == "environment" else {}))


CONFIG = {"blocks": {"BLOCK_M": 64, "BLOCK_N": 32}, "num_warps": 8, "num_stages": 3}


def test_commit(tmp_path: Path) -> None:
    out, root = tmp_path / "out", tmp_path / "root"
    out.mkdir()
    (root / "kernels" / "configs").mkdir(parents=True)
    own = Path(__file__).parents[4] / "kernels" / "configs" / "attention.json"
    (root / "kernels" / "configs" / "attention.json").write_text(own.read_text())
    write(out)
    rows = [{"kind": "environment"}, {"kind": "operator", "op": "attention", "ms": {"attention": 0.01}}]
    (out / commands.KERNELS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    key = "attention half batch=8 heads=24 tokens=1024"
    tuned = {"environment": {"arch": "sm_90"}, "configs": {key: {**CONFIG, "ms": 0.010, "default_ms": 0.020}}}
    (out / commands.TUNED).write_text(json.dumps(tuned))
    for _ in range(2):  # the second time replaces the first
        written = convert(out, root)
    assert [path.relative_to(root).as_posix() for path in written] == [
        "benchmarks/results/encoder-h100.json", "benchmarks/results/kernels-h100.json",
        "kernels/configs/attention.json",
    ]  # fmt: skip
    encoder, kernels, configs = (json.loads(path.read_text()) for path in written)
    assert encoder["environment"]["gpu"]["name"].startswith("NVIDIA H100")
    assert encoder["environment"]["ceilings"]["copy_bytes_s"] == 3e12
    assert {row["kind"] for row in encoder["rows"]} >= {"latency", "model", "operators", "toggle"}
    assert kernels["rows"] == rows[1:]
    before = json.loads(own.read_text())
    assert configs["rows"][1:] == before["rows"] and configs["kernel"] == before["kernel"]
    assert configs["rows"][0] == {
        "arch": ["sm_90"], "dtype": "half", "sizes": {"batch": [5, 8], "heads": [24, 24], "tokens": [513, 1024]},
        **CONFIG, "why": "measured: H100 80GB HBM3, torch 2.11.0, triton 3.6.0, 2000-01-01, 20.0 -> 10.0 us",
    }  # fmt: skip
    assert all("\n" not in line for line in written[2].read_text().split("\n"))


def test_results_of_a_dry_run_are_not_committed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no results of a run"):
        convert(tmp_path, tmp_path)
    write(tmp_path, dry=True)
    with pytest.raises(ArtifactError, match="has the results of a dry run"):
        convert(tmp_path, tmp_path)


def test_tuned_rows_hold_for_the_sizes_that_share_their_key() -> None:
    """Rows are for the sizes whose key is the searched one's, and for no others."""
    import torch

    sizes = {"batch": 8, "heads": 24, "tokens": 1024}
    tuned = {"environment": {"arch": "sm_90"}, "configs": {
        key_of("attention", torch.float16, sizes): {**CONFIG, "ms": 1.0, "default_ms": 2.0},
        key_of("mlp", torch.float16, {"m": 64, "c": 96, "hidden": 384}): {**CONFIG, "ms": 1.0, "default_ms": 1.01},
    }}  # fmt: skip
    made = tuned_rows(tuned, "here")
    assert set(made) == {"attention"}  # the other is no faster than noise
    bounds = made["attention"][0]["sizes"]
    for tokens in (512, 513, 1024, 1025):
        same = key_of("attention", torch.float16, {**sizes, "tokens": tokens}) in tuned["configs"]
        low, high = bounds["tokens"]
        assert (low <= tokens <= high) == same
    assert Config.from_dict(made["attention"][0]).num_warps == 8


@pytest.mark.parametrize(
    ("gpu", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA A100-SXM4-40GB", "a100"),
     ("NVIDIA L40S", "l40s"), ("NVIDIA RTX PRO 6000 Blackwell", "rtx-pro-6000"), ("Orin", "orin")],
)  # fmt: skip
def test_short_names(gpu: str, name: str) -> None:
    assert short_name(gpu) == name


def test_measured_on() -> None:
    assert measured_on(ENVIRONMENT) == "H100 80GB HBM3, torch 2.11.0, triton 3.6.0, 2000-01-01"
