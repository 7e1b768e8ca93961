"""Which tokens see a picture, against the pixels of black and white ones; and the batches that are compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig
from fvexport.export.artifact import Artifact
from fvexport.export.parity_runs import runs_of, tokens_of

STRIDE = 8


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["pad", "shortest", "longest", "squash"]), st.sampled_from(["down", "even"]),
    st.sampled_from([1.0, 0.9, 0.5]), st.integers(1, 90), st.integers(1, 90), st.integers(1, 5), st.integers(1, 5),
)  # fmt: skip
def test_tokens_are_those_with_a_pixel_of_the_picture(
    resize: str, rounding: str, crop_pct: float, width: int, height: int, rows: int, columns: int
) -> None:
    """White pictures on black padding, resized without blending: a pixel is white if it shows the picture."""
    config = PreprocessConfig(resize=resize, rounding=rounding, crop_pct=crop_pct, resample="nearest")  # type: ignore[arg-type]
    own = Preprocessor(STRIDE * rows, STRIDE * columns, config)
    white = np.full((height, width, 3), 255, np.uint8)
    shown = own.pixels(white)[0] > 0
    seen = tokens_of(own, white, STRIDE).reshape(rows, columns)
    blocks = shown.reshape(rows, STRIDE, columns, STRIDE).any((1, 3))
    assert (seen >= blocks).all()
    left, top, right, bottom = own.content_box((width, height))
    assert 0 <= left < right <= own.width and 0 <= top < bottom <= own.height
    # Pixels on the border of the two are inside the box whichever of them is the nearest.
    inner = np.zeros_like(shown)
    inner[top + 1 : bottom - 1, left + 1 : right - 1] = True
    assert (shown >= inner).all()
    assert not shown[:top].any() and not shown[bottom:].any()
    assert not shown[:, :left].any() and not shown[:, right:].any()


@pytest.mark.parametrize(
    ("size", "rows"), [((30, 10), [1]), ((30, 30), [0, 1, 2]), ((30, 12), [0, 1, 2]), ((10, 30), [0, 1, 2])], ids=str
)
def test_tokens_in_part_padding_count(size: tuple[int, int], rows: list[int]) -> None:
    seen = tokens_of(Preprocessor(24, 24), np.zeros((size[1], size[0], 3), np.uint8), STRIDE).reshape(3, 3)
    assert [row for row in range(3) if seen[row].any()] == rows
    assert seen[:, 1].sum() == len(rows)
    assert seen.all() == (size in ((30, 30), (30, 12)))


def test_batches(static: Artifact, dynamic: Artifact) -> None:
    images = [np.full((40, 40, 3), level, np.uint8) for level in (10, 200, 90)]
    found = list(runs_of(static, images, None))
    assert [run.photographs for run in found] == [(0,), (1,), (2,)]
    found = list(runs_of(dynamic, images, None))
    assert [run.photographs for run in found] == [(0,), (1,), (2,), (0, 1, 2)]
    assert [run.resolution for run in found] == [(128, 128)] * 3 + [(64, 64)]
    for run in found:
        assert run.seen.shape == (len(run.photographs), run.pixels.shape[2] * run.pixels.shape[3] // 64**2)
        for row, photograph in enumerate(run.photographs):
            assert (run.pixels[row] == images[photograph][0, 0, 0]).all()
