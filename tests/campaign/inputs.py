"""What the commands get: photographs, checkpoints, artifacts, lists of questions; made once, in a folder of its own."""

from __future__ import annotations

import functools
import json
import random
import runpy
import shutil
from pathlib import Path

from commands import Place, run

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "data" / "golden"
RES = ("--res", "64")
FOLDER = Path("build/campaign/inputs")


def use_folder(folder: Path) -> None:
    """Where inputs are made from now on; an old folder is emptied."""
    global FOLDER  # noqa: PLW0603 - set once, before anything is made
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    FOLDER = folder.resolve()


@functools.cache
def photos() -> tuple[Path, ...]:
    """Twelve small photographs."""
    from PIL import Image

    from fvexport.encoder.image import sample_images

    folder = FOLDER / "photos"
    folder.mkdir()
    names, draw = sorted(sample_images().items()), random.Random(0)
    for number in range(12):
        with Image.open(names[number % len(names)][1]) as picture:
            side = draw.randint(70, 100)
            picture.convert("RGB").resize((side + 10, side)).save(folder / f"{number:02}.png")
    return tuple(sorted(folder.iterdir()))


@functools.cache
def vlm() -> Path:
    """A whole tiny FastVLM."""
    folder = FOLDER / "vlm"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "llava_tiny" / name, folder / name)
    runpy.run_path(str(TESTS / "tokenizer_files.py"))["write_tokenizer"](folder)
    return folder


@functools.cache
def questions() -> Path:
    """Twelve questions, for `ask --batch` and for `eval --task vqa`."""
    words = ("What is in this picture?", "How many people are there?", "Is it day or night?")
    rows = [
        {"image": str(photo), "question": words[number % 3], "answers": ["a cat"]}
        for number, photo in enumerate(photos())
    ]
    file = FOLDER / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@functools.cache
def artifact(name: str) -> Path:
    """An artifact of 64 x 64 pixels: `new` (golden weights), `old` (seeded), `dynamic`, `vlm`, `uint8`."""
    options = {
        "new": ("--checkpoint", GOLDEN / "timm_tiny"),
        "old": ("--variant", "tiny", "--seed", "1"),
        "dynamic": ("--variant", "tiny", "--dynamic-res", "--batch", "dynamic"),
        "vlm": ("--checkpoint", vlm()),
        "uint8": ("--variant", "tiny", "--input", "uint8"),
    }[name]
    place = Place(FOLDER / f"made-{name}").make()
    run(["onnx", *options, *RES, "--no-simplify", "--out", name], place).check_success()
    return place.work / name
