"""What a short answer is worth: the metrics of VQA v2, documents and charts.

Each function takes one answer and what people answered, and gives a score in [0, 1]; a data set's figure is the mean.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

VQA_AGREEING = 3
"""Annotators that an answer has to share to count as fully right."""
ANLS_THRESHOLD = 0.5
CHART_TOLERANCE = 0.05

# --- normalization of VQA v2 ---------------------------------------------------------------------
#
# Rules and word lists: `VQAEval` of the official evaluation (github.com/GT-Vision-Lab/VQA).

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


# "somebody'd" loses its apostrophe in the official table, where all others gain one.
_CONTRACTIONS = {short: word for word in _CONTRACTED.split() for short in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}


def normalize_answer(text: str) -> str:
    """An answer as VQA v2 compares it: lower case, digits for number words, no articles, little punctuation.

    The official code leaves answers alone where all annotators agree, so that `Yes` misses ten times `yes`; like its
    users (LLaVA's `convert_vqav2_for_submission`, lmms-eval) this normalizes always.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    in_number = _BETWEEN_DIGITS.search(text) is not None
    kept = text
    for mark in _PUNCTUATION:
        drop = in_number or f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if drop else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", kept).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


# --- metrics -------------------------------------------------------------------------------------


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float | None:
    """VQA accuracy: min(1, annotators who said the same / 3), averaged over leaving out each annotator in turn.

    None where fewer than four people answered: no answer could reach 1 then. VQA v2 and TextVQA have ten.

    Source: Antol et al. 2015 and Goyal et al. 2017; the leave-one-out average is the official evaluation's.
    """
    if len(answers) <= VQA_AGREEING:
        return None
    given = normalize_answer(answer)
    same = Counter(normalize_answer(other) for other in answers)[given]
    # Left out is one of those who said the same, `same` times, or one of the others.
    without_one = same * min(1.0, (same - 1) / VQA_AGREEING) if same else 0.0
    return (without_one + (len(answers) - same) * min(1.0, same / VQA_AGREEING)) / len(answers)


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """1 where the answer is one of `answers`, both normalized as VQA v2 does; as GQA and others score."""
    given = normalize_answer(answer)
    return float(any(given == normalize_answer(other) for other in answers))


def anls(answer: str, answers: Sequence[str], *, threshold: float = ANLS_THRESHOLD) -> float:
    """Normalized Levenshtein similarity with the best of `answers`; 0 where the distance reaches `threshold`.

    Upper and lower case, and runs of blanks, count alike. The mean over questions is ANLS.

    Source: Biten et al. 2019 (ST-VQA, arXiv 1907.00490); DocVQA and InfographicVQA use the same.
    """
    given = _folded(answer)
    best = 0.0
    for other in map(_folded, answers):
        longer = max(len(given), len(other))
        distance = edit_distance(given, other) / longer if longer else 0.0
        best = max(best, 1 - distance if distance < threshold else 0.0)
    return best


def relaxed_accuracy(answer: str, answers: Sequence[str], *, tolerance: float = CHART_TOLERANCE) -> float:
    """1 where a number is within `tolerance` of one of `answers`, relatively, or a text equals one in any case.

    `12%` is 0.12.

    Source: ChartQA (Masry et al. 2022, arXiv 2203.10244), after Methani et al. 2020; percent signs as in
    pix2struct's `relaxed_correctness`.
    """
    return float(any(_relaxed(answer.strip(), other.strip(), tolerance) for other in answers))


def _relaxed(answer: str, target: str, tolerance: float) -> bool:
    given, wanted = _number(answer), _number(target)
    if given is not None and wanted:
        return abs(given - wanted) <= tolerance * abs(wanted)
    return answer.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: fewest characters inserted, removed or replaced."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
