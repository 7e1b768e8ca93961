"""Layers, from a real build's log and from an inspector's JSON, and what is said of them."""

from __future__ import annotations

import json

import pytest

from fvexport.export.engines.layers import EngineLayer, LayerTensor, from_inspector, from_log
from fvexport.export.engines.summary import summarize

# As NVIDIA's documentation of the engine inspector shows them: 10 writes a type within the format, 11 on its own.
OF_10 = {
    "Layers": [
        {
            "Name": "stages.0.blocks.0.mlp.fc1/Conv", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Dimensions": [1, 8, 32, 32], "Format/Datatype": "Channel major INT8 format"}],
            "Outputs": [{"Name": "b", "Dimensions": [1, 32, 32, 32], "Format/Datatype": "Linear FP16 format"}],
            "TacticName": "sm80_xmma", "Metadata": "[ONNX Layer: stages.0.blocks.0.mlp.fc1/Conv]",
        },
        {
            "Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat",
            "Inputs": [{"Name": "b", "Dimensions": [1, 32, 32, 32], "Format/Datatype": "Row major linear FP32 format"}],
            "Outputs": [{"Name": "c", "Dimensions": [1, 32, 32, 32], "Format/Datatype": "Linear FP16 format"}],
        },
    ],
    "Bindings": ["pixel_values", "image_features"],
}  # fmt: skip
OF_11 = {
    "Layers": [
        {
            "Name": "stages.0.blocks.0.mlp.fc1/Conv_myl0_6", "LayerType": "correlation",
            "Inputs": [{"Name": "a", "Dimensions": [1, 8, 32, 32], "Datatype": "Int8", "Format": "(NHWC)"}],
            "Constants": [{"Name": "w", "Dimensions": [32, 8, 1, 1], "Datatype": "Half", "Format": "(NHWC)"}],
            "Outputs": [{"Name": "b", "Dimensions": [1, 32, 32, 32], "Datatype": "Half", "Format": "(NHWC)"}],
            "Metadata": "[ONNX Layer: stages.0.blocks.0.mlp.fc1/Conv][ONNX Layer: stages.0.blocks.0.mlp.act/Gelu]",
        },
        "a layer by name alone",
    ],
    "I/O Tensors": [{"Name": "pixel_values"}],
}  # fmt: skip


def test_an_inspector_of_10() -> None:
    conv, reformat = from_inspector(json.dumps(OF_10))
    assert (conv.precision, conv.products) == ("int8", ("stages.0.blocks.0.mlp.fc1/Conv",))
    assert (reformat.precision, reformat.moves_only, reformat.products) == ("fp16", True, ())
    assert reformat.inputs[0].bytes == 32 * 32 * 32 * 4


def test_an_inspector_of_11() -> None:
    conv, named = from_inspector(json.dumps(OF_11))
    assert conv.nodes == ("stages.0.blocks.0.mlp.fc1/Conv", "stages.0.blocks.0.mlp.act/Gelu")
    assert conv.precision == "fp16"  # its weight is
    assert named.nodes == ("a layer by name alone",) and named.precision == "none"
    told = summarize([conv], "fp16", {"stages.0.blocks.0.mlp.fc1": "int8"})
    assert [(fall.wanted, fall.found) for fall in told.fallbacks] == [("int8", "fp16")]
    assert summarize([conv], "fp16").fallbacks == []


def test_what_is_no_layer_is_passed_over() -> None:
    assert from_log(["", "Layers:", "I/O Tensors:", " Name: pixel_values, IOMode: Input, DataType: Float"]) == []


def test_pure_data_movement() -> None:
    def layer(name: str, kind: str = "kgen") -> EngineLayer:
        half = (LayerTensor("x", "fp16", (2, 3)),)
        return EngineLayer(name, kind, half, half, (), ("a/Conv",))

    assert layer("__myl_ReshConcResh_myl0_8").moves_only and layer("__myl_ReshConcResh_myl0_8").products == ()
    assert not layer("__myl_MulAddReshTran_myl0_8").moves_only
    assert layer("__myl_CorrDivCastErf_myl0_8").products == ("a/Conv",)
    told = summarize([layer("__myl_TranMove_myl0_1"), layer("a/Conv_myl0_2", "correlation")], "fp16")
    assert (told.moves, told.moved_bytes, told.products) == (1, 24, {"fp16": 1})


def test_sizes_known_only_at_run_time_count_nothing() -> None:
    assert LayerTensor("x", "fp16", (-1, 3, 64, 64)).bytes == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"Layers": 1}', '{"Layers": [1]}', '{"Layers": [{"Name": 1}]}', "[" * 100_000, "null",
        '{"Layers": [{"Inputs": [{"Dimensions": "x"}]}]}', '{"Layers": [{"Inputs": [{"Dimensions": [1e999]}]}]}',
        '{"Layers": [{"Inputs": [{"Dimensions": [1099511627776, 1099511627776]}]}]}',
        f'{{"Layers": [{{"Inputs": [{{"Dimensions": [{"9" * 5000}]}}]}}]}}',
    ],
)  # fmt: skip
def test_reports_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_inspector(text)
