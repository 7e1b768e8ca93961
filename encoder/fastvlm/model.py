"""`FastVLM`: encode images, build the prompt, answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import CheckpointError, ConfigError, PromptError
from ...core.threads import torch_threads
from ..checkpoint import CheckpointInfo
from ..config import FastViTHDConfig
from ..connector import Connector
from ..image import ImageLike, load_image
from ..preprocess import Preprocessor
from .generate import Answer, Piece, Sampling, TextStream, Timings, decode
from .prompt import MARK, Conversation, segments, tokenize
from .splice import length, splice
from .tiles import Layout, Tiling, best_grid, check_newline, cut
from .tokenizer import MEND
from .vision import EagerTower, EncodedImages, VisionTower


@dataclass(kw_only=True)
class FastVLM:
    """A loaded FastVLM.

    Attributes:
        info: of encoder and connector, as an artifact remembers them: `sha256`, `connector_sha256`, `resolution`.
        architecture: of the encoder.
        tower: the eager encoder; what encodes images where no other tower is given. None after `drop_encoder()`.
        connector: visual tokens -> the language model's width.
        language_model: transformers' `Qwen2ForCausalLM`.
        tokenizer: transformers' tokenizer, or None where the checkpoint was loaded without.
        resolution: (height, width) that a frame or tile has where none is asked for.
        tiling: how the checkpoint cuts pictures (AnyRes), or None where it takes them whole.
        image_newline: (d,), what ends each row of tokens in AnyRes' `spatial_unpad`, where the checkpoint has it.
        stop_ids: tokens that end an answer.
        context_length: tokens of prompt, images and answer together.
        image_mark: what stands for an image in the text.
    """

    info: CheckpointInfo
    architecture: FastViTHDConfig
    tower: EagerTower | None
    connector: Connector
    language_model: Any
    tokenizer: Any
    resolution: tuple[int, int]
    tiling: Tiling | None
    image_newline: Tensor | None
    stop_ids: frozenset[int]
    context_length: int
    image_mark: str = MARK

    @torch_threads()
    def generate(
        self, images: Sequence[ImageLike] | EncodedImages, conversation: Conversation, *,
        tower: VisionTower | None = None, resolution: tuple[int, int] | None = None, tiling: Tiling | None = None,
        sampling: Sampling | None = None, stream: Callable[[Piece], None] | None = None,
    ) -> Answer:  # fmt: skip
        """Answers the conversation's last turn.

        Args:
            images: files, Pillow images or arrays, in the order of their marks; or what `encode_images` gave.
            conversation: a question, or turns. Where it has no `<image>` mark, the images go before the first user's
                text, each with a line break, as the released `predict.py` has it. No image at all: text alone.
            tower: what encodes instead of the eager encoder.
            resolution: (height, width) of a frame or tile; the tower's or checkpoint's own by default.
            tiling: cut pictures into tiles; None for the checkpoint's own way.
            sampling: how tokens are chosen, and how many at most; greedy, 256 by default.
            stream: called with each token as it comes.

        Raises:
            PromptError: marks and images of different number, roles out of turn, a prompt that fills the context.
            CheckpointError: no tokenizer was loaded.
            ImageError: an unusable image.
            ConfigError: a resolution that the tower does not take; options out of range.
        """
        count = len(images.tokens) if isinstance(images, EncodedImages) else len(images)
        ids = self.prompt_ids(conversation, count)
        if not isinstance(images, EncodedImages):
            # A prompt that does not fit is told before the encoder runs.
            prepared = self._prepared(images, tower, resolution, tiling)
            self._room(ids, [layout.tokens for layout in prepared.layouts])
            images = self._encoded(prepared)
        return self.answer(images, ids, sampling=sampling, stream=stream)

    def prompt_ids(self, conversation: Conversation, images: int) -> list[int]:
        """The conversation as token ids, with `IMAGE_TOKEN_INDEX` where each image goes; raises as `generate`."""
        if self.tokenizer is None:
            raise CheckpointError(f"{self.info.source}: was loaded without a tokenizer; {MEND}")
        return tokenize(self.tokenizer, segments(conversation, images, mark=self.image_mark))

    @torch_threads()
    def encode_images(
        self, images: Sequence[ImageLike], *, tower: VisionTower | None = None,
        resolution: tuple[int, int] | None = None, tiling: Tiling | None = None,
    ) -> EncodedImages:  # fmt: skip
        """All images' frames and tiles through the tower in one call, then the connector; see `generate`."""
        return self._encoded(self._prepared(images, tower, resolution, tiling))

    @torch_threads()
    def answer(
        self, images: EncodedImages, ids: Sequence[int], *, sampling: Sampling | None = None,
        stream: Callable[[Piece], None] | None = None,
    ) -> Answer:  # fmt: skip
        """`generate` from token ids with `IMAGE_TOKEN_INDEX` once for each image."""
        room = self._room(ids, images.counts)
        text = TextStream(self.tokenizer) if self.tokenizer is not None else None

        def see(token: int) -> None:
            piece = text.add(token) if text else ""
            if stream is not None:
                stream(Piece(piece, token))

        # The splice is part of the prefill: two thousand rows of embeddings, looked up and put together.
        start = time.perf_counter()
        with torch.inference_mode():
            embeddings = splice(self.language_model, ids, images.tokens)
        spliced_ms = 1e3 * (time.perf_counter() - start)
        made = decode(
            self.language_model, embeddings, sampling or Sampling(), stop_ids=self.stop_ids, room=room, see=see
        )
        if text and (rest := text.end()) and stream is not None:
            stream(Piece(rest, made.token_ids[-1]))
        timings = Timings(
            images.preprocess_ms, images.encoder_ms, images.connector_ms, spliced_ms + made.prefill_ms,
            made.decode_ms, made.steps,
        )  # fmt: skip
        return Answer(
            text=text.text.strip() if text else "",
            token_ids=tuple(made.token_ids),
            stop=made.stop,
            prompt_tokens=len(ids) - len(images.tokens),
            visual_tokens=sum(images.counts),
            timings=timings,
            tower=images.tower,
        )

    def drop_encoder(self) -> None:
        """Frees the eager encoder's memory where a tower stands in for it."""
        self.tower = None

    def _room(self, ids: Sequence[int], counts: Sequence[int]) -> int:
        """Positions left for the answer; raises PromptError where there are none."""
        taken = length(ids, counts)
        if taken >= self.context_length:
            raise PromptError(
                f"the prompt takes {taken} tokens ({sum(counts)} of them images) and the model has room for "
                f"{self.context_length}, answer included; give fewer images, or a smaller --res"
            )
        return self.context_length - taken

    def _prepared(
        self, images: Sequence[ImageLike], tower: VisionTower | None, resolution: tuple[int, int] | None,
        tiling: Tiling | None,
    ) -> _Prepared:  # fmt: skip
        """Pixels of all frames, and how each image's come together."""
        start = time.perf_counter()
        tower = tower or self.tower
        if not images:
            return _Prepared(tower, np.zeros((0, 3, 1, 1), np.uint8), [], 0.0)
        if tower is None:
            raise ConfigError("the eager encoder was dropped; give a tower that stands in for it")
        tile = resolution or tower.resolution or self.resolution
        if tower.resolution is not None and tile != tower.resolution:
            own, asked = ("x".join(map(str, size)) for size in (tower.resolution, tile))
            raise ConfigError(f"{tower.name} takes {own} alone; found --res {asked}")
        self.architecture.check_resolution(*tile)
        tiling = tiling or self.tiling
        check_newline(tiling, self.image_newline)
        stride = self.architecture.stride
        frame = tile[0] // stride, tile[1] // stride
        whole = Preprocessor(*tile, self.info.preprocessing)
        frames, layouts = [], []
        for image in images:
            rgb = load_image(image)
            size = rgb.height, rgb.width
            if tiling is None:
                frames.append(whole.pixels(rgb)[None])
                layouts.append(Layout(size, frame))
            else:
                grid = best_grid(size, tile, tiling.grids)
                frames.append(cut(rgb, tile, grid))
                layouts.append(Layout(size, frame, grid, tiling.merge))
        return _Prepared(tower, np.concatenate(frames), layouts, 1e3 * (time.perf_counter() - start))

    @torch.inference_mode()
    def _encoded(self, prepared: _Prepared) -> EncodedImages:
        tower, weight = prepared.tower, self.language_model.get_input_embeddings().weight
        if not prepared.layouts or tower is None:
            return EncodedImages((), None, 0.0, 0.0, 0.0)
        start = _now(weight.device)
        tokens = tower.encode(torch.from_numpy(prepared.pixels))
        encoded = _now(weight.device)
        if not tower.projected:
            inner = next(self.connector.parameters(), weight)
            tokens = self.connector(tokens.to(inner.device, inner.dtype))
        projected = _now(weight.device)
        tokens = tokens.to(weight.device, weight.dtype)
        parts = torch.split(tokens, [layout.frames for layout in prepared.layouts])
        merged = [layout.merged(part, self.image_newline) for layout, part in zip(prepared.layouts, parts, strict=True)]
        connector_ms = 0.0 if tower.projected else projected - encoded
        return EncodedImages(tuple(merged), tower.name, prepared.milliseconds, encoded - start, connector_ms)


@dataclass
class _Prepared:
    tower: VisionTower | None
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    layouts: list[Layout]
    milliseconds: float


def _now(device: torch.device) -> float:
    """The clock in milliseconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()
