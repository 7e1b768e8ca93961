"""The group: quick help, suggestions, exit codes, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HELP_SECONDS = 0.4
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "PIL", "rich", "transformers")


@pytest.mark.parametrize("command", [[], ["onnx"]])
def test_help_is_quick(command: list[str], tmp_path: Path) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        arguments = [sys.executable, "-m", "fvexport", *command, "--help"]
        subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True)
        return time.perf_counter() - start

    assert any(seconds() < HELP_SECONDS for _ in range(5))


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["encode", "--help"], ["ask", "--help"], ["eval", "--help"], ["onnx", "--rez", "1"]],
)
def test_help_and_usage_errors_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from fvexport.cli.main import main
try:
    main({args!r})
except SystemExit:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_lists_the_commands_and_how_to_complete(fvexport) -> None:
    for args in ((), ("-h",), ("--help",)):
        outcome = fvexport(*args)
        assert outcome.code == 0
        for word in ("onnx", "parity", "inspect", "encode", "ask", "eval", "doctor", "_FVEXPORT_COMPLETE=bash_source"):
            assert word in outcome.out


def test_completion_works(tmp_path: Path) -> None:
    variables = {"_FVEXPORT_COMPLETE": "bash_complete", "COMP_WORDS": "fvexport onnx --variant ti", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "fvexport"],
        env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "plain,tiny"


def test_version(fvexport) -> None:
    import fvexport as package

    assert fvexport("--version").out == f"fvexport {package.__version__}\n"


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["onx"], "'onnx'"),
        (["inspct", "x"], "'inspect'"),
        (["onnx", "--variantt", "tiny"], "'--variant'"),
        (["onnx", "--rez", "256"], "'--res'"),
        (["onnx", "--variant", "fastvit"], "'fastvithd'"),
        (["onnx", "--input", "unit8"], "'uint8'"),
        (["parity", "x", "--backend", "onnxruntime-cup"], "'onnxruntime-cpu'"),
        (["encode", "x.jpg", "--artifac", "y"], "--artifact"),
    ],
)
def test_did_you_mean(fvexport, args: list[str], meant: str) -> None:
    fvexport(*args).one_line_error("Did you mean", meant, code=2)


@pytest.mark.parametrize(
    "args",
    [
        ["zzzz"],
        ["inspect"],
        ["encode"],
        ["encode", "a.jpg", "--artifact", "b"],
        ["onnx", "--variant", "zzzz"],
        ["onnx", "--res", "abc"],
        ["onnx", "--res", "1x2x3"],
        ["onnx", "--res", "-64"],
        ["onnx", "--batch", "many"],
        ["onnx", "--opset", "x"],
        ["onnx", "--fp16", "--bf16"],
        ["onnx", "--seed", "1", "--checkpoint", "x"],
        ["onnx", "--images", "x", "--no-parity"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_where_help_is(fvexport, args: list[str], tmp_path: Path) -> None:
    fvexport(*args).one_line_error("--help`", code=2)
    assert not list(tmp_path.iterdir())


def test_verbose_shows_the_traceback_before_the_line(process) -> None:
    for args in (("-v", "inspect", "nowhere"), ("inspect", "nowhere", "-v")):
        outcome = process(*args)
        assert outcome.code == 1 and outcome.out == ""
        assert "Traceback" in outcome.err and "ArtifactError" in outcome.err
        assert outcome.err.splitlines()[-1].startswith("error: no artifact at nowhere")


def test_interrupt_exits_with_130(fvexport, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fvexport.export.inspection.inspect_artifact", interrupted)
    outcome = fvexport("inspect", "x")
    assert outcome.code == 130 and outcome.err.split() == ["interrupted"]


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise ZeroDivisionError

    from fvexport.cli.main import main

    monkeypatch.setattr("fvexport.export.inspection.inspect_artifact", broken)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "x"])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes behave otherwise there")
@pytest.mark.parametrize("command", ["--help", "inspect"])
def test_a_reader_that_is_gone_is_no_error(command: str, artifact: Path) -> None:
    args = ["--help"] if command == "--help" else ["inspect", str(artifact)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fvexport", *args],
        stdout=writer, stderr=subprocess.PIPE, text=True, cwd=artifact.parent, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.stderr == ""
