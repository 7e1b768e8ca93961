"""How commands that read images report what they left out, and `--max-pixels`."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fvexport.cli.parsing import parse_pixels
from fvexport.encoder.preprocess import Preprocessor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of them behind a linked folder, a loop, a dangling link and a hidden file."""
    for name in ("d/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "d/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "d/.hidden.png").touch()
    return tmp_path / "d"


def names(out: Path) -> list[str]:
    with safe_open(out, "np") as file:
        return sorted(file.keys())


def test_encode_follows_links_once_and_reports_the_rest(fvexport, artifact: Path, folder: Path) -> None:
    ran = fvexport("encode", "d", "--artifact", artifact, "--out", "o.safetensors", "--json")
    assert ran.code == 0
    assert ran.json["encoded"] == 2  # stdout is JSON alone
    assert names(Path("o.safetensors")) == ["d/a.png", "d/linked/b.png"]
    assert ran.err.count("note: left out 3 files or folders") == 1
    for part in ("dangling link: 1 (d/dangling.png)", "hidden: 1 (d/.hidden.png)", "already: 1 (d/loop)"):
        assert part in ran.err


def test_calibrate_reports_what_was_left_out(fvexport, folder: Path) -> None:
    from fvexport.calibration.photos import calibration_data

    data = calibration_data(folder, 2)
    assert {picture.path.name for picture in data.pictures} == {"a.png", "b.png"}
    assert any("--calib: left out 3 files or folders" in notice for notice in data.notices)


def test_images_of_parity_report_what_was_left_out(fvexport, artifact: Path, folder: Path) -> None:
    ran = fvexport("parity", artifact, "--images", "d", "--json")
    assert ran.code == 0, ran
    assert "note: left out 3 files or folders" in ran.err


def test_images_that_are_nearly_black_are_told(fvexport, artifact: Path, tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(np.full((8, 8), 4095 - index, np.uint16)).save(tmp_path / f"{index}.png")
    files = [f"{index}.png" for index in range(5)]
    ran = fvexport("encode", *files, files[0], "--artifact", artifact, "--out", "o.safetensors")
    assert ran.code == 0
    lines = [line for line in ran.err.splitlines() if line.startswith("note: ")]
    assert len(lines) == 4
    assert "0.png (mode I;16) is nearly black: its highest value is 4095 of 65535" in lines[0]
    assert lines[3] == "note: 2 more notes like these"


def test_max_pixels(fvexport, artifact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)

    def encode(*args: str) -> object:
        return fvexport("encode", "d/a.png", "--artifact", artifact, "--out", "o.safetensors", "--force", *args)

    ran = encode()
    assert ran.code == 1
    assert "600 pixels, more than PIL.Image.MAX_IMAGE_PIXELS (500)" in ran.err
    assert "--max-pixels 600" in ran.err
    for value in ("600", "1k", "200M", "none"):
        assert encode("--max-pixels", value).code == 0
        assert Image.MAX_IMAGE_PIXELS == 500  # set for the command alone
    assert encode("--max-pixels", "599").code == 1
    monkeypatch.setenv("FVEXPORT_MAX_PIXELS", "0.2G")
    assert encode().code == 0
    encode("--max-pixels", "many").one_line_error("'many' is no number of pixels", "200M", code=2)


@pytest.mark.parametrize(
    ("text", "pixels"), [("200M", 200_000_000), ("1.5g", 1_500_000_000), (" 250000 ", 250_000), ("4K", 4000)]
)
def test_numbers_of_pixels(text: str, pixels: int) -> None:
    assert parse_pixels(text) == pixels


@pytest.mark.parametrize("where", ["pixels", "run"])
def test_memory_that_runs_out(
    fvexport, artifact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:  # fmt: skip
    """The image that does not fit is reported, and the other is encoded."""
    from fvexport.export.runtime import Encoder

    owner, name = {"pixels": (Preprocessor, "_pad"), "run": (Encoder, "run")}[where]
    real, calls = getattr(owner, name), []

    def first_fails(*args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(owner, name, first_fails)
    ran = fvexport(
        "encode", "d/a.png", "elsewhere/b.png", "--artifact", artifact, "--out", "o.safetensors", "--batch-size", "1"
    )
    assert ran.code == 1
    assert "error: " in ran.err
    assert "not enough memory" in ran.err
    assert "Traceback" not in ran.err
    assert names(Path("o.safetensors")) == ["elsewhere/b.png"]


def test_a_pipe_is_not_opened(fvexport, artifact: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    ran = fvexport("encode", "pipe.png", "--artifact", artifact, "--out", "o.safetensors")
    assert ran.code == 1
    assert "pipe.png is no regular file" in ran.err


def test_the_page_on_input_images_runs(fvexport, artifact: Path, tmp_path: Path, photographs: dict[str, Path]) -> None:
    page = Path(__file__).parents[2].joinpath("docs/input-images.md").read_text("utf-8")
    Image.open(photographs["coffee"]).save(tmp_path / "photo.jpg")
    (tmp_path / "fastvithd").symlink_to(artifact)
    (command,) = re.findall(r"^\$ fvexport (.*)$", page, re.MULTILINE)
    assert fvexport(*shlex.split(command)).code == 0
    assert names(Path("features.safetensors")) == ["photo.jpg"]
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(program, {})
