"""`fvexport onnx`: what it prints, and every refusal in one line with nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


def test_summary_verdict_notice_and_next_command(exported) -> None:
    outcome, folder = exported
    assert outcome.code == 0
    assert outcome.err == ""  # not a terminal: no progress
    assert "\x1b" not in outcome.out
    assert max(len(line) for line in outcome.out.splitlines() if not line.startswith("next:")) <= 80
    for word in ("tiny", "seeded:0", "pixel_values float32 (1, 3, 128, 128)", "fp32", "opset", "nodes", "trace"):
        assert word in outcome.out
    for word in (
        "parity: PASS",
        "PyTorch fp32",
        "relative L2",
        "centred relative L2",
        "cosine, worst token",
        ">= 0.99999",
        "<= 1.00e-05",
    ):
        assert word in outcome.out
    assert "note: These weights are seeded, not trained: the features mean nothing." in outcome.out
    last = outcome.out.splitlines()[-1]
    assert last == f"next: fvexport encode photo.jpg --artifact '{folder}' --out features.safetensors"


def test_json_alone_on_stdout(fvexport, tmp_path: Path) -> None:
    flags = ("--no-parity", "--no-simplify", "--bf16", "--batch", "2", "--input", "uint8")
    outcome = fvexport("onnx", "--variant", "tiny", "--res", "128x64", "--seed", 3, "--out", "new/a", *flags, "--json")
    assert outcome.code == 0 and outcome.err == ""
    answer = outcome.json
    assert answer.keys() == {"artifact", "manifest", "verdict", "seconds", "notices", "reused"}
    assert answer["artifact"] == "new/a" and answer["verdict"] is None and not answer["reused"]
    assert answer["manifest"] == json.loads((tmp_path / "new/a/manifest.json").read_text())
    assert answer["manifest"]["input"]["shape"] == [2, 3, 128, 64]
    assert answer["manifest"]["checkpoint"]["source"] == "seeded:3"
    assert answer["manifest"]["precision"] == "bf16"
    assert list(answer["seconds"]) == ["load", "prepare", "trace", "simplify", "write", "check"]
    seeded, runs_on = answer["notices"]
    assert seeded == "These weights are seeded, not trained: the features mean nothing."
    assert runs_on.startswith("BF16 files run in")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--res", "1000"], ["1000x1000", "multiple of 64", "--res 1024"]),
        (["--res", "0"], ["out of range", "64"]),
        (["--res", "99999"], ["out of range", "8192"]),
        (["--batch", "0"], ["batch", "at least 1"]),
        (["--batch", "1025"], ["batch must be at most 1024 or dynamic; found 1025"]),
        (["--opset", "99"], ["--opset", "18", "23"]),
        (["--bf16", "--opset", "20"], ["opset 22", "--opset 20"]),
        (["--checkpoint", "missing.safetensors"], ["missing.safetensors", "no such file"]),
        (["--checkpoint", ""], ["empty", "apple/FastVLM-0.5B"]),
        (["--images", "missing.jpg"], ["missing.jpg", "check the path"]),
        (["--revision", "main"], ["main", "hub id"]),
    ],
)
def test_refusals(fvexport, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    fvexport("onnx", "--variant", "tiny", *args).one_line_error(*parts)
    fvexport("onnx", "--variant", "tiny", *args, "--json").one_line_error(*parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html><body>Sign in</body></html>"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_checkpoint_that_is_none(fvexport, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    fvexport("onnx", "--no-parity", "--res", 128, "--checkpoint", name).one_line_error(name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_what_stands_at_out_stays(fvexport, copied: Path, tmp_path: Path) -> None:
    before = (copied / "manifest.json").read_bytes()
    fvexport("onnx", "--variant", "tiny", "--out", copied).one_line_error("exists", "--force")
    assert (copied / "manifest.json").read_bytes() == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_text("mine")
    fvexport("onnx", "--variant", "tiny", "--out", "photos", "--force").one_line_error("no artifact", "--out")
    fvexport("onnx", "--variant", "tiny", "--out", "photos/holiday.jpg/x").one_line_error("not a folder")
    assert (tmp_path / "photos/holiday.jpg").read_text() == "mine"


def test_a_full_disk_is_found_before_the_work(fvexport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    fvexport("onnx", "--variant", "tiny", "--res", 128, "--out", "a").one_line_error("MB needed", "free some space")
    assert not list(tmp_path.iterdir())


def test_a_model_repository_beside_it(fvexport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("onnx", "--variant", "tiny", "--res", 64, "--no-parity", "--out", "a 64", "--triton-server", "models")
    outcome = fvexport(*args, "--triton-instances", "cpu:2", "--triton-threads", 3)
    assert outcome.code == 0 and "served from" in outcome.out and "models/a-64" in outcome.out
    config = (tmp_path / "models/a-64/config.pbtxt").read_text()
    assert 'name: "a-64"' in config and "count: 2 kind: KIND_CPU" in config and '"3"' in config
    shutil.rmtree(tmp_path / "a 64")
    fvexport(*args).one_line_error("models/a-64", "--force")  # before the work
    fvexport(*args, "--fp8").one_line_error("FP8", "fvexport trt")
    fvexport(*args[:-2], "--triton-threads", 2).one_line_error("--triton-threads", "--triton-server", code=2)
    for out, folder in ((".a", "models"), ("models/a", "models"), ("a", "a"), ("a", "a/models"), ("a", "."), ("a", "")):
        places = ("--out", out, "--triton-server", folder)
        fvexport(*args[:-4], *places).one_line_error(code=1 if folder else 2)
        assert not (tmp_path / out).exists()
    fvexport(*args, "--triton-instances", "tpu:1").one_line_error("cpu:2", "tpu:1", code=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    fvexport(*args, "--force").one_line_error("models/a-64", "MB needed", "free some space")
    assert not (tmp_path / "a 64").exists()
