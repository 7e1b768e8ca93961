"""Nothing optional is imported before it is used: the package imports, and its tests are collected, without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "calibration", "cli", "core", "encoder", "export", "kernels")
OPTIONAL = frozenset([
    "modelopt", "nncf", "onnxruntime", "onnxsim", "openvino", "openvino_telemetry", "playwright", "tensorrt",
    "tensorrt_rtx", "timm", "tokenizers", "transformers", "triton", "tritonclient",
])  # fmt: skip

HIDDEN = f"""
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {set(OPTIONAL)!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Makes a process see none of them, as `importlib.util.find_spec` too."""


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
    code = HIDDEN + f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_suite_is_collected_without_them(tmp_path: Path) -> None:
    code = HIDDEN + "import pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "--collect-only", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(ROOT / "tests")]
    for options in ([], ["-m", "gpu"]):
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "error" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
