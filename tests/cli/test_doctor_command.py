"""`fvexport doctor`: answers on any machine, above all on a broken one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from fvexport.cli import doctor_checks
from fvexport.export.engines import api
from fvexport.export.engines.engine_section import Gpu

COMMANDS = {"onnx", "trt", "parity", "inspect", "encode", "ask", "eval"}


def test_table(fvexport) -> None:
    outcome = fvexport("doctor")
    assert outcome.code == 0 and "\x1b" not in outcome.out
    for word in ("torch", "onnxruntime-cpu", "openvino", "CPU", "disk", "memory", "Hugging Face", *COMMANDS):
        assert word in outcome.out


def test_json(fvexport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = fvexport("doctor", "--json").json
    assert {"fvexport", "python", "torch", "onnx", "onnxruntime", "onnxsim", "transformers", "openvino", "tensorrt",
            "tensorrt_rtx", "triton"} <= answer["versions"].keys()  # fmt: skip
    assert answer["hub_offline"] is True
    assert answer["commands"].keys() == COMMANDS
    assert answer["cpu"]["cores"] >= 1 and answer["disk_bytes"] > 0
    assert {"name", "precisions", "why_not", "install", "note"} == answer["targets"][0].keys()
    assert answer["targets"][0]["name"] == "onnxruntime-cpu" and answer["targets"][0]["why_not"] is None


def test_what_builds_engines(fvexport, without_tensorrt: None) -> None:
    answer = fvexport("doctor", "--json").json
    assert answer["commands"]["trt"].startswith("not here: TensorRT is not installed: `")
    assert "--dry-run" in answer["commands"]["trt"]


def test_what_builds_engines_without_a_gpu(fvexport, tensorrt_rtx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "has_cuda_gpu", lambda: False)
    answer = fvexport("doctor", "--json").json
    assert answer["commands"]["trt"] == f"builds engines with TensorRT-RTX {tensorrt_rtx.__version__}"
    assert answer["versions"]["tensorrt_rtx"] == tensorrt_rtx.__version__


def test_onnx_is_written_without_onnxsim(fvexport, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxsim" else find_spec(name))
    answer = fvexport("doctor", "--json").json
    packages = {package["name"]: package for package in answer["packages"]}
    assert (
        packages["onnxsim"]["required"] is False
        and packages["onnxsim"]["note"] == "not installed (simpler ONNX graphs)"
    )
    assert answer["commands"]["onnx"].startswith("writes fp32, ")
    assert "not simplified (no onnxsim), and checks them" in answer["commands"]["onnx"]
    assert "pip install onnxsim" in answer["installs"] and not answer["commands"]["trt"].startswith("not here: onnxsim")


def test_a_gpu_that_rtx_does_not_run_on(fvexport, tensorrt_rtx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "is_installed", lambda flavour: flavour == "tensorrt-rtx")
    monkeypatch.setattr(
        doctor_checks, "current_gpu", lambda: Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", driver="13.0")
    )
    answer = fvexport("doctor", "--json").json
    title = f"TensorRT-RTX {tensorrt_rtx.__version__}"
    assert answer["commands"]["trt"].startswith(
        f"builds engines with {title}, for other GPUs with --no-parity: TensorRT-RTX does not run on compute capab"
    )


@pytest.mark.parametrize("failure", ["ImportError('no libfoo.so.1')", "OSError('broken')", "SystemExit(3)", "1 / 0"])
def test_broken_packages_are_reported(fvexport, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnxruntime"):
        package = tmp_path / "site" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise {failure}" if "(" in failure else failure)
        for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(tmp_path / "site")
    outcome = fvexport("doctor", "--json")
    assert outcome.code == 0
    answer = outcome.json
    packages = {package["name"]: package for package in answer["packages"]}
    assert "fails to import" in packages["openvino"]["problem"]
    assert "fails to import" in packages["onnxruntime"]["problem"]
    broken = {target["name"] for target in answer["targets"] if target["why_not"]}
    assert broken >= {"onnxruntime-cpu", "onnxruntime-cuda", "openvino"} and "eager" not in broken
    assert "not here" in answer["commands"]["onnx"] and "through eager" in answer["commands"]["encode"]
    assert any(command.startswith("pip install onnxruntime") for command in answer["installs"])
    table = fvexport("doctor")
    assert table.code == 0 and "note: openvino: fails to import" in table.out
