"""Every command of the README runs, word for word.

`apple/FastVLM-0.5B` and `KamilaMila/FastVLM-0.5B` stand in a cache laid out as huggingface_hub does it, holding tiny
checkpoints of the same forms; `photo.jpg` is a photograph of scikit-image.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
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
def place(
    tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path], write_tokenizer: Callable[..., None]
) -> Path:
    """A user's folder with a photograph and a question about it, and a hub cache beside it."""
    folder = tmp_path_factory.mktemp("readme")
    Image.open(photographs["astronaut"]).convert("RGB").save(folder / "photo.jpg")
    question = {"image": "photo.jpg", "question": "What is this?", "answers": ["an astronaut"] * 10}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    for owner, golden in (("apple", "llava_tiny"), ("KamilaMila", "transformers_tiny")):
        repo = folder / "hub" / f"models--{owner}--FastVLM-0.5B"
        snapshot = repo / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(COMMIT)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(ROOT / "tests/data/golden" / golden / name, snapshot / name)
        write_tokenizer(snapshot, image_token=golden == "transformers_tiny")
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


@pytest.mark.slow
def test_readme_commands_run_in_order(place: Path) -> None:
    lines = commands("fvexport")
    assert [shlex.split(line)[1] for line in lines] == ["onnx", "encode", "onnx", "trt", "sweep", "ask", "eval"]
    for line in lines:
        name = shlex.split(line)[1]
        if name in ("trt", "sweep"):
            continue  # below
        done = run(shlex.split(line), place)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert {"ask": "TTFT", "eval": "same answer"}.get(name, "") in done.stdout
    assert (place / "features.safetensors").is_file()
    assert len((place / "vqa.jsonl").read_text().splitlines()) == 2  # PyTorch's answer and the artifact's


def test_readme_engine_is_built(
    place: Path, tensorrt_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tensorrt_folders["tensorrt_rtx"]))
    done = run(shlex.split(commands("fvexport")[3]), place)
    assert done.returncode == 0, done.stderr
    assert "parity PASS" in done.stdout and "wider than asked  nothing" in done.stdout
    assert (place / "fastvithd-trt" / "encoder.plan").is_file()


@pytest.mark.long
def test_readme_sweep_runs(place: Path) -> None:
    done = run(shlex.split(commands("fvexport")[4]), place)
    assert done.returncode == 0, done.stderr
    assert list((place / "sweep").glob("*.html"))


def test_readme_python_runs(place: Path) -> None:
    source = blocks("python")[0]
    shutil.rmtree(place / "fastvithd-1024", ignore_errors=True)
    done = run([sys.executable, "-c", source + "\nassert features.shape[:2] == (1, 256), features.shape"], place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("relative L2 error")


# timm has the model's own tower, and is not installed here: FastViTHD under its names stands there.
TIMM_STANDS_IN = """
import torch
from fvexport.encoder.config import VARIANTS
from fvexport.encoder.fastvithd import FastViTHD
from transformers.models.fast_vlm import modeling_fast_vlm

class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.timm_model = FastViTHD(VARIANTS["tiny"], form="released")

    def forward(self, *_, **__):
        raise AssertionError("the model's own tower ran")

make = modeling_fast_vlm.AutoModel.from_config
modeling_fast_vlm.AutoModel.from_config = lambda config, **options: (
    Tower() if config.model_type == "timm_wrapper" else make(config, **options)
)
inputs = {
    "input_ids": torch.tensor([[5] + [319] * 256 + [6, 7]]),
    "pixel_values": torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0)),
    "max_new_tokens": 3,
}
"""


def test_readme_drop_in_runs(place: Path) -> None:
    (_, source) = blocks("python")
    check = "assert tokens.shape[1] == 259 + 3 and type(model.model.vision_tower) is Tower"
    twice = f"{source}\n{source}"  # a script that is started again finds its artifact
    done = run([sys.executable, "-c", f"{TIMM_STANDS_IN}\n{twice}\n{check}"], place)
    assert done.returncode == 0, done.stderr
    lines = [line for line in source.splitlines() if line]
    assert len(lines) == 5


def test_docs_python_runs(place: Path) -> None:
    """The last block of docs/fastvlm.md, on the README's artifact."""
    page = (ROOT / "docs/fastvlm.md").read_text(encoding="utf-8")
    drop_in, source = re.findall(r"```python\n(.*?)```", page, re.S)
    strip = re.compile(r"  # .*")
    assert strip.sub("", drop_in) == strip.sub("", blocks("python")[1])
    if not (place / "fastvithd-1024").exists():
        run(shlex.split(commands("fvexport")[0]), place)
    done = run([sys.executable, "-c", source], place)
    assert done.returncode == 0, done.stderr


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
    from fvexport.core.verdict.judging import THRESHOLDS

    page = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (fp32|fp16|bf16|int8|fp8) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.M)
    written = {name: tuple(map(float, values)) for name, *values in rows}
    assert written == {
        n: (t.rel_l2_floor, t.rel_l2_limit, t.centred_floor, t.centred_limit, t.cosine_min)
        for n, t in THRESHOLDS.items()
    }


def test_every_option_of_the_export_stands_in_the_docs() -> None:
    from fvexport.cli.onnx_command import onnx

    page = (ROOT / "docs/onnx.md").read_text(encoding="utf-8")
    options = {name for option in onnx.params for name in (*option.opts, *option.secondary_opts) if name != "-v"}
    assumed = {"--simplify", "--parity", "--verbose", "--json"}  # defaults, and what every command takes
    assert {name for name in options - assumed if name not in page} == set()


def test_every_option_of_ask_and_eval_stands_in_the_docs() -> None:
    from fvexport.cli.ask_command import ask
    from fvexport.cli.eval_command import evaluation

    page = (ROOT / "docs/fastvlm.md").read_text(encoding="utf-8")
    options = {name for command in (ask, evaluation) for option in command.params for name in option.opts}
    assert {name for name in options - {"words", "-v", "--verbose"} if f"`{name}" not in page} == set()
