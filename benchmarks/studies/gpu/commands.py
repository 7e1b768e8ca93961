"""The phases that are commands of their own: the suite's tests, the kernels' table, the search for block sizes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .scope import Scope, Size

ROOT = Path(__file__).resolve().parents[3]
TESTS, KERNELS, TUNED = "pytest.txt", "kernels.jsonl", "tuned.json"
FILES = (TESTS, KERNELS, TUNED, "profile-ours.json", "profile-compile.json")

GPU_TESTS = ("tests/kernels", "tests/export/test_pytorch_backend.py", "tests/benchmarks/test_sweep_cells.py")
LEFT_OUT = ("tests/kernels/gpu", "tests/kernels/test_tune.py")
"""The phases `operators` and `tune` do the same at the model's own sizes."""


def tests(out: Path, dry: bool) -> list[str]:
    """The suite's GPU tests by pytest, with its output in `pytest.txt`."""
    paths = ["tests/kernels/test_accelerate.py"] if dry else list(GPU_TESTS)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu and not long", "-c",
        str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
        *(f"--ignore={ROOT / path}" for path in LEFT_OUT), *(str(ROOT / path) for path in paths),
    ]  # fmt: skip
    # pytest's own exit code is the phase's; what it prints goes to a file of its own.
    text = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[2:], stdout=open(sys.argv[1], 'wb'), stderr=-2))"
    return [sys.executable, "-c", text, str(out / TESTS), *command]


def kernels(out: Path, scope: Scope, limit_s: float, dry: bool) -> list[str]:
    """Every kernel against its rivals, as `benchmarks.studies.kernels` times them."""
    sides, batches = _several(scope.kernels)
    return [
        sys.executable, "-m", "fvexport.benchmarks.studies.kernels", "--res", ",".join(sides),
        "--batch", ",".join(batches), "--variant", scope.variant, "--only", "operators",
        "--seconds", f"{limit_s:.0f}", "--out", str(out / KERNELS), *(["--dry-run"] if dry else []),
    ]  # fmt: skip


def tune(scope: Scope, limit_s: float, dry: bool) -> list[str]:
    """The search for block sizes; in a dry run the plan alone."""
    sides, batches = _several(scope.kernels)
    return [
        sys.executable, "-m", "fvexport", "tune", *(word for side in sides for word in ("--res", side)),
        *(word for batch in batches for word in ("--batch", batch)), "--variant", scope.variant,
        "--budget", f"{limit_s:.0f}", *(["--dry-run"] if dry else []),
    ]  # fmt: skip


def _several(sizes: Sequence[Size]) -> tuple[list[str], list[str]]:
    """Sides and batches, each once."""
    return list(dict.fromkeys(str(s.height) for s in sizes)), list(dict.fromkeys(str(s.batch) for s in sizes))


def keep_tuned(scratch: Path, out: Path) -> None:
    """Copies what the search kept (`table.cache_file`) to the results."""
    for file in sorted((scratch / "cache" / "fvexport" / "kernels").glob("*.json")):
        shutil.copyfile(file, out / TUNED)
