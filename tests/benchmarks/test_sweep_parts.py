"""The parts of a sweep that need no process: options, the plan, figures of windows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.benchmarks.sweep import plan as planning
from fvexport.benchmarks.sweep.environment import find_environment
from fvexport.benchmarks.sweep.messages import Weights
from fvexport.benchmarks.sweep.plan import Plan, compiles, make_plan
from fvexport.benchmarks.sweep.sweep_options import Measuring, SweepOptions
from fvexport.benchmarks.sweep.windows import TimedWindow, is_stable, spread, summarize, unstable_reason
from fvexport.benchmarks.sweep.worker_process import Worker, WorkerError
from fvexport.calibration.policy import QUANT_TARGETS
from fvexport.cli.sweep_command import sweep
from fvexport.core.errors import ConfigError, UnavailableError
from fvexport.encoder.weight_options import WeightOptions
from fvexport.export.backend_table import BACKENDS, get_backend

WEIGHTS = Weights(checkpoint="seeded:0", variant="tiny", sha256="0123456789abcdef")
times = st.lists(st.floats(min_value=0.01, max_value=1e4), min_size=1, max_size=9)


def taken(*medians: float, reference: str = "", reference_ms: tuple[float, ...] = ()) -> list[TimedWindow]:
    beside = reference_ms or (None,) * len(medians)
    return [TimedWindow(i, (m,), reference, r) for i, (m, r) in enumerate(zip(medians, beside, strict=True))]


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolutions": ((100, 64),)}, "not a multiple of 64"),
        ({"resolutions": ()}, "no resolution"),
        ({"backends": ("openvin",)}, "did you mean 'openvino'"),
        ({"precisions": ("fp4",)}, "unknown precision 'fp4'"),
        ({"llms": ("llama",)}, "unknown language model"),
        ({"batches": (1, 0)}, "--batch must be at least 1"),
        ({"budget_s": 0.0}, "--budget must be above 0"),
        ({"memory_gb": -1.0}, "--memory must be above 0"),
        ({"weights": WeightOptions(variant="huge")}, "huge"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, UnavailableError), match=said):
        SweepOptions(**changes)


# --- plan --------------------------------------------------------------------------------------


@pytest.fixture
def everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All targets and peers but CUDA's."""
    monkeypatch.setattr(planning, "_why_absent", lambda row: "no GPU" if "cuda" in row.name else None)
    monkeypatch.setattr(planning, "why_peer_absent", lambda *_: None)


def planned(**changes: Any) -> Plan:
    return make_plan(
        SweepOptions(**{"threads": 2, "weights": WeightOptions(variant="tiny")} | changes), WEIGHTS, "here"
    )


@pytest.mark.usefixtures("everything_runs")
def test_all_means_every_row_in_every_precision_of_its_own() -> None:
    plan = planned(resolutions=((64, 64),))
    found = {(c.backend, c.precision) for c in plan.cells if c.kind == "ours"}
    assert found == {(row.name, p) for row in BACKENDS if "cuda" not in row.name for p in row.precisions}
    assert [(a.backend, a.precision, a.reason) for a in plan.absent if a.kind == "ours"] == [
        (row.name, None, "no GPU") for row in BACKENDS if "cuda" in row.name
    ]
    assert {c.form for c in plan.cells if c.backend == "eager"} == {"train", "fused", "channels-last"}
    assert all((c.samples is not None) == (c.precision in ("int8", "fp8")) for c in plan.cells)
    assert len({c.id for c in plan.cells}) == len(plan.cells)


@pytest.mark.usefixtures("everything_runs")
def test_a_precision_that_a_backend_lacks_is_said() -> None:
    plan = planned(resolutions=((64, 64),), precisions=("int8",), backends=("eager", "openvino"), peers=False)
    assert [c.series for c in plan.cells] == ["openvino int8"]
    assert [(a.backend, a.precision, a.reason) for a in plan.absent] == [
        ("eager", "int8", "does not run int8 natively")
    ]


@pytest.mark.usefixtures("everything_runs")
def test_the_most_telling_cells_come_first() -> None:
    sizes = ((2048, 2048), (512, 512), (256, 256), (1024, 1024))
    plan = planned(resolutions=sizes, batches=(8, 1), precisions=("bf16", "fp32", "int8"))
    order = [(group[0].batch, group[0].height) for group in plan.groups]
    assert order == [(b, side) for b in (1, 8) for side in (256, 1024, 512, 2048)]
    for group in plan.groups:
        assert {(c.batch, c.resolution) for c in group} == {(group[0].batch, group[0].resolution)}
        names = [c.series for c in group]
        assert names[0] == "onnxruntime-cpu fp32"  # the reference of the others
        slow = [compiles(c) for c in group]
        assert slow == sorted(slow) and any(slow)  # those that compile first come last
        assert names.index("openvino fp32") < names.index("openvino int8") < names.index("openvino bf16")


@pytest.mark.usefixtures("everything_runs")
def test_language_models_come_last_and_one_row_is_of_tiles() -> None:
    plan = planned(resolutions=((256, 256), (512, 512)), llms=("qwen2-0.5b",), backends=("openvino",), peers=False)
    kinds = [c.kind for c in plan.cells]
    assert kinds == sorted(kinds, key=lambda kind: kind == "ttft")
    rows = [(c.resolution, c.llm, c.prompt_tokens) for c in plan.cells if c.kind == "ttft" and c.precision == "fp32"]
    assert rows == [(r, "qwen2-0.5b", 32) for r in ("256", "512", "1024 as 5 x 512")]


def test_a_language_model_without_its_library_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    find = planning.importlib.util.find_spec
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda n: None if n == "transformers" else find(n))
    plan = planned(resolutions=((64, 64),), llms=("qwen2-7b",), backends=("onnxruntime-cpu",), peers=False)
    assert ("qwen2-7b", "transformers is not installed", "ttft") in [(a.backend, a.reason, a.kind) for a in plan.absent]
    assert all(c.kind == "ours" for c in plan.cells)


def test_aliases_are_the_backends_that_they_name() -> None:
    plan = planned(resolutions=((64, 64),), backends=("cpu", "onnxruntime-cpu"), precisions=("fp32",), peers=False)
    assert [cell.backend for cell in plan.cells] == ["onnxruntime-cpu"]
    context = click.Context(sweep)
    given = next(p for p in sweep.params if p.name == "backends")
    assert given.type_cast_value(context, "cpu, trt,onnxruntime-cpu") == ("onnxruntime-cpu", "tensorrt")
    with pytest.raises(click.BadParameter, match="Did you mean 'openvino'"):
        given.type_cast_value(context, "openvin")


def test_a_broken_runtime_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(row: Any) -> None:
        if row.name == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(planning, "why_absent", broken)
    plan = planned(resolutions=((64, 64),), backends=("openvino", "eager"), peers=False)
    assert [a.reason for a in plan.absent] == ["openvino fails to import: libtbb.so.12: cannot open shared object file"]
    assert {c.backend for c in plan.cells} == {"eager"}


def test_quantized_files_are_made_for_the_row_that_runs_them() -> None:
    assert {name: get_backend(name).quant_target for name in QUANT_TARGETS} == {name: name for name in QUANT_TARGETS}
    assert get_backend("tensorrt-rtx").quant_target == "tensorrt"


def test_the_environment_names_what_ran() -> None:
    found = find_environment(Measuring(), "fvexport sweep")
    assert found.versions["torch"] and found.cpu["cores"] >= found.cpu["usable"] >= 1
    assert found.settings["tolerance"] == 0.05 and found.command == "fvexport sweep"
    assert find_environment(Measuring(), "another").id == found.id


# --- figures -----------------------------------------------------------------------------------


@given(windows=st.lists(times, min_size=1, max_size=8))
def test_figures_are_numpys_over_all_calls(windows: list[list[float]]) -> None:
    found = summarize([TimedWindow(i, tuple(w)) for i, w in enumerate(windows)], Measuring(), "wall")
    calls = np.concatenate([np.array(w) for w in windows])
    assert found.count == len(calls)
    for share, value in ((50, found.p50_ms), (90, found.p90_ms), (99, found.p99_ms)):
        assert value == pytest.approx(np.percentile(calls, share), rel=1e-9)
    assert found.mean_ms == pytest.approx(calls.mean()) and found.min_ms == calls.min()
    assert [w.median_ms for w in found.windows] == pytest.approx([statistics.median(w) for w in windows])
    assert found.ratio is None


def test_windows_agree_by_time_or_by_ratio() -> None:
    steady, drifting = (100.0, 101.0, 99.0), (100.0, 150.0, 225.0)
    assert spread(taken(*steady), 3) == pytest.approx(0.02)
    assert spread(taken(*drifting), 3) == pytest.approx(125 / 150)
    # The machine drifts: the ratio stands.
    assert spread(taken(*drifting, reference="r", reference_ms=(10, 15, 22.5)), 3) == pytest.approx(0)
    # The reference alone was disturbed.
    assert spread(taken(*steady, reference="r", reference_ms=(10, 15, 22.5)), 3) == pytest.approx(0.02)
    assert spread(taken(1.0, 1.0), 3) == float("inf")


def test_only_the_last_windows_have_to_agree_and_enough_of_them() -> None:
    how = Measuring(min_rounds=4, max_rounds=9)
    assert not is_stable(taken(1, 1, 1), how)
    assert is_stable(taken(9, 1, 1, 1), how)
    assert not is_stable(taken(1, 1, 1, 9), how)
    with pytest.raises(ConfigError, match="--rounds must be at least 3"):
        Measuring(min_rounds=2)


def test_ratios_are_of_one_reference() -> None:
    windows = [*taken(10, 12, reference="a", reference_ms=(5, 6)), TimedWindow(2, (30.0,), "b", 1.0)]
    found = summarize(windows, Measuring(), "wall")
    assert found.reference == "a" and found.ratios == [2, 2] and found.ratio == 2


def test_why_it_is_unstable_is_said() -> None:
    how = Measuring(min_rounds=3, max_rounds=4)
    wild = summarize(taken(1, 2, 3, 4), how, "wall")
    assert unstable_reason(wild, how) == "after 4 rounds the last 3 windows still differ by 66.7%, more than 5%"
    cut = summarize(taken(1, 1), how, "wall")
    assert unstable_reason(cut, how, "the budget ended") == "the budget ended after 2 of 3 rounds"


def test_a_worker_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="could not be started") as caught:
        Worker(tmp_path / "log", threads=1, command=["/nonexistent/python"])
    assert caught.value.status == "failed"
