"""One task on the same items with several encoders, and how their results compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...core.errors import ConfigError, ImageError
from ...core.phrases import printable
from ...core.progress import Progress, silent
from ...core.threads import torch_threads
from ...encoder.checkpoint import CheckpointInfo, load_checkpoint
from ...encoder.fastvlm import EagerTower, Sampling, VisionTower
from ...encoder.fastvlm.load import RESOLUTION
from ...encoder.preprocess import Preprocessor
from ...encoder.preprocess_config import PreprocessConfig
from .answering import Asking, answer_items, fingerprint
from .contenders import DEFAULT_BACKEND, Contender, Entered, enter
from .eval_report import EvalReport, make_report
from .items import Item, Task, count_items, read_items
from .model_options import ModelOptions, weights_of
from .retrieval import packed, pooled
from .rows import Rows, check_rows

PROMPTS: dict[Task, str] = {
    "vqa": "{question}\nAnswer the question using a single word or phrase.",
    "caption": "Provide a one-sentence caption for the provided image.",
}
"""LLaVA-1.5's own prompts for short answers and captions (arXiv 2310.03744)."""

MAX_NEW_TOKENS: dict[Task, int] = {"vqa": 32, "caption": 64}


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is evaluated.

    Attributes:
        task: `vqa`, `caption` or `retrieval`.
        artifacts: folders; each runs on each of `backends`.
        backends: names from the table of backends.
        prompt: `{question}` stands for the item's question; by default as in `PROMPTS`.
        max_new_tokens: of an answer; by default as in `MAX_NEW_TOKENS`. Answers are greedy, so that they compare.
    """

    task: Task
    artifacts: tuple[Path, ...] = ()
    backends: tuple[str, ...] = (DEFAULT_BACKEND,)
    prompt: str | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.task == "vqa" and self.prompt is not None and "{question}" not in self.prompt:
            raise ConfigError(f"--prompt must hold {{question}}, where the item's question goes; found {self.prompt!r}")


def evaluate(
    model: ModelOptions, data: Path, out: Path, options: EvalOptions, *, progress: Progress = silent
) -> EvalReport:
    """Runs a task on `data` with the eager model and every artifact, and compares their results item by item.

    One encoder is in memory at a time, and one image. Every result is a row of `out` as soon as it is there: started
    again, a run goes on where it was interrupted, and one with more artifacts runs those alone.

    Args:
        model: a FastVLM; for `retrieval` any of the public forms.
        data: JSON lines (see `items`).
        out: JSON lines (see `rows`).
        options: task, artifacts and backends.
        progress: called as `answer` or `encode` with the items done.

    Raises:
        ConfigError: unusable data or options.
        ArtifactError: an artifact of other weights, or an `out` that holds other results.
        CheckpointError, UnavailableError: see `load_fastvlm` and `ArtifactTower`.
    """
    if options.task == "retrieval":
        _check_retrieval(model, options)
    job = _Job(model, data, out, options, enter(options.artifacts, options.backends), progress)
    contenders = job.embed() if options.task == "retrieval" else job.answer()
    return make_report(options.task, data, out, contenders)


def _check_retrieval(model: ModelOptions, options: EvalOptions) -> None:
    given = {
        "--prompt": options.prompt, "--max-new-tokens": options.max_new_tokens, "--dtype": model.dtype,
        "--tokenizer": model.tokenizer, "--anyres": model.anyres or None,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{name} has no effect with --task retrieval, which compares features")


class _Job:
    """What `evaluate` was given."""

    def __init__(
        self, model: ModelOptions, data: Path, out: Path, options: EvalOptions, entered: Entered, progress: Progress
    ) -> None:
        self.model, self.data, self.out, self.options = model, data, out, options
        self.entered, self.progress = entered, progress
        self.total = count_items(data, options.task)
        check_rows(out)

    def items(self) -> Iterator[Item]:
        return read_items(self.data, self.options.task)

    def answer(self) -> list[Contender]:
        """Rows of answers."""
        task = self.options.task
        vlm = self.model.load(self.progress)
        contenders = self.entered.contenders(self.model.resolution, vlm.resolution)
        most, prompt = self.options.max_new_tokens, self.options.prompt
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS[task] if most is None else most)
        prompt, tiling = PROMPTS[task] if prompt is None else prompt, self.model.tiling(vlm)
        askings = {one.name: Asking(prompt, sampling, one.resolution, tiling) for one in contenders}

        def run(one: Contender, tower: VisionTower | None, rows: Rows) -> None:
            if tower is not None:
                vlm.drop_encoder()
            answer_items(
                vlm, self.items(), rows, asking=askings[one.name], encoder=one.name, tower=tower, total=self.total,
                progress=self.progress,
            )  # fmt: skip

        self._each(contenders, vlm.info, lambda one: askings[one.name].fingerprint(vlm, one), run)
        return contenders

    def embed(self) -> list[Contender]:
        """Rows of pooled features."""
        checkpoint = load_checkpoint(self.model.checkpoint, revision=self.model.revision, progress=self.progress)
        info = checkpoint.info
        side = info.resolution or RESOLUTION
        contenders = self.entered.contenders(self.model.resolution, (side, side))
        for one in contenders:
            checkpoint.encoder.config.check_resolution(*one.resolution)
            if one.artifact is not None and one.artifact.manifest.options.projector:
                raise ConfigError(
                    f"{one.artifact.path} ends with the connector and --task retrieval compares the encoder's "
                    "features; export it without --projector"
                )
        eager: EagerTower | None = EagerTower(
            checkpoint.encoder, device=self.model.place, preprocessing=info.preprocessing
        )
        del checkpoint  # `eager` alone holds the encoder now

        def run(one: Contender, tower: VisionTower | None, rows: Rows) -> None:
            nonlocal eager
            if tower is not None:
                eager = None
            running = tower or eager
            assert running is not None  # the eager model is the first
            _embed_items(running, one, info.preprocessing, self, rows)

        weights = weights_of(info)
        self._each(contenders, info, lambda one: fingerprint("pooled", one.resolution, *weights, *one.weights), run)
        return contenders

    def _each(
        self, contenders: list[Contender], info: CheckpointInfo, how: Callable[[Contender], str],
        run: Callable[[Contender, VisionTower | None, Rows], None],
    ) -> None:  # fmt: skip
        """Runs every contender that has items left; the next one's tower is made when the last one's is gone."""
        if not self.model.force:
            for one in contenders:
                one.check_weights(info)
        with torch_threads(self.model.threads), Rows(self.out, {one.name: how(one) for one in contenders}) as rows:
            for one in contenders:
                if not all(rows.has(one.name, item) for item in self.items()):
                    run(one, one.tower(self.model.threads), rows)


def _embed_items(tower: VisionTower, one: Contender, config: PreprocessConfig, job: _Job, rows: Rows) -> None:
    """Adds the pooled features of every item that has none yet."""
    preprocessor = Preprocessor(*one.resolution, config)
    for done, item in enumerate(job.items()):
        job.progress("encode", done, job.total)
        if rows.has(one.name, item):
            continue
        try:
            pixels = torch.from_numpy(preprocessor.pixels(item.paths[0]))[None]
            features = tower.encode(pixels).float().cpu().numpy()
            if not np.isfinite(features).all():
                raise ImageError(f"{item.images[0]} has infinite or undefined features: encode it with an fp32 file")
        except ImageError as error:
            rows.add(one.name, item, {"error": printable(str(error))})
        else:
            rows.add(one.name, item, {"features": packed(pooled(features)[0])})
    job.progress("encode", job.total, job.total)
