"""What `ask` and `eval` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..benchmarks.tasks.eval_report import EvalReport, Measured
from ..benchmarks.tasks.resample import Interval
from ..benchmarks.tasks.session import BatchReport, Session
from ..benchmarks.tasks.ttft import Ttft
from ..encoder.fastvlm import Answer
from .printing import facts, table, write_line

STOPS = {"length": "stopped at --max-new-tokens", "context": "stopped where the context is full"}


def timings(session: Session, answer: Answer) -> None:
    """One line after an answer."""
    took, (height, width) = answer.timings, session.asking.resolution
    speed = f"{took.tokens_per_s:.1f} tokens/s, " if took.tokens_per_s else ""
    stop = f", {STOPS[answer.stop]}" if answer.stop in STOPS else ""
    write_line(
        f"[encoder {took.encoder_ms:.0f} ms, prefill {took.prefill_ms:.0f} ms, TTFT {took.ttft_ms:.0f} ms, {speed}"
        f"{answer.visual_tokens} visual tokens; {session.contender.name} at {height}x{width}{stop}]"
    )


def conversation(
    session: Session, images: Sequence[Path], questions: Sequence[str], given: Sequence[Answer],
    measured: Mapping[str, Ttft] | None,
) -> dict[str, Any]:  # fmt: skip
    """A conversation for JSON."""
    found: dict[str, Any] = {
        "checkpoint": session.vlm.info.source,
        "encoder": session.contender.name,
        "precision": session.contender.precision,
        "resolution": list(session.asking.resolution),
        "images": [str(image).encode("utf-8", "backslashreplace").decode() for image in images],
        "turns": [{"question": question} | answer.to_dict() for question, answer in zip(questions, given, strict=True)],
    }
    if measured is not None:
        found["profile"] = {name: parts.to_dict() for name, parts in measured.items()}
    return found


def profile(measured: Mapping[str, Ttft]) -> None:
    """Time to first token by part, one column for each encoder."""
    each = list(measured.values())
    first = each[0]
    rows = [
        ("encoder, ms", *(f"{one.encoder_ms:.1f}" for one in each)),
        ("connector, ms", *(f"{one.connector_ms:.1f}" for one in each)),
        ("prefill, ms", *(f"{one.prefill_ms:.1f}" for one in each)),
        ("TTFT, ms", *(f"{one.ttft_ms:.1f}" for one in each)),
        ("10th to 90th percentile", *(f"{one.ttft_p10_ms:.1f} to {one.ttft_p90_ms:.1f}" for one in each)),
        ("eager / this", *(f"{first.ttft_ms / one.ttft_ms:.2f}" for one in each)),
    ]
    title = f"time to first token: {first.visual_tokens} visual and {first.prompt_tokens} text tokens"
    table((f"median of {first.rounds}", *measured), rows, title=title)


def batch_report(report: BatchReport) -> None:
    """What was written."""
    stood = f", {report.kept} of them before" if report.kept else ""
    facts([("answered", f"{report.answered}{stood}"), ("failed", len(report.failed)), ("file", report.out)])


TITLES = {
    "vqa_accuracy": "VQA", "anls": "ANLS", "relaxed_accuracy": "relaxed", "exact_match": "exact", "cider_d": "CIDEr-D",
    "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10",
    "same_answer": "same answer", "same_first_token": "same first token", "same_nearest": "same nearest image",
    "shared_of_10_nearest": "shared of 10 nearest", "cosine": "cosine of features",
}  # fmt: skip
"""Names of figures as tables show them."""


def eval_report(report: EvalReport) -> None:
    """Metrics by encoder, then what changes with each artifact, with 95 % intervals."""
    first, *others = report.encoders
    names = list(first.metrics)
    rows = [
        (one.encoder, one.precision, "x".join(map(str, one.resolution)), *(_value(one.metrics[n]) for n in names))
        for one in report.encoders
    ]
    header = (f"{report.items} items", "", "", *(TITLES[name] for name in names))
    table(header, rows, title=report.task, numbers_from=3)
    for one in others:
        compared = [(TITLES[name], *_interval(value)) for name, value in one.agreement.items()]
        compared += [
            (f"{TITLES[name]}, difference", *_interval(found.difference, "+"))
            for name, found in one.metrics.items()
            if found.difference is not None
        ]
        table(("against eager", "", "95 % interval"), compared, title=one.encoder)
    facts([("results", report.out)])


def _value(found: Measured) -> str:
    return "no labels" if found.value is None else f"{found.value:.4f}"


def _interval(found: Interval, sign: str = "") -> tuple[str, str]:
    value, low, high = (f"{x:{sign}.4f}" for x in (found.value, found.low, found.high))
    return value, f"{low} to {high}"
