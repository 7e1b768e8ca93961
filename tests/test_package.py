"""The wheel in an environment of its own: what it holds, where it imports, and what type checkers see of it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JSON_FOLDERS = ("kernels/configs", "benchmarks/studies/gpu/predicted")
FOLDERS = ("aliases", "benchmarks", "calibration", "cli", "cluster", "core", "encoder", "export", "kernels")
LAZY = (
    "fvexport",
    *(f"fvexport.{name}" for name in ("encoder", "encoder.fastvlm", "export", "export.runtime", "kernels")),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the repository whose folder has a name that no package may have."""
    source, made = tmp_path_factory.mktemp("source") / "a checkout-1.0", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "data", "dist", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = made.iterdir()
    return file


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`run("python", "-c", "…", cwd=folder)`: a command of an environment with the wheel, and its output.

    All other packages are those of this environment, without what it knows of fvexport.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(own, "others.pth").write_text("\n".join(others))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--no-index", wheel]
    subprocess.run([*command, "--ignore-installed"], check=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["PATH"] = os.pathsep.join([str(python.parent), env["PATH"]])  # where pyright looks for the environment

    def call(name: str, *words: str, cwd: Path) -> str:
        program = folder / "bin" / name
        words = (str(program), *words) if program.exists() else (str(python), "-m", name, *words)
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_holds_the_package_alone(wheel: Path) -> None:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = ("*.py", "*.pyi", "*.j2", "*.css", "*.js")
    expected = {file for name in FOLDERS for kind in kinds for file in (ROOT / name).rglob(kind)}
    expected |= {ROOT / name for name in ("__init__.py", "__init__.pyi", "__main__.py", "py.typed")}
    expected |= {
        *(ROOT / "kernels/configs").glob("*.json"),
        *(ROOT / "benchmarks/studies/gpu/predicted").glob("*.json"),
    }
    expected -= set((ROOT / "benchmarks/studies/trained").rglob("*.py"))  # they need tests/data
    assert found == {f"fvexport/{file.relative_to(ROOT).as_posix()}" for file in expected}


def test_runs_from_any_folder(run: Callable[..., str], tmp_path: Path) -> None:
    """From the repository's root, which Python looks into first, from another folder and from a read-only one."""
    tmp_path.chmod(0o555)
    code = "import fvexport, fvexport.cli.main; print(fvexport.__file__)"
    for folder in (ROOT, Path("/"), tmp_path):
        for words in (("fvexport", "--version"), ("python", "-m", "fvexport", "--version")):
            assert run(*words, cwd=folder).startswith("fvexport ")
        assert not Path(run("python", "-c", code, cwd=folder)).is_relative_to(ROOT)


def revealing(folder: Path) -> int:
    """Writes a snippet that reveals the type of each public name, and returns how many there are."""
    names = [f"{package}.{name}" for package in LAZY for name in importlib.import_module(package).__all__]
    lines = [*(f"import {package}" for package in LAZY), *(f"reveal_type({name})" for name in names)]
    (folder / "snippet.py").write_text("\n".join(lines) + "\n")
    return len(names)


def test_mypy_sees_the_types_of_public_names(run: Callable[..., str], tmp_path: Path) -> None:
    count = revealing(tmp_path)
    (tmp_path / "mypy.ini").write_text("[mypy-torch.*]\nfollow_imports = skip\n")  # it would take most of the time
    told = run("mypy", "--strict", "--cache-dir", os.devnull, "snippet.py", cwd=tmp_path)
    types = re.findall(r'Revealed type is "(.+)"', told)
    assert len(types) == count > 20
    assert not {"Any", "builtins.object"} & {*types}, told


def test_pyright_sees_the_types_of_public_names(run: Callable[..., str], tmp_path: Path) -> None:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright, which brings its own Node.js")
    count = revealing(tmp_path)
    told = run("pyright", "snippet.py", cwd=tmp_path)
    types = re.findall(r'information: Type of ".+?" is "(.+)"', told)
    assert len(types) == count
    assert not {"Any", "Unknown"} & {*types}, told
