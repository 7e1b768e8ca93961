"""`fvexport ask`: images and questions in, answers out, and where the time goes."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import PromptError
from ..export.export_options import AUTO
from .option_groups import passed_as
from .options import BACKEND_NAMES, Named, json_option, max_pixels_option, verbose_option
from .vlm_options import model_options

if TYPE_CHECKING:
    from ..benchmarks.tasks.model_options import ModelOptions
    from ..benchmarks.tasks.session import Chat, Session
    from ..encoder.fastvlm import Answer, Piece, Sampling


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Questions about the same images, answered one after another.

    Attributes:
        images: what is asked about.
        questions: the first turns.
        chat: take further questions from the terminal.
        stream: print each word as it comes.
        profiled: measure the time to first token.
    """

    images: list[Path]
    questions: list[str]
    chat: bool
    stream: bool
    profiled: bool


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Items of the file `data`, whose answers are added to the file `out`."""

    data: Path
    out: Path


def _asked(
    *, words: tuple[str, ...], then: tuple[str, ...], batch: Path | None, out: Path | None, **how: bool
) -> Conversation | Batch:
    if batch is None:
        if out is not None:
            raise click.UsageError("--out has no effect without --batch", _context())
        images, questions = _arguments(words, how["chat"])
        return Conversation(images=images, questions=[*questions, *then], **how)
    alone = {
        "--then": then, "--chat": how["chat"], "--stream": how["stream"], "--profile": how["profiled"],
        "IMAGE... QUESTION": words,
    }  # fmt: skip
    for name, value in alone.items():
        if value:
            raise click.UsageError(f"{name} and --batch exclude each other", _context())
    if out is None:
        raise click.UsageError("--batch needs --out, the file that answers are added to", _context())
    return Batch(data=batch, out=out)


def _sampling(**given: Any) -> Sampling:
    from ..encoder.fastvlm import Sampling

    return Sampling(**given)


@click.command("ask")
@click.argument("words", metavar="IMAGE... QUESTION", nargs=-1)
@model_options
@click.option("--artifact", type=click.Path(path_type=Path), metavar="DIR", help="What encodes.  [default: PyTorch]")
@click.option(
    "--backend",
    type=Named(BACKEND_NAMES),
    help=f"What runs the artifact.  [default: {AUTO}]",
)
@click.option("--then", "then", metavar="QUESTION", multiple=True, help="Another turn; may be given several times.")
@click.option("--chat", is_flag=True, help="Go on with questions from the terminal, one a line.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, metavar="N", help="Of each answer.")
@click.option(
    "--temperature", type=float, default=0.0, metavar="T", help="Sample; 0 takes the likeliest.  [default: 0]"
)
@click.option("--top-p", type=float, metavar="P", help="Sample from the likeliest tokens that add up to P.")
@click.option("--seed", type=int, metavar="N", help="Of sampling.  [default: another each time]")
@click.option("--stream", is_flag=True, help="Print each word as it comes.")
@click.option("--profile", "profiled", is_flag=True, help="Measure time to first token by part, beside PyTorch's.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON lines instead of arguments: {"image": …, "question": …}.',
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answers of --batch, as JSON lines; a second run goes on.",
)
@max_pixels_option
@json_option
@verbose_option
@passed_as("asked", _asked, ("words", "then", "chat", "stream", "profiled", "batch", "out"))
@passed_as("sampling", _sampling, ("max_new_tokens", "temperature", "top_p", "seed"))
def ask(
    model: ModelOptions, artifact: Path | None, backend: str | None, asked: Conversation | Batch, sampling: Sampling,
    as_json: bool,
) -> None:  # fmt: skip
    """Ask FastVLM about images, with PyTorch's encoder or an artifact in its place.

    The last argument is the question. After the answer stand the encoder's and the language model's time.
    """
    if backend is not None and artifact is None:
        raise click.UsageError("--backend has no effect without --artifact", _context())
    from ..benchmarks.tasks.session import open_session
    from ..core.threads import torch_threads
    from ..encoder.image import load_image
    from .progress_bar import progress_bar

    runs_on = backend or AUTO
    if isinstance(asked, Batch):
        _ask_batch(model, sampling, artifact, runs_on, asked, as_json=as_json)
        return
    if as_json and (asked.stream or asked.chat):
        raise click.UsageError(f"--json and --{'stream' if asked.stream else 'chat'} exclude each other", _context())
    for image in asked.images:
        load_image(image)  # before gigabytes are read
    with torch_threads(model.threads):
        with progress_bar() as progress:
            session = open_session(
                model, sampling, artifact=artifact, backend=runs_on, keep_eager=asked.profiled, progress=progress
            )
        _converse(session, asked, as_json=as_json)


def _arguments(words: tuple[str, ...], chat: bool) -> tuple[list[Path], list[str]]:
    """Images, and the question where there is one."""
    *images, question = words or ("",)
    asked = bool(question) and not os.path.isfile(question)  # noqa: PTH113 - Path.is_file raises for a long question
    if not asked and chat:
        return [Path(word) for word in words], []
    if not asked:
        found = f"the last argument, {question}, is a file" if question else "nothing was given"
        raise click.UsageError(f"The question is missing: {found}", _context())
    if not images:
        raise click.UsageError(f"An image is missing before the question {question!r}", _context())
    return [Path(image) for image in images], [question]


def _converse(session: Session, asked: Conversation, *, as_json: bool) -> None:
    from ..benchmarks.tasks.session import Chat, profile
    from . import printing, render_answers

    images, questions = asked.images, asked.questions
    talk = Chat(session, images)
    answers: list[Answer] = []
    for question in questions:
        if answers and not as_json:
            printing.write_text(f"\n> {question}")
        answers.append(_one(session, talk, question, stream=asked.stream, quiet=as_json))
    while asked.chat and (line := _next_question()) is not None:
        try:
            answers.append(_one(session, talk, line, stream=asked.stream, quiet=as_json))
        except PromptError as error:
            printing.error(str(error))
    measured = profile(session, images, answers[0].prompt_tokens) if asked.profiled and answers else None
    if as_json:
        printing.print_json(render_answers.conversation(session, images, questions, answers, measured))
    elif measured:
        render_answers.profile(measured)


def _one(session: Session, talk: Chat, question: str, *, stream: bool, quiet: bool) -> Answer:
    """Asks, and shows the answer unless `quiet`."""
    from . import printing, render_answers

    def show(piece: Piece) -> None:
        printing.write_text(piece.text, end="")

    answer = talk.ask(question, show if stream else None)
    if not quiet:
        printing.write_text("" if stream else answer.text)
        render_answers.timings(session, answer)
    return answer


def _next_question() -> str | None:
    """A line of the terminal that holds anything, or None at its end."""
    from . import printing

    while True:
        if sys.stdin.isatty():
            printing.write_text("\n> ", end="")
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip():
            return line.strip()


def _ask_batch(
    model: ModelOptions, sampling: Sampling, artifact: Path | None, backend: str, asked: Batch, *, as_json: bool
) -> None:
    from ..benchmarks.tasks.session import answer_batch
    from . import printing, render_answers
    from .progress_bar import progress_bar

    data, out = asked.data, asked.out
    with progress_bar() as progress:
        report = answer_batch(model, sampling, data, out, artifact=artifact, backend=backend, progress=progress)
    if as_json:
        printing.print_json(report.to_dict())
    else:
        render_answers.batch_report(report)
    for line, reason in report.failed:
        printing.error(f"{data}, line {line}: {reason}")
    if report.failed:
        total = len(report.failed) + report.answered
        printing.error(
            f"{len(report.failed)} of {total} items failed; mend them and start again: {out} keeps the others"
        )
        _context().exit(1)


def _context() -> click.Context:
    return click.get_current_context()
