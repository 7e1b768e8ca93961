"""Photos for measuring activation ranges: which ones, whole or cropped, in a fixed order.

Noise has other ranges than photos, so input is never random: without the user's pictures, those of scikit-image are
used, and a notice says so.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import ConfigError, ImageError, first_line, one_line
from ..core.hashing import file_sha256
from ..core.input_file import read_bytes
from ..core.phrases import counted
from ..encoder.image import HELD_OUT, load_image, sample_images, search_images
from ..encoder.preprocess import Preprocessor
from .calibration_options import DEFAULT_SAMPLES

SAMPLE = "sample"
"""Name of the photos that scikit-image ships."""

CROP_AREA = (0.4, 1.0)
"""Share of a photograph's area that a crop shows."""

CROP_ASPECT = (3 / 4, 4 / 3)
"""A crop's aspect ratio over its photograph's, so that a panorama's crops keep the bars that it is padded with."""

_FOLDER = "is a folder"
_WANTED = "give a folder, an image, a list of images, or `sample`"


@dataclass(frozen=True)
class Picture:
    """One calibration input.

    Attributes:
        path: the file.
        crop: left, top, right, bottom as fractions of the upright image; None is the whole.
        flip: mirrored left to right, after the crop.
    """

    path: Path
    crop: tuple[float, float, float, float] | None = None
    flip: bool = False


@dataclass(frozen=True)
class CalibrationData:
    """The inputs of one calibration, in order; pixels are read on request.

    Attributes:
        pictures: the inputs of the model.
        source: `sample`, or the folder, image or list as given.
        fingerprint: SHA-256 over each picture's file content, crop and flip, in order; not over paths.
        skipped: files that were tried and could not be used, each with the reason.
        notices: sentences a user should read.
    """

    pictures: tuple[Picture, ...]
    source: str
    fingerprint: str
    skipped: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int, preprocessor: Preprocessor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One picture as uint8 levels (3, H, W), prepared as for inference; raises ImageError, naming the file."""
        picture = self.pictures[index]
        image = load_image(picture.path)
        if picture.crop is not None:
            width, height = image.size
            left, top, right, bottom = picture.crop
            # Outwards, so that a crop of the smallest image still has a pixel.
            box = (int(left * width), int(top * height), math.ceil(right * width), math.ceil(bottom * height))
            image = image.crop(box)
        if picture.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        try:
            return preprocessor.pixels(image)
        except ImageError as error:
            raise ImageError(f"calibration picture {picture.path}: {error}") from None


def calibration_data(
    spec: str | os.PathLike[str] | None, samples: int = DEFAULT_SAMPLES, *, seed: int = 0
) -> CalibrationData:
    """Chooses `samples` pictures from a folder (searched recursively), a list, a single image, or the sample.

    A list is UTF-8 text with one path a line, relative to the list; blank lines and lines that begin with # are
    ignored. None and the string `sample` are scikit-image's photographs; a folder of that name is `./sample`.

    More photographs than `samples` are chosen from evenly: one from each of `samples` equal stretches of the files in
    order. Fewer are all shown whole first, then as crops, some mirrored, in turns. Chosen files are decoded once here:
    unreadable ones and repeats of the same content make room for others.

    Raises:
        ConfigError: fewer than one sample.
        ImageError: a missing path; no usable image; a file that is neither an image nor a list.
        UnavailableError: the sample without scikit-image.
    """
    if samples < 1:
        raise ConfigError(f"--samples must be at least 1; found {samples}")
    sample = spec is None or spec == SAMPLE
    source = SAMPLE if spec is None else os.fspath(spec)
    files, skipped, left_out = (_sample(), [], "") if sample else _files(source)
    chosen = _choose(files, samples, seed)
    skipped += chosen.skipped
    if not chosen.places:
        tried = f"{counted(len(skipped), 'file')} ({skipped[0][0]}: {skipped[0][1]})"
        raise ImageError(f"--calib {source} has no usable image among {tried}; {_WANTED}")

    # In the order of the files, whichever stretch was filled last.
    photographs = {sha256: files[place] for sha256, place in sorted(chosen.places.items(), key=lambda item: item[1])}
    pictures, digest = [], hashlib.sha256()
    for sha256, picture in islice(_pictures(photographs, seed), samples):
        pictures.append(picture)
        digest.update(f"{sha256} {picture.crop} {picture.flip}\n".encode())

    notices = _notices(sample, len(photographs), samples, chosen.repeats, skipped)
    if left_out:
        notices += (one_line(f"--calib: {left_out}"),)
    return CalibrationData(tuple(pictures), source, digest.hexdigest(), tuple(skipped), notices)


def _sample() -> list[Path]:
    """scikit-image's photos without those that parity compares on: calibrating on them would spoil the test."""
    return [path for name, path in sample_images().items() if name not in HELD_OUT]


def _notices(
    sample: bool, photographs: int, samples: int, repeats: int, skipped: list[tuple[str, str]]
) -> tuple[str, ...]:
    found = []
    if sample:
        found.append(
            f"calibrated on {counted(photographs, 'photograph')} that scikit-image ships: "
            "--calib DIR with pictures like your own gives better ranges"
        )
    if photographs < samples:
        found.append(
            f"{counted(photographs, 'photograph')} became {samples} samples by cropping and mirroring: "
            "more photographs give better ranges"
        )
    if repeats:
        found.append(f"left out {counted(repeats, 'file')} with the content of another")
    if skipped:
        found.append(f"skipped {counted(len(skipped), 'file')}; the first is {skipped[0][0]}: {skipped[0][1]}")
    return tuple(map(one_line, found))


def _files(spec: str) -> tuple[list[Path], list[tuple[str, str]], str]:
    """The files that `spec` names, in a fixed order; the lines of a list that name none, with the reason; and a notice
    of what was left out of a folder, if anything was.
    """
    path = Path(spec)
    problem = _no_file(path) if spec else "is empty"  # Path("") would be the current folder
    if problem == _FOLDER:
        try:
            found = search_images([path])
            return found.files, [], found.notice()
        except ImageError as error:
            raise ImageError(f"--calib: {error}") from None
    if problem:
        raise ImageError(f"--calib {spec or repr(spec)} {problem}: {_WANTED}")
    lines = _lines(path)
    if lines is None:
        return [path], [], ""
    if not lines:
        raise ImageError(f"--calib {spec} is a list without a line: write one image's path a line")
    listed = [(file, _no_file(file)) for file in (path.parent / line for line in lines)]
    unusable = [(str(file), lacks) for file, lacks in listed if lacks]
    return [file for file, lacks in listed if not lacks], unusable, ""


def _no_file(path: Path) -> str:
    """Why `path` is no file to read, such as `does not exist`; empty if it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte in it
        return f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"
    if stat.S_ISDIR(mode):
        return _FOLDER
    return "" if stat.S_ISREG(mode) else "is no regular file"  # opening a pipe could wait for ever


def _lines(path: Path) -> list[str] | None:
    """The lines of a list of images; None where `path` is an image, sound or not."""
    if path.suffix.lower() in Image.registered_extensions():
        return None
    try:
        load_image(path)
        return None
    except ImageError as error:
        reason = _reason(path, error)
    try:
        content = read_bytes(path)
        text = not re.search(rb"[\x00-\x08\x0e-\x1f]", content[:4096])
        lines = content.decode("utf-8-sig").split("\n") if text else None
    except (OSError, UnicodeDecodeError):
        lines = None
    if lines is None:
        raise ImageError(f"--calib {path} is neither an image nor a list of images in UTF-8 ({reason}); {_WANTED}")
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _reason(path: Path, error: ImageError) -> str:
    """What `error` says about `path`, without naming it again."""
    return str(error).removeprefix(f"{one_line(path)} ")


@dataclass
class _Chosen:
    """Photographs found usable.

    Attributes:
        places: SHA-256 of a file's content -> its place among the files.
        skipped: unusable files and reasons.
        repeats: how many had the content of another.
    """

    places: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    repeats: int = 0

    def take(self, place: int, path: Path) -> bool:
        """Whether the file is usable and new; if so it is kept."""
        try:
            load_image(path)
            digest = file_sha256(path)
        except ImageError as error:
            self.skipped.append((str(path), _reason(path, error)))
            return False
        except OSError as error:
            self.skipped.append((str(path), f"cannot be read ({first_line(error)})"))
            return False
        if digest in self.places:
            self.repeats += 1
            return False
        self.places[digest] = place
        return True


def _choose(files: Sequence[Path], samples: int, seed: int) -> _Chosen:
    """Takes one usable file from each stretch of `files`, then what is left over, until there are `samples`."""
    chosen, rng = _Chosen(), random.Random(f"{seed} choice")
    stretches = min(samples, len(files))
    left: list[int] = []
    for start in range(stretches):
        stretch = range(start * len(files) // stretches, (start + 1) * len(files) // stretches)
        # random() is the one method whose sequence Python promises to keep from release to release.
        places = iter(sorted(stretch, key=lambda _: rng.random()))
        for place in places:
            if chosen.take(place, files[place]):
                break
        left += places
    for place in sorted(left, key=lambda _: rng.random()):
        if len(chosen.places) == samples:
            break
        chosen.take(place, files[place])
    return chosen


def _pictures(photographs: dict[str, Path], seed: int) -> Iterator[tuple[str, Picture]]:
    """Each photograph whole, then crops of each in turns, without end; with the SHA-256 of its content."""
    for sha256, path in photographs.items():
        yield sha256, Picture(path)
    for turn in count(1):
        for sha256, path in photographs.items():
            # By content, so that a photograph's crops stay the same when others join.
            rng = random.Random(f"{seed} crop {turn} {sha256}")
            yield sha256, Picture(path, _crop(rng), rng.random() < 0.5)


def _crop(rng: random.Random) -> tuple[float, float, float, float]:
    """A crop of an area and aspect ratio within `CROP_AREA` and `CROP_ASPECT`, anywhere in the photograph."""
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * rng.random()
    low, high = math.log(max(CROP_ASPECT[0], area)), math.log(min(CROP_ASPECT[1], 1 / area))  # what fits inside
    aspect = math.exp(low + (high - low) * rng.random())
    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    left, top = (1 - width) * rng.random(), (1 - height) * rng.random()
    # Rounded, since the last bits of exp differ between machines.
    return round(left, 6), round(top, 6), round(left + width, 6), round(top + height, 6)
