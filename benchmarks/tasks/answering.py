"""Items -> rows with a FastVLM: one image and one answer in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...core.errors import ImageError, PromptError
from ...core.phrases import printable
from ...core.progress import Progress, silent
from ...encoder.fastvlm import EncodedImages, FastVLM, Sampling, Tiling, VisionTower
from .contenders import Contender
from .items import Item
from .model_options import weights_of
from .rows import Rows, read_rows


@dataclass(frozen=True)
class Asking:
    """How items are asked: what an answer depends on besides weights and data.

    Attributes:
        prompt: `{question}` stands for the item's question.
        sampling: how tokens are chosen.
        resolution: (height, width) of a frame or tile.
        tiling: how pictures are cut, or None where they are taken whole.
    """

    prompt: str
    sampling: Sampling
    resolution: tuple[int, int]
    tiling: Tiling | None = None

    def text(self, item: Item) -> str:
        """What the model is asked."""
        return self.prompt.replace("{question}", item.question)

    def fingerprint(self, vlm: FastVLM, contender: Contender) -> str:
        """Tells rows of other settings or weights apart."""
        tiling = None if self.tiling is None else asdict(self.tiling)
        how = (self.prompt, asdict(self.sampling), self.resolution, tiling, str(vlm.language_model.dtype))
        return fingerprint(*how, *weights_of(vlm.info), *contender.weights)


def fingerprint(*parts: object) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def answer_items(
    vlm: FastVLM, items: Iterable[Item], rows: Rows, *, asking: Asking, encoder: str, total: int,
    tower: VisionTower | None = None, progress: Progress = silent,
) -> None:  # fmt: skip
    """Adds a row for every item that has none yet. Images that follow each other in the data are encoded once."""
    encoded: EncodedImages | None = None
    last: tuple[str, ...] = ()
    for done, item in enumerate(items):
        progress("answer", done, total)
        if rows.has(encoder, item):
            continue
        try:
            ids = vlm.prompt_ids(asking.text(item), len(item.images))  # told before the encoder runs
            if encoded is None or item.images != last:
                encoded = None  # frees the last one's before the next is made
                encoded = vlm.encode_images(item.paths, tower=tower, resolution=asking.resolution, tiling=asking.tiling)
                last = item.images
            answer = vlm.answer(encoded, ids, sampling=asking.sampling)
        except (ImageError, PromptError) as error:
            rows.add(encoder, item, {"error": printable(str(error))})
        else:
            rows.add(encoder, item, {
                "answer": answer.text, "token_ids": list(answer.token_ids), "stop": answer.stop,
                "prompt_tokens": answer.prompt_tokens, "visual_tokens": answer.visual_tokens,
                "timings": answer.timings.to_dict(),
            })  # fmt: skip
    progress("answer", total, total)


def failures(out: Path, encoder: str) -> list[tuple[int, str]]:
    """(line, reason) of the items without a result, in the data's order."""
    return sorted((row["line"], row["error"]) for row in read_rows(out, encoder) if "error" in row)
