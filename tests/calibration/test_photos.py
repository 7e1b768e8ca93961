"""`fvexport.calibration.photos`: which photographs become the inputs of a calibration, and that it stays so."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.calibration import photos as photos_module
from fvexport.calibration.photos import DEFAULT_SAMPLES, SAMPLE, CalibrationData, calibration_data
from fvexport.core.errors import ConfigError, ImageError
from fvexport.encoder.image import HELD_OUT, load_image
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig

pytestmark = pytest.mark.filterwarnings("error")  # nothing may reach the user's stderr

NOT_AN_IMAGE = b"this is no picture\n"


def write(folder: Path, count: int, first: int = 0) -> list[Path]:
    """`count` small images of different colours, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{first + number:03}.png" for number in range(count)]
    for number, file in enumerate(files, first):
        Image.new("RGB", (6, 5), (number, 255 - number, 7)).save(file)
    return files


def paths(data: CalibrationData) -> list[Path]:
    return [picture.path for picture in data.pictures]


def refused(spec, *words: str, samples: int = 4) -> None:
    """Asserts that `spec` meets an ImageError of one line that names --calib and holds `words`."""
    with pytest.raises(ImageError) as caught:
        calibration_data(spec, samples)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("--calib", *words):
        assert word in message


# Sources


def test_sample_and_its_notice(photographs):
    data = calibration_data(None)
    assert data == calibration_data(SAMPLE)
    assert len(data) == DEFAULT_SAMPLES
    assert data.source == "sample"
    shown = {path for name, path in photographs.items() if name not in HELD_OUT}  # those are parity's
    assert set(paths(data)) == shown
    assert any("scikit-image" in notice and "--calib DIR" in notice for notice in data.notices)
    assert any(f"{len(shown)} photographs became 64 samples" in notice for notice in data.notices)


def test_folder_is_searched_recursively(tmp_path):
    files = write(tmp_path / "a", 2) + write(tmp_path / "b" / "deep", 2, first=2)
    (tmp_path / "notes.txt").write_text("not an image")
    data = calibration_data(tmp_path, 4)
    assert paths(data) == files
    assert data.source == str(tmp_path)
    assert data.skipped == ()
    (notice,) = data.notices
    assert notice.startswith("--calib: left out 1 file or folder: not an image by its suffix: 1 (")


def test_a_folder_called_sample(tmp_path, monkeypatch):
    write(tmp_path / "sample", 1)
    monkeypatch.chdir(tmp_path)
    assert paths(calibration_data("./sample", 1)) == [Path("sample/000.png")]


def test_single_image(tmp_path, photographs):
    data = calibration_data(photographs["coffee"], 3)
    assert paths(data) == [photographs["coffee"]] * 3
    assert "1 photograph became 3 samples" in data.notices[0]
    odd = tmp_path / "photo.unknown"
    shutil.copy(photographs["coffee"], odd)
    assert paths(calibration_data(odd, 1)) == [odd]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_list(tmp_path, monkeypatch, line_end, encoding):
    near, far = write(tmp_path / "größe 1", 2), write(tmp_path / "far", 1, first=2)
    lines = ["# chosen by hand", "", "größe 1/001.png", f"  {far[0]}", "  # more", "größe 1/000.png  ", ""]
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "calib.txt"
    listed.write_bytes(line_end.join(lines).encode(encoding))
    monkeypatch.chdir(tmp_path / "lists")  # relative to the list, not to the current folder
    data = calibration_data(listed, 3)
    assert paths(data) == [near[1], far[0], near[0]]
    assert data.source == str(listed)
    assert data.skipped == ()


def test_list_with_lines_that_are_no_image(tmp_path):
    files = write(tmp_path, 3)
    files[1].write_bytes(NOT_AN_IMAGE)
    (tmp_path / "folder").mkdir()
    long_name = "x" * 300 + ".png"
    lines = ["000.png", "gone.png", "001.png", "folder", long_name, "002.png"]
    (tmp_path / "calib.txt").write_text("\n".join(lines))
    data = calibration_data(tmp_path / "calib.txt", 2)
    assert paths(data) == [files[0], files[2]]
    reasons = {Path(file).name: reason for file, reason in data.skipped}
    assert reasons["gone.png"] == "does not exist"
    assert reasons["folder"] == "is a folder"
    assert reasons[long_name].startswith("cannot be read")
    assert set(reasons) <= set(lines)


# Errors


def test_missing_and_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "images", 1)
    refused(tmp_path / "gone", "gone does not exist", "give a folder")
    refused("", "'' is empty")  # not the current folder
    refused("x" * 300, "cannot be read")
    refused("a\0b", "cannot be read")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no image in folder")


@pytest.mark.parametrize("samples", [0, -3])
def test_samples(samples):
    with pytest.raises(ConfigError, match=rf"--samples must be at least 1; found {samples}"):
        calibration_data(SAMPLE, samples)


def test_nothing_usable(tmp_path):
    for file in write(tmp_path / "images", 3):
        file.write_bytes(NOT_AN_IMAGE)
    refused(tmp_path / "images", "no usable image among 3 files", "000.png: holds text")
    refused(tmp_path / "images" / "000.png", "no usable image among 1 file (", "holds text")
    listed = tmp_path / "calib.txt"
    listed.write_text("gone.png\nimages/000.png\n")
    refused(listed, "no usable image among 2 files", "gone.png: does not exist")
    listed.write_text("# nothing\n\n")
    refused(listed, "list without a line")


@pytest.mark.parametrize("content", [b"\x00\x01model", "größe.png\n".encode("latin-1"), "a.png\n".encode("utf-16")])
def test_file_that_is_neither_image_nor_list(tmp_path, content):
    (tmp_path / "odd.bin").write_bytes(content)
    refused(tmp_path / "odd.bin", "odd.bin is neither an image nor a list", "UTF-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")
    (tmp_path / "calib.txt").write_text("pipe")
    refused(tmp_path / "calib.txt", "no regular file")


# Choosing


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 12), samples=st.integers(1, 30), seed=st.integers(-(2**40), 2**40), broken=st.integers(0, 4)
)
def test_counts_order_and_determinism(count, samples, seed, broken):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "one")
        files = write(folder, count)
        for number in range(broken):
            (folder / f"{7 * number % count:03}x.png").write_bytes(NOT_AN_IMAGE)
        data = calibration_data(folder, samples, seed=seed)
        assert len(data) == samples
        whole = min(count, samples)
        assert all(picture.crop is None and not picture.flip for picture in data.pictures[:whole])
        assert all(picture.crop is not None for picture in data.pictures[whole:])
        assert paths(data)[:whole] == sorted(set(paths(data)))
        shown = Counter(paths(data))
        assert set(shown) <= set(files)
        assert max(shown.values()) - min(shown.values()) <= 1
        assert data == calibration_data(folder, samples, seed=seed)
        moved = calibration_data(folder.rename(Path(root, "two")), samples, seed=seed)
        assert moved.fingerprint == data.fingerprint
        assert [(p.path.name, p.crop, p.flip) for p in moved.pictures] == [
            (p.path.name, p.crop, p.flip) for p in data.pictures
        ]


@pytest.mark.parametrize("seed", range(5))
def test_choice_is_spread_evenly(tmp_path, seed):
    files = write(tmp_path, 40)
    places = [files.index(path) for path in paths(calibration_data(tmp_path, 8, seed=seed))]
    assert [place // 5 for place in places] == list(range(8))


def test_choice_follows_the_seed(tmp_path):
    write(tmp_path, 40)
    assert len({tuple(paths(calibration_data(tmp_path, 8, seed=seed))) for seed in range(6)}) == 6


def test_choice_does_not_depend_on_the_order_on_disk(tmp_path, monkeypatch):
    write(tmp_path, 12)
    before = calibration_data(tmp_path, 5)
    listing = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(listing(self, pattern))))
    assert calibration_data(tmp_path, 5) == before


@pytest.mark.parametrize("samples", [6, 7, 12])
def test_unreadable_images_are_replaced(tmp_path, samples):
    files = write(tmp_path, 12)
    for file in files[:6]:
        file.write_bytes(file.read_bytes()[:50])  # cut off
    data = calibration_data(tmp_path, samples)
    assert paths(data)[:6] == files[6:]
    assert dict(data.skipped).keys() == {str(file) for file in files[:6]}
    assert all("cut off" in reason and "png" not in reason for _, reason in data.skipped)
    assert any("skipped 6 files" in notice for notice in data.notices)


def test_only_what_is_chosen_is_decoded(tmp_path, monkeypatch):
    write(tmp_path, 30)
    decoded = []
    monkeypatch.setattr(photos_module, "load_image", lambda path: (decoded.append(path), load_image(path))[1])
    data = calibration_data(tmp_path, 5)
    assert decoded == paths(data)


def test_repeated_content_counts_once(tmp_path):
    files = write(tmp_path, 3)
    for name in ("004.png", "also.jpg", "deep/er.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(files[1], tmp_path / name)
    for samples in (3, 6):
        data = calibration_data(tmp_path, samples)
        shown = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths(data))
        assert list(shown.values()) == [samples // 3] * 3
    assert any("left out 3 files" in notice for notice in data.notices)
    assert data.skipped == ()


# Crops


def test_crops_have_the_promised_sizes(tmp_path):
    write(tmp_path, 1)
    crops = calibration_data(tmp_path, 600).pictures[1:]
    boxes = np.array([picture.crop for picture in crops])
    assert boxes.min() >= 0 and boxes.max() <= 1
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height, width / height
    assert area.min() > 0.4 - 1e-5 and area.max() < 1 and np.ptp(area) > 0.5
    assert aspect.min() > 3 / 4 - 1e-5 and aspect.max() < 4 / 3 + 1e-5 and np.ptp(aspect) > 0.5
    assert 200 < sum(picture.flip for picture in crops) < 400
    assert len({picture.crop for picture in crops}) == len(crops)


def test_crops_of_a_photograph_do_not_depend_on_the_others(tmp_path):
    files = write(tmp_path, 2)
    alone = [picture for picture in calibration_data(files[1], 4).pictures if picture.crop]
    both = [picture for picture in calibration_data(tmp_path, 8).pictures if picture.crop]
    assert [picture for picture in both if picture.path == files[1]] == alone
    assert {picture.crop for picture in both if picture.path == files[0]}.isdisjoint(p.crop for p in alone)


# Pixels


@pytest.mark.parametrize(
    "preprocessor", [Preprocessor(64, 64), Preprocessor(48, 80), Preprocessor(32, 32, PreprocessConfig("shortest"))]
)
def test_whole_photographs_are_prepared_as_for_inference(photographs, preprocessor):
    data = calibration_data(SAMPLE, len(photographs) - len(HELD_OUT))
    for index in range(0, len(data), 5):
        path = data.pictures[index].path
        np.testing.assert_array_equal(data.pixels(index, preprocessor), preprocessor.pixels(path))


def test_pixels_of_crops(photographs):
    preprocessor = Preprocessor(64, 96)
    data = calibration_data(photographs["coffee"], 9)
    photo = np.asarray(load_image(photographs["coffee"]))
    assert len({picture.flip for picture in data.pictures}) == 2
    for index, picture in enumerate(data.pictures):
        left, top, right, bottom = picture.crop or (0, 0, 1, 1)
        rows = slice(math.floor(top * photo.shape[0]), math.ceil(bottom * photo.shape[0]))
        columns = slice(math.floor(left * photo.shape[1]), math.ceil(right * photo.shape[1]))
        part = photo[rows, columns][:, :: -1 if picture.flip else 1]
        pixels = data.pixels(index, preprocessor)
        assert pixels.shape == (3, 64, 96) and pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, preprocessor.pixels(part))
        np.testing.assert_array_equal(pixels, data.pixels(index, preprocessor))


def test_crops_are_of_the_upright_image(tmp_path, photographs):
    photo = load_image(photographs["chelsea"])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    photo.save(tmp_path / "upright.png")
    preprocessor = Preprocessor(32, 32)
    for picture in calibration_data(tmp_path / "upright.png", 4).pictures:
        both = [
            CalibrationData((type(picture)(tmp_path / name, picture.crop, picture.flip),), "", "").pixels(
                0, preprocessor
            )
            for name in ("upright.png", "turned.png")
        ]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1)])
def test_crops_of_the_smallest_images(tmp_path, size):
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "dot.png")
    data = calibration_data(tmp_path, 40)
    for index in range(len(data)):
        assert np.all(data.pixels(index, Preprocessor(4, 4, PreprocessConfig("shortest"))) == 9)


def test_pixels_name_the_file_that_fails(tmp_path):
    files = write(tmp_path, 2)
    Image.new("L", (20_000, 1)).save(files[0])
    data = calibration_data(tmp_path, 2)
    with pytest.raises(ImageError, match=r"000\.png: .*too long and narrow"):
        data.pixels(0, Preprocessor(64, 64, PreprocessConfig("pad", "hamming")))  # of which no part can be computed
    files[1].unlink()
    with pytest.raises(ImageError, match=r"001\.png"):
        data.pixels(1, Preprocessor(8, 8))


# Fingerprints


def test_fingerprint_follows_what_is_shown(tmp_path):
    files = write(tmp_path / "images", 4)

    def fingerprint(samples: int, seed: int = 0) -> str:
        return calibration_data(tmp_path / "images", samples, seed=seed).fingerprint

    before = [fingerprint(4), fingerprint(6), fingerprint(6, seed=1), fingerprint(7), fingerprint(3)]
    assert len(set(before)) == len(before)
    assert all(len(text) == 64 and int(text, 16) for text in before)
    assert fingerprint(4, seed=1) == before[0]  # nothing is left to chance
    os.utime(files[2], (0, 0))
    assert fingerprint(6) == before[1]
    Image.new("RGB", (6, 5), (77, 0, 0)).save(files[2])
    assert fingerprint(4) != before[0]
    assert fingerprint(6) != before[1]


def test_fingerprint_follows_flips_too(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(photos_module, "_crop", lambda _rng: (0.0, 0.0, 0.7, 0.7))
    one, other = (calibration_data(tmp_path, 20, seed=seed) for seed in (0, 1))
    assert [p.flip for p in one.pictures] != [p.flip for p in other.pictures]
    assert one.fingerprint != other.fingerprint


def test_fingerprint_is_of_the_content_in_order(tmp_path):
    files = write(tmp_path / "images", 3)
    names = [file.name for file in files]
    whole = calibration_data(tmp_path / "images", 3).fingerprint
    listed = tmp_path / "images" / "calib.txt"
    listed.write_text("\n".join(names))
    assert calibration_data(listed, 3).fingerprint == whole
    listed.write_text("\n".join(reversed(names)))
    assert calibration_data(listed, 3).fingerprint != whole
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere" / "copy")
    assert calibration_data(tmp_path / "elsewhere", 3).fingerprint == whole
