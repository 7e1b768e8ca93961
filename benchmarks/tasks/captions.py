"""What a caption is worth against those that people wrote: CIDEr-D, BLEU-4 and ROUGE-L, as COCO scores them.

Each gives a row of statistics per image and a function of their mean, so that a figure can be resampled by image.
Words come from a regular expression that follows the Penn Treebank's rules as far as captions need them; COCO's own
tokenizer is a Java program, so figures compare between your runs, and with published ones but for rare words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_N = 4
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2

_CLITIC = re.compile(r"(n't|'(?:s|m|d|re|ve|ll))\b")
_WORD = re.compile(r"n't|'(?:s|m|d|re|ve|ll)\b|\w+(?:[-.,:/]\w+)*")

Ngrams = Counter[tuple[str, ...]]


def words(caption: str) -> list[str]:
    """A caption's words in lower case, without punctuation: `It isn't well-kept!` -> it is n't well-kept."""
    return _WORD.findall(_CLITIC.sub(r" \1", caption.lower().replace("’", "'")))


@dataclass(frozen=True)
class Captioned:
    """One image: the words of its caption, and of what people wrote."""

    given: list[str]
    references: list[list[str]]


def captioned(caption: str, references: Sequence[str]) -> Captioned:
    """Splits a caption and its references into words."""
    return Captioned(words(caption), [words(text) for text in references])


# --- CIDEr-D -------------------------------------------------------------------------------------


def cider_d(images: Sequence[Captioned]) -> np.ndarray:
    """CIDEr-D of each image, (images,), in [0, 10]; the figure is the mean.

    How rare an n-gram is, is counted over the references of the images given. One image alone has only n-grams that
    all images have, and scores 0.

    Source: Vedantam et al. 2015 (arXiv 1411.5726): clipped counts, a Gaussian penalty of the difference in
    length (sigma 6), 10 x the mean over n = 1 … 4 and over references.
    """
    found: Counter[tuple[str, ...]] = Counter()
    for image in images:
        found.update({ngram for reference in image.references for ngram in _ngrams(reference)})
    rarity = {ngram: math.log(len(images) / count) for ngram, count in found.items()}
    unseen = math.log(max(1, len(images)))
    return np.array([_cider_of(image, rarity, unseen) for image in images])


def _cider_of(image: Captioned, rarity: dict[tuple[str, ...], float], unseen: float) -> float:
    def weighted(text: list[str]) -> tuple[list[dict[tuple[str, ...], float]], list[float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for ngram, count in _ngrams(text).items():
            vectors[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
        return vectors, [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]

    given, norms = weighted(image.given)
    total = 0.0
    for reference in image.references:
        wanted, wanted_norms = weighted(reference)
        # COCO's code counts bigrams as the length; the difference is the same for captions of a word or more.
        gap = max(0, len(image.given) - 1) - max(0, len(reference) - 1)
        likeness = 0.0
        for mine, theirs, a, b in zip(given, wanted, norms, wanted_norms, strict=True):
            if a and b:
                shared = sum(min(value, theirs[n]) * theirs[n] for n, value in mine.items() if n in theirs)
                likeness += shared / (a * b)
        total += likeness / MAX_N * math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))
    return 10 * total / len(image.references)


# --- BLEU-4 --------------------------------------------------------------------------------------


def bleu_statistics(image: Captioned) -> list[int]:
    """What BLEU adds up over images: matches of n = 1 … 4, n-grams of n = 1 … 4, words, words of the nearest reference.

    Source: Papineni et al. 2002; of two references equally near in length the shorter counts.
    """
    most: Ngrams = Counter()
    for reference in image.references:
        most |= _ngrams(reference)
    matches, totals = [0] * MAX_N, [0] * MAX_N
    for ngram, count in _ngrams(image.given).items():
        matches[len(ngram) - 1] += min(count, most[ngram])
        totals[len(ngram) - 1] += count
    length = len(image.given)
    nearest = min((len(reference) for reference in image.references), key=lambda n: (abs(n - length), n))
    return [*matches, *totals, length, nearest]


def bleu_4(statistics: np.ndarray) -> float:
    """BLEU-4 in [0, 1] from summed or mean statistics (10,); without smoothing, as COCO reports it."""
    matches, totals, (length, nearest) = np.split(np.asarray(statistics, np.float64), [MAX_N, 2 * MAX_N])
    if not (matches.all() and totals.all()):
        return 0.0
    brevity = min(0.0, 1 - nearest / length)
    return float(np.exp(brevity + np.log(matches / totals).mean()))


# --- ROUGE-L -------------------------------------------------------------------------------------


def rouge_l(image: Captioned) -> float:
    """ROUGE-L of one image in [0, 1]: F-measure (beta 1.2) of the longest common subsequence.

    Precision and recall are the best over references, each for itself, as in COCO's evaluation.

    Source: Lin 2004, eq. 2 to 4.
    """
    common = [(common_subsequence(image.given, reference), len(reference)) for reference in image.references]
    precision = max((length / len(image.given) for length, _ in common), default=0.0) if image.given else 0.0
    recall = max((length / size for length, size in common if size), default=0.0)
    if not (precision and recall):
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for left in a:
        diagonal = 0
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if left == right else max(row[j], row[j - 1])
    return row[-1]


def _ngrams(text: Sequence[str]) -> Ngrams:
    return Counter(tuple(text[at : at + n]) for n in range(1, MAX_N + 1) for at in range(len(text) - n + 1))
