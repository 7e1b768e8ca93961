"""`FastVLM`: encode images, build the prompt, answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointInfo
from ..connector import Connector
from ..image import ImageLike
from .generate import Answer, Piece, Sampling
from .prompt import Conversation
from .tiles import Tiling
from .vision import EagerTower, EncodedImages, VisionTower


@dataclass
class FastVLM:
    """A loaded FastVLM.

    Attributes:
        info: of encoder and connector, as an artifact remembers them: `sha256`, `connector_sha256`, `resolution`.
        tower: the eager encoder; what encodes images where no other tower is given. None after `drop_encoder()`.
        connector: visual tokens -> the language model's width.
        language_model: transformers' `Qwen2ForCausalLM`.
        tokenizer: transformers' tokenizer, or None where the checkpoint was loaded without.
        resolution: (height, width) that a frame or tile has where none is asked for.
        tiling: how the checkpoint cuts pictures (AnyRes), or None where it takes them whole.
        stop_ids: tokens that end an answer.
        context_length: tokens of prompt, images and answer together.
    """

    info: CheckpointInfo
    tower: EagerTower | None
    connector: Connector
    language_model: Any
    tokenizer: Any
    resolution: tuple[int, int]
    tiling: Tiling | None
    image_newline: Tensor | None
    stop_ids: frozenset[int]
    context_length: int

    def generate(
        self, images: Sequence[ImageLike] | EncodedImages, conversation: Conversation, *,
        tower: VisionTower | None = None, resolution: tuple[int, int] | None = None, tiling: Tiling | None = None,
        sampling: Sampling = Sampling(), stream: Callable[[Piece], None] | None = None,
    ) -> Answer:  # fmt: skip
        """Answers the conversation's last turn.

        Args:
            images: files, Pillow images or arrays, in the order of their marks; or what `encode_images` gave.
            conversation: a question, or turns. Where it has no `<image>` mark, the images go before the first user's
                text, each with a line break, as the released `predict.py` has it. No image at all: text alone.
            tower: what encodes instead of the eager encoder.
            resolution: (height, width) of a frame or tile; the tower's or checkpoint's own by default.
            tiling: cut pictures into tiles; None for the checkpoint's own way.
            sampling: how tokens are chosen, and how many at most.
            stream: called with each token as it comes.

        Raises:
            PromptError: marks and images of different number, roles out of turn, a prompt that fills the context.
            CheckpointError: no tokenizer was loaded.
            ImageError: an unusable image.
            ConfigError: a resolution that the tower does not take; options out of range.
        """
        raise NotImplementedError

    def encode_images(
        self, images: Sequence[ImageLike], *, tower: VisionTower | None = None,
        resolution: tuple[int, int] | None = None, tiling: Tiling | None = None,
    ) -> EncodedImages:  # fmt: skip
        """All images' frames and tiles through the tower in one call, then the connector; see `generate`."""
        raise NotImplementedError

    def drop_encoder(self) -> None:
        """Frees the eager encoder's memory where a tower stands in for it."""
        self.tower = None
