"""The table of kernels, and the tables of block sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fvexport.core.gpus import get_chip, get_gpu
from fvexport.encoder.config import FastViTHDConfig
from fvexport.kernels import table
from fvexport.kernels.dispatch import BASELINE, DEFAULTS, DTYPES, FP8_OPS, LIBRARY_OPS, OPS, PRODUCTS
from fvexport.kernels.policy import HALF, ROWS, in_fp8, kernel_for
from fvexport.kernels.products import KERNELS
from fvexport.kernels.table import Config, Row, committed, config_for, default_config, dtype_class, key_of, tuned

HALVES = list(HALF)


PARTS = {row.part for row in ROWS}
SIZES = [(channels, rows) for channels in (96, 192, 384, 768, 1536, 3072, 6144) for rows in (1, 16, 256, 4096, 10**6)]


def test_every_row_can_be_reached() -> None:
    reached = {
        (part, kernel_for(part, dtype, channels, rows, 108, allowed, arch=arch))
        for part in PARTS
        for dtype in DTYPES
        for channels, rows in SIZES
        for arch in ("sm_80", "sm_90")
        for allowed in (DEFAULTS, BASELINE, OPS)
    }
    assert {(part, kernel) for part, kernel in reached if kernel} == {(row.part, row.kernel) for row in ROWS}
    assert {row.kernel for row in ROWS} == set(OPS) and all(row.why for row in ROWS)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_100", "sm_120", "interpreter"])
def test_other_gpus_have_the_baseline(arch: str) -> None:
    """Predictions for the H100 say nothing about them; what saves passes or instructions does so on every GPU."""
    everywhere = {None, "stem", "depthwise_rows", "depthwise_pairs", *BASELINE, *FP8_OPS}
    for part in PARTS:
        for channels, rows in SIZES:
            chosen = kernel_for(part, torch.float16, channels, rows, 108, arch=arch)
            assert chosen in everywhere


@pytest.mark.parametrize("part", ["fc1", "fc2", "pointwise", "qkv", "proj"])
def test_every_product_has_a_kernel_in_half_precision(part: str) -> None:
    """Also if each of the newer ones is left out."""
    for allowed in (DEFAULTS, *(DEFAULTS - {name} for name in PRODUCTS), BASELINE):
        for channels, rows in SIZES:
            kernel = kernel_for(part, torch.float16, channels, rows, 132, allowed, arch="sm_90")
            assert kernel in allowed and (kernel in KERNELS or kernel == "norm_linear")


@pytest.mark.parametrize(
    ("part", "channels", "rows", "wanted"),
    [
        ("ConvFFN", 96, 65536, "mlp"), ("ConvFFN", 96, 4096, None), ("ConvFFN", 192, 16384, "mlp"),
        ("ConvFFN", 384, 4096, None), ("fc1", 768, 1024, "cublas"), ("fc1", 384, 4096, "linear_tma"),
        ("fc2", 1536, 256, "split_k"), ("fc2", 1536, 4096, "linear_tma"),
        ("fc2", 1536, 32768, "cublas"), ("fc2", 3072, 1024, "cublas"),
        ("fc2", 6144, 16, "split_k"), ("qkv", 768, 1024, "cublas"), ("proj", 1536, 16, "split_k"),
        ("proj", 768, 1024, "linear_tma"), ("pointwise", 96, 65536, "linear_tma"),
    ],
)  # fmt: skip
def test_an_h100(part: str, channels: int, rows: int, wanted: str | None) -> None:
    assert kernel_for(part, torch.float16, channels, rows, 132, arch="sm_90") == wanted
    assert kernel_for(part, torch.float32, channels, rows, 132, arch="sm_90") is None


def test_what_is_multiplied_in_fp8() -> None:
    """The model alone decides it, whatever kernels are allowed: the function must not depend on the machine."""
    for part in ("qkv", "proj"):
        assert in_fp8(part, 768) and in_fp8(part, 96)
    for part in ("fc1", "fc2"):
        assert [in_fp8(part, c) for c in (96, 192, 384, 768, 1536)] == [False, False, True, True, True]
    assert not in_fp8("stem", 384)
    assert kernel_for("qkv fp8", torch.float16, 768, 1024, 132) == "linear_fp8"
    assert kernel_for("qkv fp8", torch.float16, 768, 1024, 132, OPS) == "scaled_mm"
    assert kernel_for("fc1 fp8", torch.bfloat16, 768, 1024, 132, OPS) == "linear_fp8"  # GELU rides on it
    assert kernel_for("qkv fp8", torch.float16, 768, 1024, 132, ()) is None


def test_float32_products_are_pytorchs() -> None:
    for part in ("ConvFFN", "fc1", "fc2", "qkv", "attention", "proj", "pointwise", "fc1 fp8", "qkv fp8", "norm fp8"):
        assert kernel_for(part, torch.float32, 96, 4096, 108) is None
    assert kernel_for("depthwise", torch.float32, 96, 4096, 108) == "depthwise_rows"
    assert kernel_for("depthwise 7x7", torch.float32, 96, 4096, 108, arch="sm_90") == "depthwise_rows"
    assert kernel_for("depthwise x2", torch.float32, 96, 4096, 108) == "depthwise_pairs"
    assert kernel_for("depthwise x2", torch.float32, 96, 4096, 108, BASELINE) == "depthwise"
    assert kernel_for("squeeze-excite", torch.float16, 96, 4096, 108) is None


def ffn_floor(channels: int, rows: int, *, block: int, ratio: int = 4) -> dict[str, float]:
    """Seconds that a ConvFFN's two products take at least on an A100, in half precision: `mlp`, and `linear` twice.

    Both do the same FLOPs on the processors that have a program, and move x, residual and result. `linear` moves the
    hidden tensor too; `mlp` has one program for `block` rows, and each of them reads all weights from L2, which gives
    5120 bytes per clock at 1.41 GHz (NVIDIA's A100 white paper).
    """
    sheet, processors, cache = get_gpu("a100-40gb"), get_chip("a100-40gb").processors, 5120 * 1.41e9
    rate, memory = 1e12 * sheet.tflops, 1e9 * sheet.bandwidth
    hidden = ratio * channels
    weights = 2 * channels * hidden * 2.0  # bytes
    flops = 2 * 2 * channels * hidden * rows
    streams = 3 * rows * channels * 2
    programs = -(-rows // block)
    waves = -(-programs // processors)
    each = block * 2 * 2 * channels * hidden / (rate / processors)
    return {
        "mlp": max(waves * each, (streams + weights) / memory, programs * weights / cache),
        "linear": max(flops / rate, (streams + weights + 2 * rows * hidden * 2) / memory),
    }


@pytest.mark.parametrize("res", [256, 512, 768, 1024, 1536, 2048])
@pytest.mark.parametrize("batch", [1, 8])
def test_where_mlp_is_used_follows_from_its_floor(res: int, batch: int) -> None:
    """One launch less is worth the rest of the difference, a few microseconds."""
    config = FastViTHDConfig()
    for channels, (h, w) in zip(config.dims, config.stage_resolutions(res, res), strict=True):
        rows = batch * h * w
        block = default_config("mlp", "sm_80", "half", {"m": rows, "c": channels, "hidden": 4 * channels})
        floor = ffn_floor(channels, rows, block=block.blocks["BLOCK_M"])
        if kernel_for("ConvFFN", torch.float16, channels, rows, get_chip("a100-40gb").processors) == "mlp":
            assert floor["mlp"] < floor["linear"] + 2e-6, (channels, rows)
        else:
            assert floor["linear"] < floor["mlp"] + 2e-6, (channels, rows)


@pytest.mark.parametrize("op", [op for op in OPS if op not in LIBRARY_OPS])
def test_committed_tables(op: str) -> None:
    """Every size finds a row, and every row says why and what a GPU can hold."""
    rows = committed(op)
    assert json.loads((table.CONFIGS / f"{op}.json").read_text(encoding="utf-8"))["kernel"] == op
    assert rows[-1].arch == () and rows[-1].dtype is None and not rows[-1].sizes
    for row in rows:
        assert row.why and row.dtype in (None, "half", "float32")
        assert all(size & (size - 1) == 0 for size in row.config.blocks.values())
        assert row.config.num_warps in (1, 2, 4, 8, 16) and 1 <= row.config.num_stages <= 6
        assert set(row.config.blocks) == set(rows[0].config.blocks)


def test_the_first_row_that_fits() -> None:
    row = Row(Config({"A": 1}), "", ("sm_90",), "half", {"m": (None, 64), "k": (10, None)})
    assert row.fits("sm_90", "half", {"m": 64, "k": 10})
    for arch, dtype, m, k in (("sm_80", "half", 64, 10), ("sm_90", "float32", 64, 10), ("sm_90", "half", 65, 10)):
        assert not row.fits(arch, dtype, {"m": m, "k": k})
    assert not row.fits("sm_90", "half", {"m": 64, "k": 9})
    assert default_config("attention", "sm_90", "half", {"tokens": 16, "batch": 1, "heads": 24}).blocks["BLOCK_M"] == 16


def test_strips_for_7x7_on_an_h100() -> None:
    def chosen(arch: str, dtype: torch.dtype = torch.float16) -> str | None:
        return kernel_for("depthwise 7x7", dtype, 384, 4096, 132, arch=arch)

    assert chosen("sm_90") == "depthwise_strips"
    assert chosen("sm_89") == chosen("sm_120") == chosen("sm_90", torch.float32) == "depthwise_rows"


def test_bounds_of_a_product() -> None:
    row = Row(Config({"A": 1}), "", sizes={"batch*height": (10, 20)})
    assert row.fits("sm_90", "half", {"batch": 2, "height": 5}) and row.fits("sm_90", "half", {"batch": 4, "height": 5})
    assert not row.fits("sm_90", "half", {"batch": 3, "height": 3}) and not row.fits(
        "", "half", {"batch": 3, "height": 7}
    )


def test_key_of_a_search() -> None:
    sizes = {"m": 1000, "n": 2304, "k": 768}
    assert key_of("linear", torch.float16, sizes) == "linear half k=768 m=1024 n=2304"
    assert key_of("linear", torch.bfloat16, {**sizes, "m": 1024}) == "linear half k=768 m=1024 n=2304"
    assert key_of("linear", torch.float32, {**sizes, "m": 1}) == "linear float32 k=768 m=1 n=2304"
    assert dtype_class(torch.float32) == "float32"


@pytest.mark.parametrize("text", ["", "{}", '{"configs": 3}', '{"configs": {"a": {"blocks": 1}}}', "[]"])
def test_a_broken_cache_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(table, "cache_file", lambda device: tmp_path / "cache.json")
    tuned.cache_clear()
    assert tuned(torch.device("cuda")) == {}
    tuned.cache_clear()


def test_a_choice_is_made_once_and_again_for_other_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are looked up at every launch, which would cost more Python than the launch itself."""
    x, sizes = torch.empty(3, 64, dtype=torch.float16), {"m": 3, "n": 64, "k": 64}
    first = config_for("linear", x, sizes)
    assert first == default_config("linear", "interpreter", "half", sizes)
    with monkeypatch.context() as patch:
        patch.setattr(table, "default_config", lambda *_: pytest.fail("searched again"))
        assert config_for("linear", x, dict(sizes)) is first
    other = Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16})
    with monkeypatch.context() as patch:
        patch.setattr(table, "committed", lambda op: (Row(other, "a test's"),))
        assert config_for("linear", x, sizes) is other
    assert config_for("linear", x, sizes) == first
    assert config_for("linear", x.float(), sizes) == default_config("linear", "interpreter", "float32", sizes)


def test_a_finished_search_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnAGpu:
        device, dtype = torch.device("cuda", 0), torch.float16

    sizes = {"m": 1000, "n": 64, "k": 64}
    monkeypatch.setattr(table, "arch_of", lambda device: "sm_90")
    found: dict[str, Config] = {}
    monkeypatch.setattr(table, "tuned", lambda device: found)
    assert config_for("linear", OnAGpu(), sizes) == default_config("linear", "sm_90", "half", sizes)
    found = {"linear half k=64 m=1024 n=64": Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16})}
    assert config_for("linear", OnAGpu(), sizes) is found["linear half k=64 m=1024 n=64"]
