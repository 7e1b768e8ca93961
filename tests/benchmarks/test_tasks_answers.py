"""Short answers: known scores, and what holds for any answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.benchmarks.tasks.answers import (
    anls,
    edit_distance,
    exact_match,
    normalize_answer,
    relaxed_accuracy,
    vqa_accuracy,
)

WORDS = st.sampled_from(["yes", "no", "two", "2", "A cat", "cat", "the cat.", "don't", "dont", "", "1,000", "red/blue"])
TEXTS = st.text("abc ABC'é,.-1", max_size=12)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Yes", "yes"),
        ("The cat", "cat"),
        ("a man and an apple", "man and apple"),
        ("two", "2"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # not in the official table, which restores one apostrophe at a time
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the official table's own slip
        ("let's", "let's"),
        ("yes, it is!", "yes it is"),  # beside a blank a mark is dropped
        ("red/blue", "red blue"),  # between letters it becomes a blank
        ("10,000", "10000"),  # between digits all marks are dropped
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.a.", "usa"),
        (" in\tthe\nkitchen ", "in kitchen"),
        ("t-shirt", "t shirt"),
        ("", ""),
    ],
)
def test_normalization(text: str, wanted: str) -> None:
    assert normalize_answer(text) == wanted


@given(TEXTS)
def test_normalizing_leaves_no_articles_capitals_or_marks(text: str) -> None:
    done = normalize_answer(text)
    assert done == done.lower() and done == " ".join(done.split())
    assert not set(done) & set(';/[]"{}()=+\\_-><@`,?!')
    assert not {"a", "an", "the"} & set(done.split())


def test_vqa_accuracy_known() -> None:
    ten = ["cat"] * 4 + ["dog"] * 3 + ["cow"] * 2 + ["Pig"]
    assert vqa_accuracy("Cat", ten) == pytest.approx(1.0)
    # Leaving out one of the three who said so leaves two: (3 x 2/3 + 7 x 1) / 10.
    assert vqa_accuracy("a dog", ten) == pytest.approx(0.9)
    assert vqa_accuracy("cow", ten) == pytest.approx(0.6)
    assert vqa_accuracy("pig", ten) == pytest.approx(0.3)
    assert vqa_accuracy("horse", ten) == 0
    assert vqa_accuracy("cat", ["cat"] * 3) is None
    assert vqa_accuracy("cat", ["cat"] * 4) == 1


@given(WORDS, st.lists(WORDS, min_size=4, max_size=12))
def test_vqa_accuracy_is_the_leave_one_out_average(answer: str, answers: list[str]) -> None:
    normal = [normalize_answer(other) for other in answers]
    each = []
    for left_out in range(len(normal)):
        others = normal[:left_out] + normal[left_out + 1 :]
        each.append(min(1, others.count(normalize_answer(answer)) / 3))
    assert vqa_accuracy(answer, answers) == pytest.approx(sum(each) / len(each))


def test_exact_match() -> None:
    assert exact_match("The Cat.", ["dog", "cat"]) == 1
    assert exact_match("cats", ["dog", "cat"]) == 0
    assert exact_match("", ["cat"]) == 0


@pytest.mark.parametrize(
    ("answer", "answers", "wanted"),
    [
        ("Hello World", ["hello  world"], 1.0),
        ("coca-cola", ["coca cola"], 1 - 1 / 9),
        ("pepsi", ["coca cola", "pepsy"], 0.8),
        ("ab", ["cd"], 0.0),
        ("ab", ["ac"], 0.0),  # a distance of one half is no longer under the threshold
        ("abc", ["abd"], 1 - 1 / 3),
        ("", ["x"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls(answer: str, answers: list[str], wanted: float) -> None:
    assert anls(answer, answers) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("a", "b", "wanted"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("Saturday", "Sunday", 3)]
)
def test_edit_distance(a: str, b: str, wanted: int) -> None:
    assert edit_distance(a, b) == wanted


@given(TEXTS, TEXTS, TEXTS)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert (edit_distance(a, b) == 0) == (a == b)


@pytest.mark.parametrize(
    ("answer", "answers", "wanted"),
    [
        ("95", ["100"], 1),
        ("94.9", ["100"], 0),
        ("105", ["100"], 1),
        ("-96", ["-100"], 1),
        ("96", ["-100"], 0),
        ("0.12", ["12%"], 1),
        ("12", ["12%"], 0),
        ("12%", ["12.3%"], 1),
        ("Yes", ["yes"], 1),
        ("yes it is", ["yes"], 0),
        ("0", ["0"], 1),
        ("0.01", ["0"], 0),
        ("nan", ["NaN"], 1),
        ("inf", ["5"], 0),
        ("3", ["7", "3"], 1),
    ],
)
def test_relaxed_accuracy(answer: str, answers: list[str], wanted: float) -> None:
    assert relaxed_accuracy(answer, answers) == wanted


@given(TEXTS, st.lists(TEXTS, min_size=4, max_size=10))
def test_scores_lie_between_0_and_1_and_the_order_of_answers_is_nothing(answer: str, answers: list[str]) -> None:
    for metric in (vqa_accuracy, exact_match, anls, relaxed_accuracy):
        score = metric(answer, answers)
        assert score is not None and 0 <= score <= 1
        assert metric(answer, answers[::-1]) == pytest.approx(score)
        assert metric(answers[0], [answers[0]] * 4) == pytest.approx(1)
