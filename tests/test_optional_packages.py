"""Nothing optional is imported before it is used: the package imports, and its tests are collected, without it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "calibration", "cli", "core", "encoder", "export", "kernels")
OPTIONAL = frozenset([
    "jinja2", "markupsafe", "matplotlib", "modelopt", "nncf", "onnxruntime", "onnxsim", "openvino",
    "openvino_telemetry", "playwright", "scipy", "tensorrt", "tensorrt_rtx", "timm", "tokenizers", "transformers",
    "triton", "tritonclient",
])  # fmt: skip
REPORT = frozenset(["jinja2", "markupsafe", "matplotlib", "scipy"])
"""The extra `report`."""

HIDING = """
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

COMMANDS = """
import contextlib, io, json
from fvexport.cli.main import main

found = {}
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(line.split())
        except SystemExit as ended:
            code = ended.code
    found[line] = code or 0, out.getvalue(), err.getvalue()
print(json.dumps(found))
"""
"""Runs its arguments, one command line each, and prints the exit code, stdout and stderr of each as JSON."""


def hiding(packages: frozenset[str]) -> str:
    """Code that makes a process see none of `packages`, as `importlib.util.find_spec` too."""
    return HIDING.format(hidden=set(packages))


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_no_module_begins_with_an_optional_import(folder: str) -> None:
    """Tests have `pytest.importorskip`; the package imports where it computes, or within a `try`."""
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        # The first are run by test_interpreter.py, which is skipped without Triton; scripts beside data, by hand.
        if {"interpreted", "data"} & {*file.relative_to(ROOT).parts}:
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [f"{file.relative_to(ROOT)}:{node.lineno}" for name in names if name.split(".")[0] in OPTIONAL]
    assert not found


def test_every_module_imports_without_them(tmp_path: Path) -> None:
    modules = [
        ".".join(("fvexport", *(part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__")))
        for folder in PACKAGES for file in sorted((ROOT / folder).rglob("*.py"))
    ]  # fmt: skip
    assert len(modules) > 150
    code = hiding(OPTIONAL) + f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_suite_is_collected_without_them(tmp_path: Path) -> None:
    code = hiding(OPTIONAL) + "import pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "--collect-only", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(ROOT / "tests")]
    for options in ([], ["-m", "gpu"]):
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "error" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


def test_only_what_writes_a_page_needs_the_extra_report(tmp_path: Path) -> None:
    work = (
        "--help", "onnx --variant tiny --res 64 --out made", "inspect made", "parity made", "sweep --help",
        "report --help",
    )  # fmt: skip
    refused = ("sweep --variant tiny --res 64 --out swept", "report swept")
    command = [sys.executable, "-c", hiding(REPORT) + COMMANDS, *work, *refused, "doctor --json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for line in work:
        code, _, err = found[line]
        assert code == 0, f"{line}\n{err}"
    for line in refused:
        code, _, err = found[line]
        assert code == 1 and 'pip install "fvexport[report]"' in err, f"{line}\n{err}"
        assert len(err.splitlines()) == 1 and "jinja2, markupsafe, matplotlib, scipy" in err
    assert not (tmp_path / "swept").exists()  # before anything was measured
    _, out, err = found["doctor --json"]
    assert 'pip install "fvexport[report]"' in json.loads(out)["installs"], err
