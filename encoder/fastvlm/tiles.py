"""High resolution by tiles (AnyRes): a grid of tiles that suits the picture's shape, and an overview.

Source: LLaVA-1.6's `process_anyres_image` and `prepare_inputs_labels_for_multimodal`; FastVLM, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MergeType = Literal["flat", "spatial", "spatial_unpad"]


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Attributes:
        pinpoints: canvases (height, width) to choose from, each a multiple of the tile.
        merge: `flat`: overview, then tile after tile; `spatial`: overview, then the grid's rows of tokens;
            `spatial_unpad`: that without the padding's tokens, and `image_newline` after each row.
    """

    pinpoints: tuple[tuple[int, int], ...]
    merge: MergeType = "flat"
