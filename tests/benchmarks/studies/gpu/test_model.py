"""The performance model: its parts, work and totals against other counts of the same encoder, and its orderings."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.benchmarks.studies.gpu import model
from fvexport.benchmarks.studies.gpu.predicted import codes, count_codes, library, release, scenario
from fvexport.benchmarks.studies.gpu.predicted.alternatives import alternatives
from fvexport.benchmarks.studies.gpu.predicted.cost import Cost, Traffic, issue_rate, tensor_clocks
from fvexport.benchmarks.studies.gpu.predicted.device import H100, device_of
from fvexport.benchmarks.studies.gpu.predicted.parts import steps_of
from fvexport.core.errors import ConfigError, UnavailableError
from fvexport.core.gpus import GPUS, Gpu
from fvexport.encoder.config import VARIANTS, get_variant
from fvexport.export.operators import operators
from fvexport.export.roofline import roofline
from fvexport.kernels import language

REPOSITORY = Path(__file__).parents[4]
BIG = get_variant("fastvithd")
PARTS = dict.fromkeys(step.part for step in steps_of(BIG, 64, 64, 1))
SIZES = ((256, 1), (256, 8), (1024, 1), (1024, 8))
"""(side, images per call) of the tables."""
REVIEWED = {(256, 1): 1.44, (256, 8): 2.41, (1024, 1): 3.39, (1024, 8): 21.7}
"""Milliseconds of the release before, by an earlier model of the same GPU with instruction counts typed in by hand."""

needs_triton = pytest.mark.skipif(not language.INSTALLED, reason="recording launches needs Triton")
sides = st.integers(1, 12).map(lambda n: 64 * n)


@pytest.fixture(scope="module")
def predictions():
    return {size: model.predict(*size, changes=False) for size in SIZES}


# --- work --------------------------------------------------------------------------------------------------


@given(sides, sides, st.integers(1, 9), st.sampled_from(sorted(VARIANTS)))
@settings(max_examples=30, deadline=None)
def test_multiply_adds_are_those_of_the_operators(height, width, batch, name):
    config = get_variant(name)
    steps = list(steps_of(config, height, width, batch))
    expected = batch * sum(
        op.macs * block.count for block in operators(config, height, width) for op in block.operators
    )
    assert sum(step.macs * step.count for step in steps) == expected


def test_multiply_adds_at_1024():
    steps = list(steps_of(BIG, 1024, 1024, 1))
    products = sum(step.macs * step.count for step in steps if step.kind == "attention")
    assert products / 1e9 == pytest.approx(6.8, abs=0.05)
    assert (sum(step.macs * step.count for step in steps) - products) / 1e9 == pytest.approx(236.5, abs=0.05)


@given(sides, sides, st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_parts_are_the_same_at_every_size(height, width, batch):
    names = list(dict.fromkeys(step.part for step in steps_of(BIG, height, width, batch)))
    assert names == list(PARTS)


def test_parts_are_named_as_in_the_docs():
    assert {"stem.0", "stem.1", "stem.2", "embeddings", "stage 1 ConvFFN products", "stage 1 dw7"} <= PARTS.keys()


def test_a_resolution_that_the_encoder_does_not_have():
    with pytest.raises(ConfigError, match="multiple of 64"):
        model.predict(100, 1)


# --- totals ------------------------------------------------------------------------------------------------


@needs_triton
def test_before_agrees_with_the_review(predictions):
    for size, expected in REVIEWED.items():
        assert predictions[size].total("before") == pytest.approx(expected, rel=0.10)


@needs_triton
def test_totals_are_sums_of_parts(predictions):
    for (side, batch), prediction in predictions.items():
        image = scenario.Image(side, side, batch)
        assert prediction.total("before") == pytest.approx(model.total_ms(image, scenario.BEFORE, H100))
        assert prediction.total("after") == pytest.approx(model.total_ms(image, scenario.AFTER, H100))
        assert prediction.to_dict()["total"]["after"] == pytest.approx(
            sum(row["after"] for row in prediction.parts.values())
        )


@needs_triton
def test_the_defaults_are_faster_than_the_release_and_every_rival(predictions):
    for prediction in predictions.values():
        rivals = set(prediction.contenders) - {"after"}
        assert prediction.total("after") < min(prediction.total(name) for name in rivals)


@needs_triton
def test_floors_never_exceed_predictions(predictions):
    gpu = Gpu("measured", H100.tensor / 1e12, None, H100.memory / 1e9)
    for (side, batch), prediction in predictions.items():
        for part, row in prediction.parts.items():
            assert prediction.floor[part] < min(row.values()), part
        fused = roofline(BIG, [(side, side)], gpu, batch=batch).floors[0].fused.us / 1e3
        assert max(fused, sum(prediction.floor.values())) < prediction.total("after")


@needs_triton
@given(st.integers(2, 8), st.integers(1, 4))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_more_images_take_longer_and_less_than_one_by_one(n, batch):
    side = 64 * n
    one, more, twice = (model.predict(side, images, changes=False) for images in (batch, batch + 1, 2 * batch))
    for name in one.contenders:
        assert one.total(name) <= more.total(name) * 1.02, name
        assert twice.total(name) <= 2 * one.total(name) * 1.05, name


@needs_triton
@given(st.integers(2, 8))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_larger_images_take_longer(n):
    small, large = (model.predict(64 * k, 1, changes=False) for k in (n, 2 * n))
    for name in small.contenders:
        assert small.total(name) < large.total(name)


@needs_triton
def test_changes_start_at_the_release_and_end_at_the_defaults():
    found = model.predict(256, 1)
    first = next(iter(found.alone))
    assert found.alone[first] == found.together[first]
    assert found.alone[first] <= found.total("before") * 1.01
    half = [change.name for change in model.CHANGES if change.name in found.together and not change.precision]
    assert found.together[half[-1]] <= min(found.alone.values())


# --- launches and codes ------------------------------------------------------------------------------------


@needs_triton
def test_every_launch_of_the_encoder_is_counted():
    missing = [key for key in count_codes.wanted() if key not in codes.stored()]
    assert not missing, f"run `{codes.COMMAND}`"


@needs_triton
def test_nothing_that_the_defaults_launch_spills():
    spills = []
    for side, batch in SIZES:
        image = scenario.Image(side, side, batch)
        for step in image.steps():
            costs = scenario.AFTER.cost(step, image, H100).flat()
            spills += [cost.kernel for cost in costs if cost.code is not None and cost.code.spills]
    assert not spills


def test_the_committed_counts_name_their_versions_and_command():
    data = json.loads(codes.FILE.read_text(encoding="utf-8"))
    assert data["arch"] == "sm_90" and data["versions"]["triton"] and data["command"] == codes.COMMAND


@needs_triton
def test_a_launch_that_was_never_counted(monkeypatch):
    launches = scenario.recorded(scenario.Image(64, 64, 1), 0, True)
    monkeypatch.setattr(codes, "stored", dict)
    with pytest.raises(UnavailableError, match=r"run `python -m"):
        codes.code_of(next(iter(launches.values()))[0])


@needs_triton
def test_counting_gives_what_is_committed_for_an_unchanged_compiler():
    import triton

    data = json.loads(codes.FILE.read_text(encoding="utf-8"))
    key, (launch, sizes) = next(
        (key, found) for key, found in count_codes.wanted().items() if key.startswith("row_stat")
    )
    found, stored = count_codes.counted(launch, sizes), codes.stored()[key]
    if data["versions"]["triton"] == triton.__version__:
        assert found == stored
    assert found.outside == pytest.approx(stored.outside, rel=0.2) and found.loop == stored.loop == 0


@needs_triton
def test_the_release_used_the_fused_mlp_where_its_policy_said():
    steps = {(step.part, side): step for side in (256, 1024) for step in steps_of(BIG, side, side, 1)}

    def chosen(part, side):
        step = steps[part, side]
        return release.kernel(step.row, step.channels, step.rows, H100.processors)

    assert chosen("stage 1 ConvFFN products", 256) == "mlp"
    assert chosen("stage 2 ConvFFN products", 256) is None  # two products
    assert chosen("stage 2 ConvFFN products", 1024) == "mlp"
    assert chosen("stem.0", 256) is None
    assert release.kernel("fc2", 768, 64, H100.processors) == "linear"


# --- costs -------------------------------------------------------------------------------------------------


def test_a_cost_adds_what_follows():
    first = Cost("a", 1.0, {"issue": 2.0, "memory": 3.0}, tail=0.5, pdl=1)
    both = first.then(Cost("b", 2.0, {}))
    assert first.seconds == 4.5 and both.seconds == 6.5
    assert both.all_launches == 2 and first.bound == "memory"
    assert [cost.kernel for cost in both.flat()] == ["a", "b"]
    assert first.with_pdl().seconds < first.seconds and first.with_pdl().pdl == 0


def test_narrow_products_of_tensor_cores_are_bound_by_shared_memory():
    wide = codes.Code(64, 0, 0, 0, 1, mma=1, mma_macs=64 * 128 * 16 // 4)
    narrow = codes.Code(64, 0, 0, 0, 1, mma=4, mma_macs=64 * 32 * 16 // 4)
    assert tensor_clocks(wide, 4) == 64
    assert tensor_clocks(narrow, 4) == pytest.approx(1.5 * 64)


def test_few_programs_read_weights_slowly():
    traffic = Traffic(0.0, weights=18.9e6, in_flight=16384)
    assert traffic.seconds(H100, 24) > 4 * traffic.seconds(H100, 264)


def test_more_warps_issue_more():
    rates = [issue_rate(H100, warps) for warps in (4, 8, 12, 64)]
    assert rates == sorted(rates) and rates[-1] < 4 * H100.clock


@pytest.mark.parametrize(("m", "n", "k", "us"), [(4096, 1536, 384, 11), (1024, 768, 3072, 11.8), (16, 1536, 6144, 9)])
def test_cublas_as_the_review_has_it(m, n, k, us):
    assert 1e6 * library.product(H100, m, n, k).seconds == pytest.approx(us, rel=0.15)


# --- GPUs --------------------------------------------------------------------------------------------------


def test_every_gpu_with_a_data_sheet_has_a_model():
    assert all(gpu.chip is not None for gpu in GPUS)
    assert device_of("h100") == H100 and (H100.tensor, H100.memory, H100.clock) == (798e12, 3.0e12, 1.70e9)
    for gpu in GPUS:
        device = device_of(gpu.name)
        assert 0.5e9 < device.clock < 2.5e9 and device.memory < device.cache * 4


def test_an_unknown_gpu():
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        device_of("h10")


@needs_triton
def test_a_slower_gpu_takes_longer():
    totals = [model.predict(256, 8, device_of(name), changes=False).total("after") for name in ("h100", "a100", "l4")]
    assert totals == sorted(totals)


# --- every kernel for a part ---


@needs_triton
def test_the_policy_takes_nearly_the_fastest_kernels():
    for side, batch in SIZES:
        image = scenario.Image(side, side, batch)
        found = list(alternatives(image, H100))
        assert all(each.chosen in each.costs for each in found)
        lost = sum(each.loss for each in found)
        assert lost < 0.06 * model.total_ms(image, scenario.AFTER, H100) / 1e3


@needs_triton
def test_the_command_prints_choices():
    done = CliRunner().invoke(model.main, ["--res", "128", "--batch", "1", "--choices"])
    assert done.exit_code == 0 and "predicted, not measured" in done.output and "split_k" in done.output


# --- the command -------------------------------------------------------------------------------------------


@needs_triton
def test_the_command_says_that_nothing_is_measured():
    done = CliRunner().invoke(model.main, ["--res", "64", "--batch", "2"])
    assert done.exit_code == 0 and "predicted, not measured" in done.output
    assert "stage 5 ConvFFN products" in done.output


@needs_triton
def test_the_command_prints_json():
    done = CliRunner().invoke(model.main, ["--res", "64,128", "--batch", "1", "--gpu", "h200", "--json"])
    rows = [json.loads(line) for line in done.output.splitlines()]
    assert [row["resolution"] for row in rows] == [64, 128]
    assert all(row["what"] == "predicted, not measured" and row["gpu"] == "h200" for row in rows)
    assert rows[0]["total"]["before"] == pytest.approx(sum(part["before"] for part in rows[0]["parts"].values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--gpu", "h10"], "did you mean 'h100'"), (["--res", "10"], "out of range"), (["--batch", "x"], "whole numbers")],
)
def test_mistakes_are_explained(arguments, message):
    done = CliRunner().invoke(model.main, arguments)
    assert done.exit_code in (1, 2) and message in done.output and "Traceback" not in done.output


@needs_triton
def test_the_docs_have_what_the_command_prints(tmp_path):
    page = REPOSITORY / "docs" / "performance-model.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    done = CliRunner().invoke(model.main, ["--page", str(copy)])
    assert done.exit_code == 0
    renew = "python -m fvexport.benchmarks.studies.gpu.model --page docs/performance-model.md"
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), renew


@needs_triton
def test_a_page_without_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here", encoding="utf-8")
    done = CliRunner().invoke(model.main, ["--page", str(page), "--res", "64", "--batch", "1"])
    assert done.exit_code == 1 and "generated: begin" in done.output
