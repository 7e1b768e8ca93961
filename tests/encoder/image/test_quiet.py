"""Pillow's warnings are silenced in several threads, and nobody else's."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvexport.core.errors import ImageWarning
from fvexport.encoder.image import load_image
from fvexport.encoder.image.quiet import quiet_pillow


def pillow_warns() -> None:
    warnings.warn_explicit("damaged", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")


def test_pillow_alone_is_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_pillow():
            pillow_warns()
            warnings.warn("another's", UserWarning, stacklevel=1)
        pillow_warns()
    assert [str(warning.message) for warning in caught] == ["another's", "damaged"]


def test_pillow_s_warnings_are_no_errors_either() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_pillow():
            pillow_warns()
        with pytest.raises(UserWarning, match="damaged"):
            pillow_warns()


@pytest.mark.parametrize("leaves_first", ["outer", "inner"])
def test_filters_of_others_that_change_meanwhile(leaves_first: str) -> None:
    before, catcher = list(warnings.filters), warnings.catch_warnings()
    with quiet_pillow():
        catcher.__enter__()
        warnings.simplefilter("ignore")
        with quiet_pillow():
            if leaves_first == "inner":
                catcher.__exit__()
    if leaves_first == "outer":
        catcher.__exit__()
    assert list(warnings.filters) == before


def test_two_images_are_decoded_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "a.png")
    inside = threading.Barrier(2, timeout=10)
    real = Image.open

    def slow(*arguments):
        inside.wait()
        return real(*arguments)

    monkeypatch.setattr(Image, "open", slow)
    with ThreadPoolExecutor(2) as pool:
        assert [image.size for image in pool.map(load_image, [tmp_path / "a.png"] * 2)] == [(8, 8)] * 2


def test_a_notice_is_shown_while_others_decode(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "dark.png")
    with quiet_pillow(), pytest.warns(ImageWarning, match="nearly black"):
        load_image(tmp_path / "dark.png")
