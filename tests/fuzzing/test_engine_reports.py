"""What TensorRT and searches on a GPU leave behind: an inspector's report, and files of block sizes."""

from __future__ import annotations

import json
from pathlib import Path

from limits import fuzz, only_our_errors
from mutations import json_files

from fvexport.export.engines.layers import from_inspector
from fvexport.export.engines.summary import summarize
from fvexport.kernels.table import read_tuned

TENSOR = {"Name": "a", "Dimensions": [1, 8, 32, 32], "Format/Datatype": "Row major linear FP16 format"}
NODE = "[ONNX Layer: stages.3.blocks.0.token_mixer/MatMul]"
REPORT = {
    "Layers": [
        {
            "Name": "stages.0.blocks.0.mlp.fc1/Conv", "LayerType": "CaskConvolution", "Inputs": [TENSOR],
            "Outputs": [TENSOR | {"Datatype": "Half"}], "Constants": [TENSOR], "Metadata": NODE,
        },
        "a layer by name alone",
    ],
}  # fmt: skip
ROW = {"blocks": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8}, "num_warps": 4, "num_stages": 2}
TUNED = {"environment": {"gpu": "a"}, "configs": {"linear half k=64": ROW, "linear half k=128": ROW | {"ms": 0.5}}}


@fuzz(examples=80, content=json_files(REPORT))
def test_inspector_report(content: bytes) -> None:
    with only_our_errors(ValueError):  # the build then has no report
        summary = summarize(from_inspector(content.decode("utf-8", "replace")), "fp16", {})
        assert abs(summary.moved_bytes) < 1 << 63 and json.dumps(summary.largest)


@fuzz(examples=80, content=json_files(TUNED))
def test_tuned_block_sizes(content: bytes, folder: Path) -> None:
    (folder / "gpu.json").write_bytes(content)
    with only_our_errors():
        for row in read_tuned(folder / "gpu.json").values():
            assert max(row.config.arguments.values()) <= 4096


def test_sound_ones_are_read(folder: Path) -> None:
    (folder / "gpu.json").write_text(json.dumps(TUNED))
    assert list(read_tuned(folder / "gpu.json")) == list(TUNED["configs"])
    assert len(from_inspector(json.dumps(REPORT))) == 2
