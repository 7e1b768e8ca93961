"""The table of kernels, and the tables of block sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fvexport.encoder.config import FastViTHDConfig
from fvexport.kernels import table
from fvexport.kernels.dispatch import BASELINE, DEFAULTS, DTYPES, OPS
from fvexport.kernels.policy import A100, HALF, ROWS, ffn_floor, kernel_for
from fvexport.kernels.table import Config, Row, committed, default_config, dtype_class, key_of, tuned

HALVES = list(HALF)


def test_every_row_can_be_reached() -> None:
    reached = set()
    for part in {row.part for row in ROWS}:
        for dtype in DTYPES:
            for channels in (96, 192, 384, 768, 1536):
                for rows in (1, 10**6):
                    for allowed in (DEFAULTS, BASELINE, OPS):
                        for arch in ("", "sm_90"):
                            if kernel := kernel_for(part, dtype, channels, rows, 108, allowed, arch=arch):
                                reached.add((part, kernel))
    assert reached == {(row.part, row.kernel) for row in ROWS}
    assert {row.kernel for row in ROWS} == set(OPS) and all(row.why for row in ROWS)


def test_float32_products_are_pytorchs() -> None:
    for part in ("ConvFFN", "qkv", "attention", "proj", "pointwise"):
        assert kernel_for(part, torch.float32, 96, 4096, 108) is None
    assert kernel_for("depthwise", torch.float32, 96, 4096, 108) == "depthwise_rows"
    assert kernel_for("depthwise 7x7", torch.float32, 96, 4096, 108, arch="sm_90") == "depthwise_rows"
    assert kernel_for("depthwise x2", torch.float32, 96, 4096, 108) == "depthwise_pairs"
    assert kernel_for("depthwise x2", torch.float32, 96, 4096, 108, BASELINE) == "depthwise"
    assert kernel_for("squeeze-excite", torch.float16, 96, 4096, 108) is None


@pytest.mark.parametrize("res", [256, 512, 768, 1024, 1536, 2048])
@pytest.mark.parametrize("batch", [1, 8])
def test_where_mlp_is_used_follows_from_its_floor(res: int, batch: int) -> None:
    """One launch less is worth the rest of the difference, a few microseconds."""
    config = FastViTHDConfig()
    for channels, (h, w) in zip(config.dims, config.stage_resolutions(res, res), strict=True):
        rows = batch * h * w
        block = default_config("mlp", "sm_80", "half", {"m": rows, "c": channels, "hidden": 4 * channels})
        floor = ffn_floor(channels, rows, A100, block=block.blocks["BLOCK_M"])
        if kernel_for("ConvFFN", torch.float16, channels, rows, A100.processors) == "mlp":
            assert floor["mlp"] < floor["linear"] + 2e-6, (channels, rows)
        else:
            assert floor["linear"] < floor["mlp"] + 2e-6, (channels, rows)


@pytest.mark.parametrize("op", OPS)
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


def test_tensor_cores_for_7x7_where_they_are_quick() -> None:
    def chosen(arch: str, rows: int) -> str | None:
        return kernel_for("depthwise 7x7", torch.float16, 384, rows, 132, arch=arch)

    assert chosen("sm_90", 4096) == chosen("sm_80", 4096) == "depthwise_mma"
    assert chosen("sm_89", 4096) == chosen("sm_120", 4096) == chosen("sm_90", 256) == "depthwise_rows"


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
