"""High resolution by tiles (AnyRes): a grid of tiles that suits the picture's shape, and an overview.

Source: LLaVA-1.6's `process_anyres_image` and `prepare_inputs_labels_for_multimodal`; FastVLM, section 4.3.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor

from ...core.errors import ConfigError
from ...core.records import RecordError, parse

Side: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 20)]
MergeType = Literal["flat", "spatial", "spatial_unpad"]
Canvases: TypeAlias = Annotated[list[tuple[Side, Side]], Meta(min_length=1, max_length=256)]
MAX_TILES = 64
"""Of one picture: 64 tiles of 1024 x 1024 make 16384 visual tokens."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut. The defaults are LLaVA-1.6's grids, and FastVLM's order of tokens.

    Attributes:
        grids: (rows, columns) of tiles to choose from; the one that keeps most of the picture's pixels is taken.
        merge: `flat`: overview, then tile after tile; `spatial`: overview, then the grid's rows of tokens;
            `spatial_unpad`: that without the padding's tokens, and the checkpoint's `image_newline` after each row.
    """

    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
    merge: MergeType = "flat"

    def __post_init__(self) -> None:
        if self.merge not in get_args(MergeType):
            raise ConfigError(f"unknown merge {self.merge!r}; known are {', '.join(get_args(MergeType))}")
        if not self.grids or any(min(grid) < 1 or grid[0] * grid[1] > MAX_TILES for grid in self.grids):
            raise ConfigError(f"grids need 1 to {MAX_TILES} tiles (rows x columns); found {list(self.grids)}")

    @classmethod
    def from_config(cls, main: Mapping[str, Any], tile: tuple[int, int]) -> Tiling | None:
        """What a LLaVA checkpoint's config.json asks for, or None where it takes pictures whole.

        Raises ConfigError for a kind of tiling that LLaVA-1.6 does not have, and for canvases that are no whole tiles.
        """
        aspect = main.get("image_aspect_ratio")
        if not isinstance(aspect, str) or not aspect.startswith("anyres"):
            return None
        if aspect != "anyres":
            raise ConfigError(f"image_aspect_ratio {aspect!r} is not supported; known are pad, anyres and square")
        canvases = _canvases(main.get("image_grid_pinpoints"))
        for height, width in canvases:
            if height % tile[0] or width % tile[1]:
                raise ConfigError(f"image_grid_pinpoints has {width}x{height}, which tiles of {tile} do not fill")
        return cls(
            tuple((height // tile[0], width // tile[1]) for height, width in canvases),
            main.get("mm_patch_merge_type", "flat"),
        )


def _canvases(pinpoints: Any) -> list[tuple[int, int]]:
    """(height, width) of each of `image_grid_pinpoints`: a list of (width, height), or the text of one as Python."""
    try:
        if isinstance(pinpoints, str) and re.fullmatch(r"[\d\s,()\[\]]{1,4096}", pinpoints, re.ASCII):
            # The pattern leaves only numbers within lists, which can still be nested too deeply.
            pinpoints = ast.literal_eval(pinpoints)
        return [(height, width) for width, height in parse(pinpoints, Canvases)]
    except (RecordError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        found = repr(pinpoints)[:80]
        raise ConfigError(f"image_grid_pinpoints must be pairs of width and height; found {found}") from None


@dataclass(frozen=True)
class Layout:
    """One picture's frames: how many, and how their tokens come together.

    Attributes:
        size: (height, width) of the picture in pixels.
        frame: (rows, columns) of one frame's tokens.
        grid: (rows, columns) of tiles after the overview, or None for one frame alone.
        merge: see `Tiling`.
    """

    size: tuple[int, int]
    frame: tuple[int, int]
    grid: tuple[int, int] | None = None
    merge: MergeType = "flat"

    @property
    def frames(self) -> int:
        """Frames that the encoder sees."""
        return 1 if self.grid is None else 1 + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Visual tokens that the language model sees."""
        one = self.frame[0] * self.frame[1]
        if self.grid is None or self.merge != "spatial_unpad":
            return one * self.frames
        rows, columns = self._kept()
        return one + len(rows) * (len(columns) + 1)

    def _kept(self) -> tuple[range, range]:
        """Rows and columns of the grid's tokens that show the picture, as LLaVA's `unpad_image` counts them."""
        assert self.grid is not None
        height, width = self.size
        rows, columns = self.grid[0] * self.frame[0], self.grid[1] * self.frame[1]
        if width / height > columns / rows:
            # Rounded as transformers does, so that a whole number is not cut to the one below.
            padding = (rows - int(round(height * (columns / width), 7))) // 2
            return range(padding, rows - padding), range(columns)
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        return range(rows), range(padding, columns - padding)

    def merged(self, tokens: Tensor, newline: Tensor | None = None) -> Tensor:
        """(frames, n, d) of the picture's frames -> (`tokens`, d) in the order that the language model sees.

        `newline` (d,) is the checkpoint's `image_newline`; `spatial_unpad` alone takes it.
        """
        if self.grid is None or self.merge == "flat":
            return tokens.flatten(0, 1)
        (rows, columns), (h, w) = self.grid, self.frame
        overview, tiles = tokens[0], tokens[1:].reshape(rows, columns, h, w, -1)
        plane = tiles.permute(0, 2, 1, 3, 4).reshape(rows * h, columns * w, -1)
        if self.merge == "spatial_unpad":
            kept = self._kept()
            plane = plane[kept[0].start : kept[0].stop, kept[1].start : kept[1].stop]
            assert newline is not None  # `check_newline` saw to it
            ends = newline.to(plane.device, plane.dtype).expand(len(plane), 1, -1)
            plane = torch.cat([plane, ends], dim=1)
        return torch.cat([overview, plane.flatten(0, 1)])


def check_newline(tiling: Tiling | None, newline: Tensor | None) -> None:
    """Raises ConfigError where `spatial_unpad` is asked of a checkpoint without `image_newline`."""
    if tiling is not None and tiling.merge == "spatial_unpad" and newline is None:
        raise ConfigError("merge spatial_unpad needs the checkpoint's image_newline, which it has not; take flat")


def best_grid(size: tuple[int, int], tile: tuple[int, int], grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The grid whose canvas keeps most of a picture's pixels, and among those wastes least: the first such."""
    height, width = size

    def rank(grid: tuple[int, int]) -> tuple[int, int]:
        canvas_height, canvas_width = grid[0] * tile[0], grid[1] * tile[1]
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -(canvas_height * canvas_width - kept)

    return max(grids, key=rank)


def cut(image: Image.Image, tile: tuple[int, int], grid: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An RGB picture as uint8 frames (1 + tiles, 3, height, width): the overview, then the grid row by row.

    The overview is the picture squeezed to a tile, whatever its shape; the grid shows it in proportion, on black bars.
    """
    height, width = tile
    canvas = Image.new("RGB", (grid[1] * width, grid[0] * height))
    scales = canvas.width / image.width, canvas.height / image.height
    if scales[0] < scales[1]:
        fitted = canvas.width, min(math.ceil(image.height * scales[0]), canvas.height)
    else:
        fitted = min(math.ceil(image.width * scales[1]), canvas.width), canvas.height
    resized = image.resize(fitted, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((canvas.width - fitted[0]) // 2, (canvas.height - fitted[1]) // 2))
    overview = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    tiles = np.asarray(canvas).reshape(grid[0], height, grid[1], width, 3).transpose(0, 2, 1, 3, 4)
    frames = np.concatenate([overview[None], tiles.reshape(-1, height, width, 3)])
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
