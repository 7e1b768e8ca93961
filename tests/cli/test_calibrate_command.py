"""`fvexport calibrate`: what it prints and writes, the export that reuses it, and every refusal in one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

CALIBRATE = ("calibrate", "--variant", "tiny", "--res", "128")
EXPORT = ("onnx", "--int8", "--target", "openvino", "--variant", "tiny", "--no-parity", "--no-simplify")


@pytest.fixture(scope="module")
def photos(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small photographs and a file that is none, in a folder whose name the shell would split."""
    folder = tmp_path_factory.mktemp("my photos")
    for name in ("chelsea", "rocket"):
        Image.open(photographs[name]).resize((96, 80)).save(folder / f"{name}.png")
    (folder / "broken [1].png").write_bytes(b"\x89PNG\r\n")
    return folder


@pytest.fixture
def ranges(fvexport, photos: Path, tmp_path: Path) -> Path:
    outcome = fvexport(*CALIBRATE, "--calib", photos, "--samples", 3, "--method", "minmax", "--out", "ranges.json")
    assert outcome.code == 0, outcome.err
    return tmp_path / "ranges.json"


def test_report(fvexport, photos: Path, tmp_path: Path) -> None:
    outcome = fvexport(*CALIBRATE, "--calib", photos, "--samples", 3, "--out", "my ranges.json")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("note:", "next:"))) <= 80
    assert "\x1b" not in outcome.out
    said = " ".join(outcome.out.split())  # rows may be folded
    words = ("seeded:0", "128x128", "3 from", "weighted", "may be quantized", "FP16 ends at 65504", "my ranges.json")
    for word in words:
        assert word in said
    assert "the 8 tensors whose largest and typical channel differ most" in said
    assert " stages.3.blocks.0.mlp.fc1:in " in outcome.out  # whole, so that it can be copied
    notes = [line for line in lines if line.startswith("note: ")]
    assert any("seeded, not trained" in note for note in notes)
    assert any("skipped 1 file" in note and "broken [1].png" in note for note in notes)
    assert any("2 photographs became 3 samples" in note for note in notes)
    content = json.loads((tmp_path / "my ranges.json").read_text())
    assert content["method"] == "weighted" and content["samples"] == 3
    assert {file.name for file in tmp_path.iterdir()} == {"my ranges.json", content["statistics"]["file"]}


def test_the_next_command_works(fvexport, photos: Path, tmp_path: Path) -> None:
    """As it is printed, quotes and all, and with this calibration's weights and method."""
    outcome = fvexport(
        *CALIBRATE, "--seed", 3, "--calib", photos, "--samples", 1, "--method", "entropy", "--out", "my ranges.json"
    )
    line = outcome.out.splitlines()[-1]
    assert line.startswith("next: fvexport onnx --int8 --variant tiny --seed 3 --res 128 ")
    assert line.endswith("--ranges 'my ranges.json' --method entropy")
    words = shlex.split(line.removeprefix("next: fvexport "))
    outcome = fvexport(*words, "--target", "openvino", "--no-parity", "--no-simplify", "--out", "artifact")
    assert outcome.code == 0, outcome.err
    made = json.loads((tmp_path / "artifact" / "manifest.json").read_text())["quantization"]
    assert made["method"] == "entropy" and made["data"]["samples"] == 1 and made["data"]["source"] == str(photos)


def test_a_checkpoint_in_the_next_command(fvexport, golden_dir: Path, photos: Path) -> None:
    """And a resolution that is not square."""
    source = golden_dir / "timm_tiny"
    outcome = fvexport(
        "calibrate", "--checkpoint", source, "--res", "128x64", "--calib", photos, "--samples", 1, "--method", "minmax",
        "--out", "r.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    wanted = f"next: fvexport onnx --int8 --checkpoint {source} --res 128x64 --ranges r.json --method minmax"
    assert outcome.out.splitlines()[-1] == wanted


def test_json(fvexport, photos: Path, tmp_path: Path) -> None:
    """What was written, and where, alone on stdout."""
    outcome = fvexport(*CALIBRATE, "--calib", photos, "--samples", 3, "--out", "r.json", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    answer = outcome.json
    assert answer["out"] == "r.json" and answer["seconds"] > 0
    content = json.loads((tmp_path / "r.json").read_text())
    assert {key: answer[key] for key in content if key != "statistics"} == {
        key: value for key, value in content.items() if key != "statistics"
    }
    (skipped,) = answer["skipped"]
    assert skipped["image"].endswith("broken [1].png") and skipped["reason"]
    row = answer["ranges"]["stages.0.blocks.0.mlp.fc1:in"]
    assert row["low"] <= row["chosen_low"] < 0 < row["chosen_high"] <= row["high"] and row["spread"] >= 1


def test_methods(fvexport, photos: Path, tmp_path: Path) -> None:
    found = {}
    for method in ("minmax", "entropy"):
        outcome = fvexport(
            *CALIBRATE, "--calib", photos, "--samples", 3, "--method", method, "--out", "r.json", "--force", "--json"
        )
        found[method] = outcome.json["ranges"]["stages.0.blocks.0.mlp.fc2:in"]
    assert found["minmax"]["chosen_high"] == found["minmax"]["high"] > found["entropy"]["chosen_high"]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--out", "ranges.txt"], ["--out", ".json", "ranges.txt"]),
        (["--out", "missing/r.json"], ["missing is no folder", "--out"]),
        (["--out", "r.json", "--calib", "nowhere"], ["--calib nowhere does not exist", "give a folder"]),
        (["--out", "r.json", "--calib", "empty"], ["no image in folder empty"]),
        (["--out", "r.json", "--calib", "broken"], ["--calib broken has no usable image", "a.png"]),
        (["--out", "r.json", "--res", "100"], ["multiple of 64", "--res 128"]),
        (["--out", "r.json", "--checkpoint", "missing.pt"], ["missing.pt", "no such file"]),
    ],
)
def test_refusals(fvexport, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    for json_too in ([], ["--json"]):
        fvexport("calibrate", "--variant", "tiny", "--res", "128", *args, *json_too).one_line_error(*parts)
    assert {file.name for file in tmp_path.iterdir()} == {"empty", "broken"}


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["Missing option '--out'"]),
        (["--out", "r.json", "--samples", "0"], ["--samples"]),
        (["--out", "r.json", "--method", "kl"], ["'kl' is unknown", "mse, minmax, percentile, entropy"]),
        (["--out", "r.json", "--method", "minimax"], ["Did you mean 'minmax'?"]),
        (["--out", "r.json", "--res", "big"], ["big"]),
        (["--out", "r.json", "--checkpoint", "x", "--seed", "1"], ["--seed is for seeded weights"]),
    ],
)
def test_usage(fvexport, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    fvexport("calibrate", *args).one_line_error(*parts, code=2)
    assert not list(tmp_path.iterdir())


def test_what_stands_at_out_stays(fvexport, ranges: Path, photos: Path) -> None:
    before = {file.name: file.read_bytes() for file in ranges.parent.iterdir()}
    fvexport(*CALIBRATE, "--out", "ranges.json").one_line_error("ranges.json exists", "--force", "--out")
    assert {file.name: file.read_bytes() for file in ranges.parent.iterdir()} == before
    options = ("--calib", photos, "--samples", 2, "--method", "minmax")
    assert fvexport(*CALIBRATE, *options, "--out", "ranges.json", "--force").code == 0
    assert json.loads(ranges.read_text())["samples"] == 2
    assert len(list(ranges.parent.iterdir())) == 2


def test_an_interrupt(fvexport, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two pictures: nothing beside --out, and the next run goes on."""
    from fvexport.calibration import observe
    from fvexport.calibration.photos import CalibrationData

    shown: list[int] = []
    real = CalibrationData.pixels

    def pixels(data: CalibrationData, index: int, preprocessor):
        if index == 2 and not shown.count(2):
            shown.append(index)
            raise KeyboardInterrupt
        shown.append(index)
        return real(data, index, preprocessor)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(CalibrationData, "pixels", pixels)
    monkeypatch.setattr(observe, "SAVE_SECONDS", -1.0)
    command = (*CALIBRATE, "--calib", photos, "--samples", 3, "--method", "minmax", "--out", "r.json")
    outcome = fvexport(*command)
    assert (outcome.code, outcome.out, outcome.err.strip()) == (130, "", "interrupted")
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
    assert fvexport(*command).code == 0
    assert shown == [0, 1, 2, 2]


# The export that takes the ranges


def test_exports_reuse_ranges(fvexport, ranges: Path, tmp_path: Path) -> None:
    outcome = fvexport(*EXPORT, "--res", "128", "--ranges", ranges, "--out", "a", "--json")
    assert outcome.code == 0, outcome.err
    quantization = outcome.json["manifest"]["quantization"]
    content = json.loads(ranges.read_text())
    assert quantization["data"]["fingerprint"] == content["data"]
    assert quantization["data"]["samples"] == 3


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--res", "128", "--seed", "1"], ["another checkpoint", "seeded:0", "fvexport calibrate"]),
        (["--res", "64"], ["taken at 128x128", "export is at 64x64", "--res"]),
        (["--res", "128x64"], ["taken at 128x128", "export is at 128x64"]),
        (["--res", "128", "--calib", "sample"], ["--ranges", "--calib", "give one of them"]),
    ],
)
def test_ranges_of_another_model(fvexport, ranges: Path, args: list[str], parts: list[str], tmp_path: Path) -> None:
    fvexport(*EXPORT, *args, "--ranges", ranges, "--out", "a").one_line_error(*parts)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path, _: path.unlink(), ["no ranges at", "fvexport calibrate --out"]),
        (lambda path, _: path.write_text("{}"), ["is not what `fvexport calibrate` writes"]),
        (lambda _, side: side.unlink(), ["is gone", "copy both files"]),
        (lambda _, side: side.write_bytes(side.read_bytes()[:-9]), ["is not the file that"]),
    ],
)
def test_ranges_that_are_damaged(fvexport, ranges: Path, damage, parts: list[str]) -> None:
    damage(ranges, ranges.parent / json.loads(ranges.read_text())["statistics"]["file"])
    fvexport(*EXPORT, "--res", "128", "--ranges", ranges, "--out", "a").one_line_error(*parts)
