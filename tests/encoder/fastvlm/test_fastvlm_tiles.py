"""AnyRes against transformers' LLaVA-NeXT: the grid, the pixels, and the order of tokens; then through the encoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fvexport.core.errors import ConfigError
from fvexport.encoder.fastvlm import EncodedImages, FastVLM, Sampling, Tiling, load_fastvlm
from fvexport.encoder.fastvlm.tiles import Layout, best_grid, cut

image_processing = pytest.importorskip("transformers.image_processing_utils")
llava_next = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")

TILE = 128
GRIDS = Tiling().grids
SIDES = st.integers(1, 3000)
ODD_SIZES = [(100, 100), (64, 1000), (1000, 64), (333, 517), (129, 255), (1, 3), (1500, 1), (256, 128), (255, 257)]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture(scope="module")
def vlm(fastvlm_dir: Path) -> FastVLM:
    return load_fastvlm(fastvlm_dir)


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6))
def test_the_grid_is_transformers_own(height: int, width: int, grids: list[tuple[int, int]]) -> None:
    pinpoints = [(rows * TILE, columns * TILE) for rows, columns in grids]
    wanted = image_processing.select_best_resolution((height, width), pinpoints)
    found = best_grid((height, width), (TILE, TILE), grids)
    assert (found[0] * TILE, found[1] * TILE) == tuple(wanted)


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_pixels_are_transformers_own(size: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.llava_next.image_processing_pil_llava_next")
    processor = module.LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[[rows * TILE, columns * TILE] for rows, columns in GRIDS], do_normalize=False,
    )  # fmt: skip
    wanted = processor(picture(*size), return_tensors="np")["pixel_values"][0]
    frames = cut(picture(*size), (TILE, TILE), best_grid(size, (TILE, TILE), GRIDS))
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous
    np.testing.assert_allclose(frames / 255, wanted, rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.booleans())
def test_tokens_come_together_as_transformers_packs_them(height: int, width: int, newline: bool) -> None:
    """With `image_newline` it packs as LLaVA's `spatial_unpad`."""
    grid = best_grid((height, width), (TILE, TILE), GRIDS)
    layout = Layout((height, width), (4, 4), grid, "spatial_unpad")
    tokens = torch.arange(layout.frames * 16 * 3.0).view(layout.frames, 16, 3)
    end = torch.tensor([-1.0, -2.0, -3.0])
    pinpoints = [[rows * TILE, columns * TILE] for rows, columns in GRIDS]
    vision = SimpleNamespace(image_size=TILE, patch_size=TILE // 4)
    self = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    wanted, lengths = llava_next.LlavaNextModel.pack_image_features(
        self, [tokens], torch.tensor([[height, width]]), "full", image_newline=end if newline else None
    )
    found = layout.merged(tokens, end)
    if not newline:
        found = found[~(found == end).all(1)]
    else:
        assert layout.tokens == int(lengths[0])
    assert torch.equal(found, wanted[0])


def test_flat_and_spatial_keep_every_token() -> None:
    tokens = torch.arange(7 * 4.0)[:, None].view(7, 4, 1)  # overview, 2 x 3 tiles of 2 x 2 tokens
    flat = Layout((10, 20), (2, 2), (2, 3), "flat")
    assert flat.merged(tokens).flatten().tolist() == list(range(28))
    spatial = Layout((10, 20), (2, 2), (2, 3), "spatial")
    rows = [[4, 5, 8, 9, 12, 13], [6, 7, 10, 11, 14, 15], [16, 17, 20, 21, 24, 25], [18, 19, 22, 23, 26, 27]]
    assert spatial.merged(tokens).flatten().tolist() == [0, 1, 2, 3, *(i for row in rows for i in row)]
    assert flat.tokens == spatial.tokens == 28
    whole = Layout((10, 20), (2, 2))
    assert (whole.frames, whole.tokens) == (1, 4) and whole.merged(tokens[:1]).shape == (4, 1)


def test_the_papers_setting() -> None:
    """2048 as 2 x 2 tiles of 1024 and an overview: 1280 visual tokens (section 4.3)."""
    grid = best_grid((2048, 2048), (1024, 1024), GRIDS)
    assert grid == (2, 2)
    assert Layout((2048, 2048), (16, 16), grid).tokens == 1280


class Counting:
    """The eager tower, and how often it was called with how many frames."""

    name, projected, resolution = "counting", False, None

    def __init__(self, vlm: FastVLM) -> None:
        self.inner = vlm.tower
        self.batches: list[int] = []

    def encode(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return self.inner.encode(pixels)


def test_all_frames_go_through_the_encoder_in_one_call(vlm: FastVLM) -> None:
    tower = Counting(vlm)
    pictures = [picture(100, 100), picture(40, 300)]
    found = vlm.encode_images(pictures, tower=tower, resolution=(64, 128), tiling=Tiling(((1, 3), (2, 2))))
    assert tower.batches == [5 + 4]
    assert found.counts == (5 * 2, 4 * 2) and found.tower == "counting"
    for image, tokens in zip(pictures, found.tokens, strict=True):
        grid = best_grid((image.height, image.width), (64, 128), ((1, 3), (2, 2)))
        alone = [
            vlm.connector(vlm.tower.encode(torch.from_numpy(frame[None])))[0] for frame in cut(image, (64, 128), grid)
        ]
        assert torch.allclose(torch.cat(alone), tokens, atol=1e-4)


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_odd_pictures_get_answers(vlm: FastVLM, size: tuple[int, int]) -> None:
    told = vlm.generate(
        [picture(*size)], "What is it?", resolution=(64, 64), tiling=Tiling(), sampling=Sampling(max_new_tokens=2)
    )
    rows, columns = best_grid(size, (64, 64), GRIDS)
    assert told.visual_tokens == 1 + rows * columns


def test_newline_of_the_checkpoint_ends_each_row(vlm: FastVLM) -> None:
    newline = torch.randn(64, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {"resolution": (128, 128), "tiling": Tiling(((2, 2),), "spatial_unpad")}
    with pytest.raises(ConfigError, match="needs the checkpoint's image_newline"):
        vlm.encode_images([picture(256, 256)], **asked)
    vlm.image_newline = newline
    try:
        (tokens,) = vlm.encode_images([picture(256, 256)], **asked).tokens
        (wide,) = vlm.encode_images([picture(64, 256)], **asked).tokens
    finally:
        vlm.image_newline = None
    assert tokens.shape == (4 + 4 * 5, 64)
    assert all(torch.equal(row, newline) for row in tokens[4 + 4 :: 5])
    assert wide.shape == (4 + 2 * 5, 64)  # a row of padding above and one below are left out


def test_what_a_checkpoint_says() -> None:
    assert Tiling.from_config({"image_aspect_ratio": "pad"}, (1024, 1024)) is None
    assert Tiling.from_config({"image_grid_pinpoints": None}, (1024, 1024)) is None
    llava = {
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": "[(336, 672), (1008, 336)]",  # width, height
        "mm_patch_merge_type": "spatial_unpad",
    }
    assert Tiling.from_config(llava, (336, 336)) == Tiling(((2, 1), (1, 3)), "spatial_unpad")
    for changed, message in (
        ({"image_aspect_ratio": "anyres_max_9"}, "'anyres_max_9' is not supported"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "pairs of width and height"),
        ({"image_grid_pinpoints": None}, "pairs of width and height; found None"),
        ({"image_grid_pinpoints": [[300, 300]]}, "300x300, which tiles of"),
        ({"image_grid_pinpoints": [[336, 336 << 10]]}, "grids need 1 to 64 tiles"),
        *(
            ({"image_grid_pinpoints": value}, "pairs of width and height")
            for value in (
                "-" * 100_000 + "1",
                "[" * 2000,
                "[(336, " + "9" * 5000 + ")]",
                "[(1, 2)].__class__",
                "",
                [[1e999, 256]],
                [[336, 10**400]],
                [[-336, 336]],
                [[0, 336]],
                [],
                [[336]],
                [[336, 336]] * 300,
                7,
                "[(336, 336) (1, 2)]",
            )
        ),
        ({"mm_patch_merge_type": "maxpool2x2"}, "unknown merge 'maxpool2x2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Tiling.from_config(llava | changed, (336, 336))
    for grids in ((), ((0, 1),), ((9, 9),)):
        with pytest.raises(ConfigError, match="grids need 1 to 64 tiles"):
            Tiling(grids)


def test_static_resolutions(vlm: FastVLM) -> None:
    """One frame of any multiples of 64, also one that is not square."""
    for resolution, tokens in (((64, 64), 1), ((192, 320), 15), ((2048, 64), 32)):
        encoded = vlm.encode_images([picture(90, 130)], resolution=resolution)
        assert encoded.counts == (tokens,)
    with pytest.raises(ConfigError, match="not a multiple of 64; the nearest is --res 128"):
        vlm.encode_images([picture(9, 9)], resolution=(100, 130))
    assert isinstance(encoded, EncodedImages)
