"""Checks and measures everything of this project that needs an NVIDIA GPU, in one command with a time limit.

    python3 benchmarks/studies/gpu/proof.py --out build/proof --seconds 470
    python3 benchmarks/studies/gpu/proof.py --out build/proof --dry-run   # every line on a CPU, with a tiny model
    python3 benchmarks/studies/gpu/proof.py --commit build/proof          # copies results into the repository

Needs torch, triton and the packages that the model imports, but no installation of this project: a link under
build/ shows the repository as the package. See docs/gpu-proof.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NEEDED = (
    "torch", "numpy", "click", "safetensors", "huggingface_hub", "lazy_loader", "PIL", "filelock", "msgspec",
    "platformdirs",
)  # fmt: skip


def link_package(root: Path = ROOT) -> Path:
    """Links the repository as the package `fvexport`, without an installation.

    Returns the folder for PYTHONPATH.
    """
    tree = root / "build" / "pkg"
    package = tree / "fvexport"
    if package.is_dir() and not package.is_symlink():  # a folder of links, as earlier versions made
        shutil.rmtree(package)
    tree.mkdir(parents=True, exist_ok=True)
    if not (package.is_symlink() and package.resolve() == root.resolve()):
        package.unlink(missing_ok=True)
        package.symlink_to("../..", target_is_directory=True)
    return tree


def main() -> None:
    """Makes the package importable here and in child processes, then runs `fvexport.benchmarks.studies.gpu.run`."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"Error: {sys.executable} has no {', '.join(missing)}; run proof.py with a Python that has, or `make "
            "gpu-proof`, which installs into .venv"
        )
    tree = str(link_package())
    os.environ["PYTHONPATH"] = os.pathsep.join([tree, *filter(None, [os.environ.get("PYTHONPATH")])])
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [tree, *(folder for folder in sys.path if folder != here)]
    from fvexport.benchmarks.studies.gpu.run import main as run  # type: ignore[import-not-found,unused-ignore]

    run()


if __name__ == "__main__":
    main()
