"""`fvexport tune`."""

from __future__ import annotations

import pytest
import torch


def test_dry_run_lists_the_searches(fvexport) -> None:
    outcome = fvexport("tune", "--dry-run", "--variant", "tiny", "--res", "64", "--res", "128x64", "--batch", "2")
    assert outcome.code == 0 and "searches on sm_" in outcome.out and "attention" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_json(fvexport) -> None:
    answer = fvexport("tune", "--dry-run", "--variant", "tiny", "--res", "64", "--fp32", "--json").json
    assert answer["file"] is None and answer["searches"][0]["key"].startswith("depthwise float32")
    assert answer["searches"][0]["start"]["blocks"].keys() == {"ROWS", "BLOCK_W", "BLOCK_C"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(fvexport) -> None:
    outcome = fvexport("tune", "--variant", "tiny", "--res", "64")
    assert outcome.code == 1 and "cannot time kernels" in outcome.err and not outcome.out


@pytest.mark.parametrize(("args", "code"), [(["--res", "100"], 1), (["--batch", "0"], 2), (["--variant", "tin"], 2)])
def test_wrong_values(fvexport, args: list[str], code: int) -> None:
    assert fvexport("tune", "--dry-run", *args).code == code
