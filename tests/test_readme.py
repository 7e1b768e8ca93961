"""Every command of the README runs, word for word.

`apple/FastVLM-0.5B` stands in a cache laid out as huggingface_hub does it, holding a tiny
checkpoint of the same form; `photo.jpg` is a photograph of scikit-image.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMIT = "0" * 40


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands(program: str) -> list[str]:
    """The README's command lines that begin with `program`."""
    lines = [line.partition("#")[0].strip() for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line.split(" ")[0] == program]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """A user's folder with a photograph, and a hub cache beside it."""
    folder = tmp_path_factory.mktemp("readme")
    Image.open(photographs["astronaut"]).convert("RGB").save(folder / "photo.jpg")
    repo = folder / "hub" / "models--apple--FastVLM-0.5B"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(ROOT / "tests/data/golden/llava_tiny" / name, snapshot / name)
    return folder


def run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    scripts = Path(sys.executable).parent
    settings = {
        **os.environ,
        "HF_HUB_CACHE": str(place / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(command, cwd=place, env=settings, capture_output=True, text=True, check=False)


def test_readme_commands_run_in_order(place: Path) -> None:
    lines = commands("fvexport")
    assert [shlex.split(line)[1] for line in lines] == ["onnx", "encode", "onnx"]
    for line in lines:
        done = run(shlex.split(line), place)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (place / "features.safetensors").is_file()


def test_readme_python_runs(place: Path) -> None:
    (source,) = blocks("python")
    shutil.rmtree(place / "fastvithd-1024", ignore_errors=True)
    done = run([sys.executable, "-c", source + "\nassert features.shape[:2] == (1, 256), features.shape"], place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("relative L2 error")


def test_every_command_is_in_the_table(place: Path) -> None:
    done = run(["fvexport", "--help"], place)
    listed = re.findall(r"^  (\w+)  ", done.stdout.partition("Commands:")[2], re.M)
    assert listed == sorted(re.findall(r"^\| `fvexport (\w+)", README, re.M))


@pytest.mark.parametrize("line", commands("make"))
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_thresholds_stand_in_the_docs() -> None:
    from fvexport.export.parity import THRESHOLDS

    page = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (fp32|fp16|bf16|int8|fp8) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.M)
    written = {name: tuple(map(float, values)) for name, *values in rows}
    assert written == {n: (t.rel_l2_floor, t.rel_l2_limit, t.cosine_min) for n, t in THRESHOLDS.items()}


def test_every_option_of_the_export_stands_in_the_docs() -> None:
    from fvexport.cli.onnx import onnx

    page = (ROOT / "docs/onnx.md").read_text(encoding="utf-8")
    options = {name for option in onnx.params for name in (*option.opts, *option.secondary_opts) if name != "-v"}
    assumed = {"--simplify", "--parity", "--verbose", "--json"}  # defaults, and what every command takes
    assert {name for name in options - assumed if name not in page} == set()
