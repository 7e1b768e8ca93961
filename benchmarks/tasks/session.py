"""A FastVLM with the encoder that was asked for: a conversation about images, a batch of questions, and its profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.progress import Progress, silent
from ...core.threads import torch_threads
from ...encoder.fastvlm import Answer, EncodedImages, FastVLM, Message, Piece, Sampling, VisionTower
from ...encoder.fastvlm.prompt import MARK
from .answering import Asking, answer_items, failures
from .contenders import DEFAULT_BACKEND, EAGER, Contender, enter
from .items import count_items, read_items
from .model_options import ModelOptions
from .rows import Rows, check_rows
from .ttft import Ttft, Vision, measure_ttft_paired

QUESTION = "{question}"


@dataclass
class Session:
    """What `open_session` made.

    Attributes:
        vlm: the model; it keeps its eager encoder where that is to run or to be compared with.
        contender: the encoder.
        tower: it, or None for the eager one.
        asking: resolution, tiling and sampling.
    """

    vlm: FastVLM
    contender: Contender
    tower: VisionTower | None
    asking: Asking


def open_session(
    options: ModelOptions, sampling: Sampling, *, artifact: Path | None = None, backend: str = DEFAULT_BACKEND,
    keep_eager: bool = False, progress: Progress = silent,
) -> Session:  # fmt: skip
    """Loads the model, and the artifact in the place of its encoder where one is given.

    Args:
        options: which model.
        sampling: how tokens are chosen.
        artifact, backend: what encodes instead of the eager encoder.
        keep_eager: keep the eager encoder beside the artifact.
        progress: told of downloads and of reading.

    Raises:
        ArtifactError: an unusable artifact, or one of other weights.
        CheckpointError, ConfigError, UnavailableError: see `load_fastvlm` and `ArtifactTower`.
    """
    entered = enter([artifact], [backend]) if artifact else enter([], [])
    vlm = options.load(progress)
    contender = entered.contenders(options.resolution, vlm.resolution)[-1]
    if not options.force:
        contender.check_weights(vlm.info)
    tower = contender.tower(options.threads)
    if tower is not None and not keep_eager:
        vlm.drop_encoder()
    return Session(vlm, contender, tower, Asking(QUESTION, sampling, contender.resolution, options.tiling(vlm)))


# --- a conversation ------------------------------------------------------------------------------


@dataclass
class Chat:
    """Questions about the same images, which are encoded once, before the first answer."""

    session: Session
    images: Sequence[Path]
    turns: list[Message] = field(default_factory=list)
    _encoded: EncodedImages | None = None

    def ask(self, question: str, stream: Callable[[Piece], None] | None = None) -> Answer:
        """Answers one more question. A question that is refused leaves the conversation as it was.

        The timings of later answers hold no encoding, since none was done.

        Raises PromptError, ImageError and ConfigError as `FastVLM.generate` does.
        """
        vlm, asking = self.session.vlm, self.session.asking
        if not self.turns and MARK not in question:
            # Where `FastVLM.generate` puts images without a mark; written down, they stay there in later turns.
            question = f"{MARK}\n" * len(self.images) + question
        turns = [*self.turns, {"role": "user", "content": question}]
        ids = vlm.prompt_ids(turns, len(self.images))  # what is wrong with it is told before the encoder runs
        encoded = self._encoded or vlm.encode_images(
            self.images, tower=self.session.tower, resolution=asking.resolution, tiling=asking.tiling
        )
        self._encoded = replace(encoded, preprocess_ms=0.0, encoder_ms=0.0, connector_ms=0.0)
        answer = vlm.answer(encoded, ids, sampling=asking.sampling, stream=stream)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        return answer


# --- a batch -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchReport:
    """What `answer_batch` did.

    Attributes:
        out: the result file.
        answered: items with an answer in it.
        kept: how many of those stood there before this run.
        failed: (line, reason) of the others; their rows hold the reason as `error`.
    """

    out: Path
    answered: int
    kept: int
    failed: list[tuple[int, str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        failed = [{"line": line, "reason": reason} for line, reason in self.failed]
        return asdict(self) | {"out": str(self.out), "failed": failed}


def answer_batch(
    options: ModelOptions, sampling: Sampling, data: Path, out: Path, *, artifact: Path | None = None,
    backend: str = DEFAULT_BACKEND, progress: Progress = silent,
) -> BatchReport:  # fmt: skip
    """Answers every (image, question) line of `data` into `out`; what stands there already is kept.

    An item whose image or question is unusable has a row with `error` and the others go on; those are tried again by
    the next run. One image and one answer are in memory at a time.

    Args:
        options: which model.
        sampling: how tokens are chosen.
        artifact, backend: what encodes instead of the eager encoder.
        data: JSON lines (see `items`).
        out: JSON lines (see `rows`).
        progress: called as `answer` with the items done.

    Raises:
        ConfigError: unusable data, or a resolution that the encoder does not take.
        ArtifactError: `out` cannot be written or holds other results.
        CheckpointError, UnavailableError: see `open_session`.
    """
    total = count_items(data, "ask")
    check_rows(out)
    session = open_session(options, sampling, artifact=artifact, backend=backend, progress=progress)
    name = session.contender.name
    with (
        torch_threads(options.threads),
        Rows(out, {name: session.asking.fingerprint(session.vlm, session.contender)}) as rows,
    ):
        kept = rows.kept
        answer_items(
            session.vlm, read_items(data, "ask"), rows, asking=session.asking, encoder=name, tower=session.tower,
            total=total, progress=progress,
        )  # fmt: skip
    failed = failures(out, name)
    return BatchReport(out, total - len(failed), kept, failed)


# --- where the time goes -------------------------------------------------------------------------


def profile(session: Session, images: Sequence[Path], prompt_tokens: int, *, rounds: int = 5) -> dict[str, Ttft]:
    """Time to first token by part, of the eager encoder and of the artifact where there is one, in turns.

    Args:
        session: opened with `keep_eager`.
        images: the pictures of one prompt.
        prompt_tokens: of the text around them.
        rounds: counted ones.
    """
    vlm, asking = session.vlm, session.asking
    assert vlm.tower is not None  # kept
    seen = _Seen(session.tower or vlm.tower)
    vlm.encode_images(images, tower=seen, resolution=asking.resolution, tiling=asking.tiling)
    towers: dict[str, VisionTower] = {EAGER: vlm.tower}
    if session.tower is not None:
        towers[session.contender.name] = session.tower
    candidates = {name: _vision(vlm, tower) for name, tower in towers.items()}
    assert seen.pixels is not None
    return measure_ttft_paired(candidates, vlm.language_model, seen.pixels, prompt_tokens=prompt_tokens, rounds=rounds)


class _Seen:
    """A tower that keeps the pixels it was given."""

    def __init__(self, tower: VisionTower) -> None:
        self.tower = tower
        self.name, self.projected, self.resolution = tower.name, tower.projected, tower.resolution
        self.pixels: Tensor | None = None

    def encode(self, pixels: Tensor) -> Tensor:
        self.pixels = pixels
        return self.tower.encode(pixels)


def _vision(vlm: FastVLM, tower: VisionTower) -> Vision:
    if tower.projected:
        return Vision(tower.encode)
    weight = next(vlm.connector.parameters(), vlm.language_model.get_input_embeddings().weight)
    return Vision(tower.encode, lambda tokens: vlm.connector(tokens.to(weight.device, weight.dtype)))
