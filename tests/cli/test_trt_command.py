"""`fvexport trt`: what it prints, and every refusal in one line with nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

SMALL = ("--variant", "tiny", "--res", "64")


@pytest.fixture(scope="module")
def engine(tensorrt_rtx: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an engine, made by the library."""
    from fvexport.export.engine_export import export_trt
    from fvexport.export.export_options import ExportOptions

    out = tmp_path_factory.mktemp("cli") / "engine"
    export_trt(None, out, variant="tiny", options=ExportOptions(height=64, width=64, precision="fp16"))
    return out


def test_summary_table_notice_and_next_command(fvexport, tensorrt_rtx: Any, tmp_path: Path) -> None:
    outcome = fvexport("trt", *SMALL, "--int8", "--samples", 2, "--out", "made here")
    assert outcome.code == 0 and outcome.err == ""
    text = outcome.out
    assert max(len(line) for line in text.splitlines() if not line.startswith(("next:", "note:"))) <= 80
    for word in (
        "TensorRT engine", "int8, parity PASS", "bound to", "compute capability", "batch 1, height 64, width 64",
        "on disk", "of weights", "of activations", "computed in", "convolutions and products", "in one kernel each",
        "wider than asked  nothing", "lay values out anew", "build", "largest",
    ):  # fmt: skip
        assert word in text, word
    assert "was not run, for want of an NVIDIA GPU" in text
    last = "next: fvexport encode photo.jpg --artifact 'made here' --backend tensorrt-rtx --out features.safetensors"
    assert text.splitlines()[-1] == last
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made here"]


def test_json_and_taking_what_is_there(fvexport, tensorrt_rtx: Any) -> None:
    onnx = fvexport("onnx", *SMALL, "--fp16", "--out", "a", "--json")
    assert onnx.code == 0, onnx.err
    found = fvexport("trt", *SMALL, "--out", "a", "--json")
    assert found.code == 0, found.err
    answer = found.json
    assert answer["onnx_reused"] is True and answer["manifest"]["engine"]["flavour"] == "tensorrt-rtx"
    assert answer["manifest"]["checkpoint"] == onnx.json["manifest"]["checkpoint"]
    again = fvexport("trt", *SMALL, "--out", "a")
    again.one_line_error("a holds an engine already; replace it with --force or choose another --out")


def test_a_range_of_sizes(fvexport, tensorrt_rtx: Any) -> None:
    words = (
        "trt",
        "--variant",
        "tiny",
        "--dynamic-res",
        "64:128:192x256",
        "--batch",
        "1:2:4",
        "--no-parity",
        "--out",
        "d",
    )
    outcome = fvexport(*words)
    assert outcome.code == 0, outcome.err
    assert "batch 1:2:4, height 64:128:192, width 64:128:256" in outcome.out


def test_a_dry_run(fvexport, without_tensorrt: None, tmp_path: Path) -> None:
    outcome = fvexport("trt", *SMALL, "--no-parity", "--dry-run", "--workspace", "1GiB", "--out", "dry")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == (
        "next: trtexec --onnx=dry/encoder.onnx --saveEngine=dry/encoder.plan --stronglyTyped --noTF32 "
        "--memPoolSize=workspace:1024M --profilingVerbosity=detailed"
    )
    assert not (tmp_path / "dry" / "encoder.plan").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--flavour", "tensorrt"), ("no NVIDIA GPU was found here", "pip install tensorrt-rtx-cu13")),
        (("--hardware-compatible",), ("has no --hardware-compatible here", "leave it out")),
        (("--dynamic-res", "64:64:100", "--batch", "1:2:4"), ("resolution 100x100 is not a multiple of 64",)),
        (("--dynamic-res", "128:64:192"), ("MIN:OPT:MAX", "128:64:192")),
        (("--images", "missing.jpg"), ("missing.jpg",)),
        (("--workspace", "1"), ("within workspace limit", "--workspace 1 may be too small")),
    ],
)
def test_refusals(fvexport, tensorrt_rtx: Any, tmp_path: Path, args, words) -> None:
    sizes = ("--variant", "tiny") if "--dynamic-res" in args else SMALL
    judged = () if "--images" in args else ("--no-parity",)
    outcome = fvexport("trt", *sizes, *judged, "--out", tmp_path / "out", *args)
    outcome.one_line_error(*words)
    left = [file.name for file in tmp_path.iterdir()]
    assert left == (["out"] if "--workspace" in args else [])  # the ONNX file, which is whole


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--artifact", "x", "--int8"), ("--int8 is of the ONNX file, which --artifact brings",)),
        (("--artifact", "x", "--res", "512"), ("--res is of the ONNX file",)),
        (("--res", "512", "--dynamic-res", "64:64:64"), ("--res and --dynamic-res exclude each other",)),
        (("--fp16", "--int8"), ("--fp16 and --int8 exclude each other",)),
        (("--batch", "dynamic"), ("batch must be a number or MIN:OPT:MAX",)),
        (("--workspace", "much"), ("a size must look like 4GiB",)),
        (("--opt-level", "9"), ("0<=x<=5",)),
        (("--min-sqnr", "20"), ("--min-sqnr has no effect with --fp16",)),
        (("--flavour", "tensort"), ("Did you mean 'tensorrt'?",)),
    ],
)
def test_wrong_usage(fvexport, args, words) -> None:
    fvexport("trt", *args).one_line_error(*words, code=2)


def test_no_tensorrt(fvexport, without_tensorrt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fvexport.export.engines.api.is_installed", lambda flavour: False)
    fvexport("trt", *SMALL).one_line_error("TensorRT is not installed: `pip install tensorrt-rtx-cu13`")
    assert not list(tmp_path.iterdir())


def test_an_engine_where_no_gpu_is(fvexport, engine: Path, photographs: dict[str, Path]) -> None:
    for command in (("parity", engine), ("encode", photographs["coffee"], "--artifact", engine, "--out", "f")):
        outcome = fvexport(*command, "--backend", "tensorrt-rtx")
        if outcome.code:
            outcome.one_line_error("backend tensorrt-rtx cannot run here: no NVIDIA GPU found")


def test_the_onnx_file_beside_an_engine_still_runs(fvexport, engine: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(engine, tmp_path / "copied")
    assert fvexport("parity", copied).code == 0
    assert "encoder.plan" in fvexport("inspect", copied).out
