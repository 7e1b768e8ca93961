"""`studies.kernels` on the CPU: candidates agree with float64, wrong ones are not timed, rows outlive a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from fvexport.benchmarks.studies.kernels import command, compiled
from fvexport.benchmarks.studies.kernels.cases import SETS, TWO, Case, Maker, cases, ends
from fvexport.benchmarks.studies.kernels.command import line, main
from fvexport.benchmarks.studies.kernels.encoder import Plan, floor_ms
from fvexport.benchmarks.studies.kernels.row_file import RowFile
from fvexport.benchmarks.studies.kernels.rows import case_row, check
from fvexport.benchmarks.studies.results import gpu_environment
from fvexport.core.errors import ConfigError
from fvexport.encoder.config import get_variant
from fvexport.kernels.ceilings import ceilings
from fvexport.kernels.launches import encoder_calls
from fvexport.kernels.policy import ROWS
from fvexport.kernels.timing import HostClock

TINY = get_variant("tiny")
ONES_TO_FOUR = torch.arange(1.0, 5).view(2, 2)
PRODUCTS = {"linear_gelu": "product", "linear_residual": "product"}


@pytest.fixture(scope="module")
def found() -> list[Case]:
    return list(cases(TINY, 64, 2, Maker(torch.float32, "cpu", variants=True)))


def test_candidates_agree_with_float64(found: list[Case]) -> None:
    for case in found:
        reference = case.reference()
        assert reference.dtype == torch.float64 and case.rivals
        for name, runs in {**case.kernels, **case.rivals}.items():
            assert len(runs) == SETS
            torch.testing.assert_close(
                ends(runs[0]()).double().reshape(reference.shape), reference, rtol=1e-4, atol=1e-4,
                msg=lambda m, name=name: f"{name}: {m}",
            )  # fmt: skip


def test_sets_of_weights_differ(found: list[Case]) -> None:
    for case in found:
        first, last = (next(iter(case.rivals.values()))[index]() for index in (0, SETS - 1))
        assert torch.equal(first, last) == (case.op == "attention")


def test_every_call_of_the_encoder_is_there(found: list[Case]) -> None:
    known = {(PRODUCTS.get(case.op, case.op), repr(sorted(case.sizes.items()))) for case in found}
    for call in encoder_calls(TINY, 64, 64, 2, torch.float32):
        qkv = call.sizes.get("n", 0) == 3 * call.sizes.get("k", 1)
        op = ("norm_linear" if qkv else "product") if call.sizes.keys() == {"m", "n", "k"} else call.op
        if op in {"attention", "norm_linear", "product", "mlp", "depthwise"}:
            assert (op, repr(sorted(call.sizes.items()))) in known
    assert sum(case.count for case in found if case.op == "depthwise" and case.sizes["kernel"] == 3) == 2 + 4
    keys = [(case.op, case.part, repr(case.sizes)) for case in found]
    assert len(set(keys)) == len(keys)


def test_kernels_are_those_of_the_policy() -> None:
    half = list(cases(TINY, 64, 1, Maker(torch.half, "cpu")))
    for case in half:
        rows = {row.kernel for row in ROWS if row.part == case.part and torch.half in row.dtypes and not row.arch}
        assert set(case.kernels) == rows | ({TWO} if case.op == "mlp" else set())
        assert case.chosen is None or case.chosen in case.kernels
    parts = {row.part for row in ROWS if not row.part.endswith("fp8")}
    assert {case.part for case in half} == parts


def a_case(**runs: Tensor) -> Case:
    """An operator whose true result is 1, 2, 3, 4: ours, and PyTorch's rival that rounds a little."""
    exact = ONES_TO_FOUR.double()
    return Case(
        "mlp", "ConvFFN", {"m": 4}, 1, "mlp", 1.0, 1.0, {name: [lambda y=y: y] for name, y in runs.items()},
        {"plain": [(exact * (1 + 1e-4)).float]}, lambda: exact,
    )  # fmt: skip


def test_wrong_kernels_are_not_timed() -> None:
    def unwritten() -> Tensor:
        y = ONES_TO_FOUR.clone()
        y[1, 0] = torch.nan
        return y

    def refused() -> Tensor:
        raise ConfigError("no room")

    good = ONES_TO_FOUR * (1 + 1.5e-4)
    case = a_case(mlp=good, off=ONES_TO_FOUR * (1 + 3e-4), hole=unwritten())
    case = replace(case, kernels={**case.kernels, "refused": [refused]})
    row = case_row(
        case, HostClock(), ceilings(copy_bytes=1 << 16, side=16, device="cpu", dtype=torch.float32), "h100", 0.0
    )
    assert set(row["wrong"]) == {"off", "hole"} and row["failed"] == {"refused": "no room"}
    assert set(row["times_ms"]) == {"mlp", "plain"} and row["best_rival"] == "plain" and row["fastest_kernel"] == "mlp"
    assert row["speedup"] == pytest.approx(row["best_rival_ms"] / row["ms"]) and row["used"]
    text = line(row | {"kind": "operator", "op": "mlp", "sizes": {"m": 4}, "resolution": 64, "batch": 1})
    assert "WRONG off" in text and "failed refused: no room" in text and "mlp*" in text
    assert check(case).errors["mlp"] == pytest.approx(1.5e-4, rel=1e-2)


def test_a_chosen_kernel_that_loses_stands_out() -> None:
    row = {
        "kind": "operator", "op": "mlp", "sizes": {}, "resolution": 64, "batch": 1,
        "times_ms": {"mlp": 2.0, "plain": 1.0},
        "chosen": "mlp", "fastest_kernel": "mlp", "best_rival": "plain", "speedup": 0.5, "floor_ms": 1.0, "wrong": {},
        "failed": {},
    }  # fmt: skip
    assert "0.50x SLOWER" in line(row) and "SLOWER" not in line(row | {"speedup": 1.5})
    assert "SLOWER" not in line(row | {"chosen": None, "speedup": None})


def test_dry_run_and_resuming(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    first = CliRunner().invoke(main, ["--dry-run", "--only", "operators", "--seconds", "0", "--out", str(out)])
    assert first.exit_code == 0 and "the 0 s are over" in first.output, first.output
    before = out.read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["kind"] for row in before] == ["environment", "ceilings"]
    arguments = ["--dry-run", "--gpu", "h100", "--only", "operators", "--out", str(out)]
    second = CliRunner().invoke(main, arguments)
    assert second.exit_code == 0 and "s are over" not in second.output, second.output
    rows = [json.loads(row) for row in out.read_text(encoding="utf-8").splitlines()]
    operators = [row for row in rows if row["kind"] == "operator"]
    assert len(operators) == len(list(cases(TINY, 64, 1, Maker(torch.float32, "cpu"))))
    assert not any(row["wrong"] or row["failed"] for row in operators) and {row["clock"] for row in operators} == {
        "host"
    }
    assert all(row["floor_ms"] > 0 and row["sheet_floor_ms"] > 0 for row in operators)
    third = CliRunner().invoke(main, arguments)
    assert third.exit_code == 0 and len(out.read_text(encoding="utf-8").splitlines()) == len(rows) + 1  # its ceilings


@pytest.mark.long
def test_dry_run_of_the_encoder(tmp_path: Path) -> None:
    """Inductor takes most of a minute for the tiny variant."""
    out = tmp_path / "rows.jsonl"
    done = CliRunner().invoke(main, ["--dry-run", "--only", "encoder", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(row) for row in out.read_text(encoding="utf-8").splitlines()]
    (encoder,) = (row for row in rows if row["kind"] == "encoder")
    assert set(encoder["times_ms"]) == {"ours", "eager fused", "torch.compile reduce-overhead"} and not encoder["wrong"]


def test_rows_of_another_environment(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    RowFile(out, gpu_environment()).add({"kind": "operator", "op": "a"})
    with out.open("a", encoding="utf-8") as file:
        file.write('{"kind": "ope')  # a process that was killed
    assert RowFile(out, gpu_environment()).has({"op": "a"})
    with pytest.raises(ConfigError, match="measured with another kernels"):
        RowFile(out, gpu_environment() | {"kernels": "another"})


def a_job(folder: Path, mode: str = "reduce-overhead") -> compiled.Job:
    model = torch.nn.Linear(4, 3).eval()
    x = torch.randn(2, 4)
    return compiled.save(
        folder, model, x, model.double()(x[:1].double()), mode, backend="eager", device="cpu", samples=2
    )


def test_compiled_in_a_child(tmp_path: Path) -> None:
    job = a_job(tmp_path, "max-autotune")
    torch.save(torch.load(job.model, weights_only=False).float(), job.model)
    found = compiled.measure_in_child(job, 300)
    assert isinstance(found, compiled.Measured)
    assert found.rel_l2 < 1e-5 and len(found.times_ms) == 2 and found.settings == compiled.MAX_AUTOTUNE


def test_a_child_that_fails_or_takes_too_long(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    slow = compiled.measure_in_child(job, 0.05)
    assert isinstance(slow, compiled.Unmeasured) and slow.error == "took longer than 0 s"
    failed = compiled.measure_in_child(replace(job, model=str(tmp_path / "missing.pt")), 300)
    assert isinstance(failed, compiled.Unmeasured)
    assert failed.mode == "reduce-overhead" and "missing.pt" in failed.error


def test_floor() -> None:
    assert floor_ms("fastvithd", 1024, 1, None) is None
    from fvexport.core.gpus import GPUS

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
def test_operators_on_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    plan = Plan(variant="tiny", sizes=((64, 1),), only="operators")
    assert command.run(plan, RowFile(out, gpu_environment()), print)
    rows = [json.loads(row) for row in out.read_text(encoding="utf-8").splitlines()]
    operators = [row for row in rows if row["kind"] == "operator"]
    assert operators and not any(row["wrong"] for row in operators)
    assert all(row["clock"] == "cuda-events" and row["ms"] for row in operators)


@pytest.mark.gpu
@pytest.mark.long
def test_on_a_gpu() -> None:
    outcome = CliRunner().invoke(main, ["--res", "64", "--batch", "1", "--variant", "tiny", "--only", "encoder"])
    assert outcome.exit_code == 0 and "encoder" in outcome.output and "failed" not in outcome.output
