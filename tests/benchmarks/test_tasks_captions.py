"""Captions: the figures of COCO's own evaluation (pycocoevalcap 1.2 with its Java tokenizer) on the same texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.benchmarks.tasks.captions import (
    bleu_4,
    bleu_statistics,
    captioned,
    cider_d,
    common_subsequence,
    rouge_l,
    words,
)

REFERENCES = [
    ["A man riding a wave on top of a surfboard.", "A surfer rides a large wave in the ocean.",
     "The man is surfing on a wave"],
    ["A black-and-white cat sits on a wooden bench.", "There's a cat that doesn't move, on a bench!",
     "A cat resting outdoors"],
    ["Two dogs play with a red ball in the park.", "Dogs playing: one red ball, two dogs.",
     "A couple of dogs are running after a ball"],
    ["A kitchen with a stove, a sink and 2.5 metres of counter space.", "An empty kitchen.",
     "The kitchen isn't large"],
    ["A train stops at the station (platform 9).", "People wait for a train at the station",
     "A long train next to a platform"],
]  # fmt: skip
GIVEN = [
    "A man surfing on a wave in the ocean.",
    "A cat is sitting on a bench and it doesn't move.",
    "Two dogs playing with a ball",
    "A large kitchen with a sink, a stove and a stove.",
    "people people people people",
]
# Written by pycocoevalcap 1.2: Cider, Bleu(4) and Rouge.
CIDER = [3.0373618332658237, 1.4211003443596895, 1.9595382020329288, 0.9782772538323725, 0.06799526372789201]
BLEU_4 = 0.25569667433879484
ROUGE = [0.6939704209328782, 0.5187074829931972, 0.5980392156862745, 0.4925975773889637, 0.15721649484536082]

IMAGES = [captioned(text, references) for text, references in zip(GIVEN, REFERENCES, strict=True)]
SENTENCES = st.lists(st.sampled_from(words("a cat dog sits on the red mat")), max_size=9).map(" ".join)
CAPTIONED = st.tuples(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=4))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("There's a cat that doesn't move, on a bench!", "there 's a cat that does n't move on a bench"),
        ("A black-and-white cat", "a black-and-white cat"),
        ("Dogs playing: one red ball.", "dogs playing one red ball"),
        ("2.5 metres", "2.5 metres"),
        ("They’re here", "they 're here"),
        ("... -- !?", ""),
    ],
)
def test_words(text: str, wanted: str) -> None:
    assert words(text) == wanted.split()


def test_the_figures_of_cocos_evaluation() -> None:
    assert cider_d(IMAGES) == pytest.approx(CIDER, abs=1e-12)
    assert bleu_4(np.sum([bleu_statistics(image) for image in IMAGES], axis=0)) == pytest.approx(BLEU_4, rel=1e-9)
    assert [rouge_l(image) for image in IMAGES] == pytest.approx(ROUGE, abs=1e-12)


def test_a_caption_word_for_word_scores_most() -> None:
    texts = ["one red bus stops here", "two dogs chase a ball", "rain falls on an old bridge"]
    images = [captioned(text, [text]) for text in texts]
    assert cider_d(images) == pytest.approx([10, 10, 10])
    assert bleu_4(np.sum([bleu_statistics(image) for image in images], axis=0)) == pytest.approx(1)
    assert [rouge_l(image) for image in images] == pytest.approx([1, 1, 1])


def test_nothing_said() -> None:
    image = captioned("", ["a cat"])
    assert cider_d([image, captioned("a dog", ["a dog"])])[0] == 0
    assert bleu_4(np.array(bleu_statistics(image))) == 0
    assert rouge_l(image) == 0
    assert cider_d([captioned("a cat", ["a cat"])]).tolist() == [0]  # one image tells nothing about rarity
    assert cider_d([]).tolist() == []


def test_bleu_takes_the_nearest_reference_and_the_shorter_of_two() -> None:
    assert bleu_statistics(captioned("a b c d", ["a b c d e f", "a b"]))[-2:] == [4, 2]
    assert bleu_statistics(captioned("a b c d", ["a b c d e f", "a b c d e"]))[-1] == 5


def test_longest_common_subsequence() -> None:
    assert common_subsequence(words("police killed the gunman"), words("police kill the gunman")) == 3  # Lin 2004
    assert common_subsequence(words("the gunman kill police"), words("police killed the gunman")) == 2


@given(st.lists(CAPTIONED, min_size=2, max_size=5))
def test_ranges_and_order(drawn: list[tuple[str, list[str]]]) -> None:
    images = [captioned(text, references) for text, references in drawn]
    turned = [captioned(text, references[::-1]) for text, references in drawn]
    scores = cider_d(images)
    assert ((scores >= 0) & (scores <= 10 + 1e-9)).all()
    assert cider_d(turned) == pytest.approx(scores)
    assert cider_d(images[::-1])[::-1] == pytest.approx(scores)
    for image in images:
        assert 0 <= rouge_l(image) <= 1 + 1e-12
        assert 0 <= bleu_4(np.array(bleu_statistics(image))) <= 1 + 1e-12


@given(SENTENCES, SENTENCES)
def test_bleu_scales_away(a: str, b: str) -> None:
    """Sums and means of statistics give one figure: resampling may use either."""
    statistics = np.array([bleu_statistics(captioned(a, [b, a])), bleu_statistics(captioned(b, [a]))], np.float64)
    assert bleu_4(statistics.sum(axis=0)) == pytest.approx(bleu_4(statistics.mean(axis=0)))
