"""From rows to figures: each encoder's metrics, and how far it agrees with the eager model on the same items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ArtifactError
from . import answers, captions
from .contenders import Contender
from .items import Item, Task, read_items
from .resample import Figure, Interval, average, mean, paired_difference, share
from .retrieval import nearest, overlap, recall_at, unpacked
from .rows import read_rows

RECALL_AT = (1, 5, 10)
NEIGHBOURS = max(RECALL_AT)
ANOTHER = "choose another --out"


@dataclass(frozen=True)
class Measured:
    """One metric of one encoder.

    Attributes:
        value: over `items`, or None where no item has what it needs.
        items: that count: all encoders have a result, and the data a reference.
        difference: from the eager model's on the same items, with its interval; None for the eager model itself.
    """

    value: float | None
    items: int
    difference: Interval | None = None


@dataclass(frozen=True)
class EncoderReport:
    """One encoder.

    Attributes:
        encoder: as its rows call it; the first of a report is the eager model.
        precision, resolution: what it runs in, and (height, width).
        metrics: name -> figure.
        agreement: name -> share of items on which it agrees with the eager model, labels or none; empty for that.
    """

    encoder: str
    precision: str
    resolution: tuple[int, int]
    metrics: dict[str, Measured]
    agreement: dict[str, Interval]


@dataclass(frozen=True)
class EvalReport:
    """What `evaluate` found.

    Attributes:
        task, data, out: what was asked.
        items: on which all encoders have a result; the figures are theirs.
        failed: (line, encoder, reason) of what has none.
        encoders: the eager model first.
    """

    task: Task
    data: Path
    out: Path
    items: int
    failed: list[tuple[int, str, str]]
    encoders: list[EncoderReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        failed = [{"line": line, "encoder": encoder, "reason": reason} for line, encoder, reason in self.failed]
        return asdict(self) | {"data": str(self.data), "out": str(self.out), "failed": failed}


@dataclass(frozen=True)
class _Metric:
    """Statistics (items, S) of each encoder, NaN where an item has no reference, and the figure of their mean."""

    of: dict[str, np.ndarray]
    figure: Figure = mean


def make_report(task: Task, data: Path, out: Path, contenders: Sequence[Contender]) -> EvalReport:
    """Figures from the rows of `out`, on the items that every encoder has a result for."""
    names = [one.name for one in contenders]
    content = "features" if task == "retrieval" else "token_ids"
    done = [{row["line"] for row in read_rows(out, name) if content in row} for name in names]
    common = set.intersection(*done)
    failed = [(row["line"], name, row["error"]) for name in names for row in read_rows(out, name) if "error" in row]
    items = [item for item in read_items(data, task) if item.line in common]
    make = {"vqa": _vqa, "caption": _caption, "retrieval": _retrieval}[task]
    metrics, agreement = make(items, out, names) if items else ({}, {})
    first = names[0]
    encoders = []
    for one in contenders:
        own = {name: _measured(metric, one.name, first) for name, metric in metrics.items()}
        agrees = {} if one.name == first else agreement.get(one.name, {})
        encoders.append(EncoderReport(one.name, one.precision, one.resolution, own, agrees))
    return EvalReport(task, data, out, len(items), sorted(failed), encoders)


def _measured(metric: _Metric, name: str, first: str) -> Measured:
    known = ~np.isnan(metric.of[first]).any(axis=1)
    if not known.any():
        return Measured(None, 0)
    ours, reference = metric.of[name][known], metric.of[first][known]
    difference = None if name == first else paired_difference(ours, reference, metric.figure)
    return Measured(metric.figure(ours.mean(axis=0)), int(known.sum()), difference)


Agreement = dict[str, dict[str, Interval]]
"""Encoder -> name -> how far it agrees with the first encoder."""


def _said(out: Path, name: str, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """The rows of an encoder in the order of the items."""
    rows = {row["line"]: row for row in read_rows(out, name)}
    return (rows[item.line] for item in items)


def _texts(items: Sequence[Item], out: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], Agreement]:
    """Each encoder's answers, and agreement with the first one's tokens."""
    said: dict[str, list[str]] = {}
    agreement: Agreement = {}
    eager: list[list[int]] = []
    for name in names:
        rows = list(_said(out, name, items))
        said[name] = [row["answer"] for row in rows]
        tokens = [row["token_ids"] for row in rows]
        eager = eager or tokens
        pairs = list(zip(tokens, eager, strict=True))
        agreement[name] = {
            "same_answer": share(np.array([ours == theirs for ours, theirs in pairs])),
            # No token at all is an answer that ended at once, which is a first token too.
            "same_first_token": share(np.array([ours[:1] == theirs[:1] for ours, theirs in pairs])),
        }
    return said, agreement


def _vqa(items: Sequence[Item], out: Path, names: Sequence[str]) -> tuple[dict[str, _Metric], Agreement]:
    said, agreement = _texts(items, out, names)
    scores: dict[str, Callable[[str, Sequence[str]], float | None]] = {
        "vqa_accuracy": answers.vqa_accuracy,
        "anls": answers.anls,
        "relaxed_accuracy": answers.relaxed_accuracy,
        "exact_match": answers.exact_match,
    }

    def column(score: Callable[[str, Sequence[str]], float | None], texts: Sequence[str]) -> np.ndarray:
        values = (
            score(text, item.references) if item.references else None for text, item in zip(texts, items, strict=True)
        )
        return np.array([np.nan if value is None else value for value in values])[:, None]

    return {
        title: _Metric({name: column(score, said[name]) for name in names}) for title, score in scores.items()
    }, agreement


def _caption(items: Sequence[Item], out: Path, names: Sequence[str]) -> tuple[dict[str, _Metric], Agreement]:
    said, agreement = _texts(items, out, names)
    known = np.array([bool(item.references) for item in items])

    def spread(values: Any, width: int = 1) -> np.ndarray:
        """Statistics of the items with references, NaN for the others."""
        result = np.full((len(items), width), np.nan)
        result[known] = np.asarray(values, np.float64).reshape(-1, width)
        return result

    cider, bleu, rouge = (_Metric({}), _Metric({}, captions.bleu_4), _Metric({}))
    for name in names:
        images = [
            captions.captioned(text, item.references)
            for text, item in zip(said[name], items, strict=True)
            if item.references
        ]
        cider.of[name] = spread(captions.cider_d(images))
        bleu.of[name] = spread([captions.bleu_statistics(image) for image in images], 2 * captions.MAX_N + 2)
        rouge.of[name] = spread([captions.rouge_l(image) for image in images])
    return {"cider_d": cider, "bleu_4": bleu, "rouge_l": rouge}, agreement


def _vectors(out: Path, name: str, items: Sequence[Item]) -> np.ndarray:
    """The features of an encoder (items, C); raises ArtifactError if they have several lengths."""
    each = [unpacked(row["features"]) for row in _said(out, name, items)]
    if len({len(vector) for vector in each}) > 1:
        raise ArtifactError(f"{out} holds features of several lengths for {name}; {ANOTHER}")
    return np.stack(each)


def _retrieval(items: Sequence[Item], out: Path, names: Sequence[str]) -> tuple[dict[str, _Metric], Agreement]:
    # An image without a label has one of its own, so that no other can carry it.
    labels = [f"\0{item.line}" if item.label is None else item.label for item in items]
    recall = {k: _Metric({}) for k in RECALL_AT}
    agreement: Agreement = {}
    eager: tuple[np.ndarray, np.ndarray] | None = None
    for name in names:
        vectors = _vectors(out, name, items)
        if eager is not None and vectors.shape != eager[0].shape:
            raise ArtifactError(f"{out} holds features of other lengths for {name} than for {names[0]}; {ANOTHER}")
        found = nearest(vectors, NEIGHBOURS)
        eager = eager or (vectors, found)
        for k, metric in recall.items():
            metric.of[name] = recall_at(found, labels, k)[:, None]
        agreement[name] = {
            "same_nearest": share((found[:, :1] == eager[1][:, :1]).all(axis=1)),
            f"shared_of_{NEIGHBOURS}_nearest": average(overlap(found, eager[1])),
            "cosine": average((vectors.astype(np.float64) * eager[0]).sum(axis=1)),
        }
    return {f"recall_at_{k}": metric for k, metric in recall.items()}, agreement
