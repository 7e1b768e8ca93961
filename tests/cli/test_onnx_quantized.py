"""`fvexport onnx --int8`: what it prints, what it refuses, and `fvexport parity` on what it wrote."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

LAYERS = 16
SMALL = ("onnx", "--int8", "--variant", "tiny", "--res", "128", "--samples", "4")


@pytest.fixture(scope="module", autouse=True)
def always_one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8") / "tiny int8"


@pytest.fixture(scope="module")
def written(folder: Path) -> tuple[str, Path]:
    """What the command printed for onnxruntime, and the artifact."""
    from fvexport.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([*SMALL, "--target", "onnxruntime-cpu", "--out", str(folder)])
    assert ended.value.code == 0, err.getvalue()
    assert err.getvalue() == ""
    return out.getvalue(), folder


def test_summary(written: tuple[str, Path]) -> None:
    out, folder = written
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines() if not line.startswith(("next:", "note:"))) <= 80
    for word in ("precision      int8", "quantization", "onnxruntime-cpu", f"{LAYERS} in INT8", "4 pictures of sample"):
        assert word in out
    for word in ("ffn, norm, values, stream", "dB predicted by PyTorch", "PyTorch int8", "prepare", "parity: PASS"):
        assert word in out
    assert "error from block to block" in out
    assert out.count("stages.2.blocks.1 ") == 1 and "stages.2.blocks.0 " not in out  # the last of each stage
    assert "--calib DIR with pictures like your own gives better ranges" in out
    wanted = (
        f"next: fvexport encode photo.jpg --artifact '{folder}' --backend onnxruntime-cpu --out features.safetensors"
    )
    assert out.splitlines()[-1] == wanted


def test_parity_prints_the_curve(fvexport, written: tuple[str, Path]) -> None:
    outcome = fvexport("parity", written[1])
    assert outcome.code == 0 and outcome.err == ""
    assert "parity: PASS" in outcome.out
    rows = [line for line in outcome.out.splitlines() if line.lstrip().startswith(("stem", "stages", "final"))]
    assert len(rows) == 16
    assert all("#" in row for row in rows)
    assert "every block is within its bound" not in outcome.out
    with_layers = fvexport("parity", written[1], "--layers")
    assert with_layers.code == 0
    assert "every block is within its bound" in with_layers.out
    assert "error from block to block" not in with_layers.out


def test_parity_json(fvexport, written: tuple[str, Path]) -> None:
    answer = fvexport("parity", written[1], "--json").json
    assert answer["passed"] and answer["precision"] == "int8"
    assert len(answer["layers"]) == 16
    record = json.loads((written[1] / "manifest.json").read_text())["quantization"]
    assert answer["torch"] == record["predicted"]
    assert {row["name"]: row["torch_rel_l2"] for row in answer["layers"]} == record["blocks"]


def test_other_commands_take_it(fvexport, written: tuple[str, Path], photographs: dict[str, Path]) -> None:
    outcome = fvexport("encode", photographs["coffee"], "--artifact", written[1], "--out", "f.safetensors")
    assert outcome.code == 0, outcome.err
    outcome = fvexport("inspect", written[1])
    assert outcome.code == 0 and "DequantizeLinear" in outcome.out


def test_json_and_a_bound(fvexport, tmp_path: Path) -> None:
    """A bound that eight bits everywhere miss: some layers stay in float, worst first, and the file meets it."""
    outcome = fvexport(*SMALL, "--target", "tensorrt", "--min-sqnr", 36, "--out", "a", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    answer = outcome.json
    assert answer["manifest"] == json.loads((tmp_path / "a/manifest.json").read_text())
    record, verdict = answer["manifest"]["quantization"], answer["verdict"]
    assert (record["target"], record["format"], record["bound_db"]) == ("tensorrt", "int8", 36)
    assert 0 < len(record["float"]) < LAYERS
    assert len(record["float"]) + len(record["quantized"]) == len(record["sensitivity"]) == LAYERS
    assert [row["name"] for row in record["sensitivity"][: len(record["float"])]] == record["float"]
    assert min(verdict["figures"][name] for name in ("sqnr_db", "centred_sqnr_db")) >= 36
    assert any("layers stay in float for 36.0 dB" in notice for notice in answer["notices"])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_bound_without_parity(fvexport, photographs: dict[str, Path]) -> None:
    """It is measured all the same, on --images where they are given; the table shows why layers stay in float."""
    flags = ("--min-cosine", "0.99999", "--no-parity", "--images", photographs["coffee"], "--no-simplify")
    outcome = fvexport(*SMALL, *flags, "--target", "onnxruntime-cpu", "--out", "b")
    assert outcome.code == 0, outcome.err
    assert "most sensitive of 16 layers" in outcome.out
    assert "layers stay in float for 47.0 dB" in outcome.out
    assert "not measured" in outcome.out and "parity was not checked" in outcome.out


@pytest.mark.parametrize(
    "args",
    [
        ["--samples", "4"],
        ["--method", "mse"],
        ["--calib", "sample"],
        ["--ranges", "ranges.json"],
        ["--min-sqnr", "30"],
        ["--min-cosine", "0.9"],
        ["--target", "openvino"],
        ["--fp16", "--method", "mse"],
        ["--fp16", "--min-sqnr", "30"],
        ["--fp16", "--target", "tensorrt"],
        ["--reduce-range"],
        ["--fp16", "--no-reduce-range"],
        ["--bf16", "--calib", "sample"],
    ],
)
def test_options_without_effect(fvexport, tmp_path: Path, args: list[str]) -> None:
    option = next(arg for arg in args if arg not in ("--fp16", "--bf16"))
    precision = args[0] if args[0] in ("--fp16", "--bf16") else "--fp32"
    words = f"{option} has no effect with {precision}"
    fvexport("onnx", "--variant", "tiny", *args).one_line_error(words, "fvexport onnx --help", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--int8", "--fp16"], ["--int8", "--fp16", "exclude each other"]),
        (["--int8", "--fp8"], ["exclude each other"]),
        (["--int8", "--target", "tensort"], ["tensort", "'tensorrt'"]),
        (["--int8", "--method", "ms"], ["'ms'", "'mse'"]),
        (["--int8", "--samples", "0"], ["--samples", "0"]),
        (["--int8", "--no-parity", "--images", "a.jpg"], ["--images", "--no-parity"]),
    ],
)
def test_wrong_usage(fvexport, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    fvexport("onnx", "--variant", "tiny", *args).one_line_error(*parts, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--calib", "nowhere"], ["--calib nowhere", "does not exist"]),
        (["--calib", "."], ["no image"]),
        (["--ranges", "nowhere.json"], ["nowhere.json", "fvexport calibrate"]),
        (["--ranges", "ranges.json", "--calib", "sample"], ["--ranges", "--calib", "one of them"]),
        (["--min-sqnr", "0"], ["--min-sqnr", "found 0"]),
        (["--min-cosine", "1.5"], ["--min-cosine", "found 1.5"]),
        (["--opset", "18"], ["opset 19", "--opset 18"]),
        (["--images", "missing.jpg"], ["missing.jpg"]),
    ],
)
def test_refusals(fvexport, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    for more in ([], ["--json"]):
        fvexport("onnx", "--int8", "--variant", "tiny", "--res", 64, *args, *more).one_line_error(*parts)
    assert not list(tmp_path.iterdir())


def test_fp8_is_tensorrts(fvexport, tmp_path: Path) -> None:
    fvexport("onnx", "--fp8", "--variant", "tiny", "--target", "openvino").one_line_error("TensorRT", "--int8")
    assert not list(tmp_path.iterdir())


def test_a_broken_folder_of_pictures(fvexport, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no picture")
    fvexport(*SMALL, "--calib", "photos", "--out", "x").one_line_error("--calib photos", "a.jpg")
    fvexport("onnx", "--fp16", "--variant", "tiny", "--res", 64, "--calib", "photos").one_line_error("--calib photos")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_bound_out_of_reach(fvexport, tmp_path: Path) -> None:
    flags = ("--res", "64", "--samples", "2", "--min-sqnr", "150")
    outcome = fvexport("onnx", "--int8", "--variant", "tiny", *flags)
    outcome.one_line_error("no quantized model reaches 150.0 dB", "15 of 16 layers", "--min-sqnr")
    assert not list(tmp_path.iterdir())
