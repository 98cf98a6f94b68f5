"""birdtune.evaluation.window_answers: windows answered right, beside the most frequent answer."""

import numpy as np
import pytest

from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.evaluation.metrics import View
from birdtune.evaluation.window_answers import NO_CLASS, majority, window_answers

CLASSES = ("Owl", "Tit")


def answers(scores: list[list[float]], positive: list[list[int]], known: list[list[int]] | None = None) -> dict:
    truth = np.array(positive, bool)
    inside = np.ones_like(truth) if known is None else np.array(known, bool)
    groups = [str(k) for k in range(len(scores))]
    return window_answers(View(np.array(scores), truth, inside, Bootstrap(groups, 50, 1)), CLASSES)


def test_an_answer_is_the_highest_score_from_a_half_on_or_none() -> None:
    found = answers([[0.9, 0.6], [0.4, 0.3], [0.2, 0.5], [0.6, 0.1]], [[1, 0], [0, 0], [0, 0], [0, 0]])
    assert found["accuracy"] == 0.5 and found["windows"] == 4
    assert found["majority"] == NO_CLASS and found["majority_baseline"] == 0.75
    assert found["gain"] == -0.25 and found["gain_ci"][0] < 0


def test_a_window_of_several_classes_is_right_by_any_of_them() -> None:
    found = answers([[0.7, 0.9], [0.9, 0.1]], [[1, 1], [1, 0]])
    assert found["accuracy"] == 1.0 and (found["majority"], found["majority_baseline"]) == ("Owl", 1.0)


def test_classes_of_which_nobody_knows_are_no_answer() -> None:
    scores, positive = [[0.9, 0.6], [0.9, 0.6], [0.9, 0.9]], [[0, 1], [0, 0], [0, 0]]
    found = answers(scores, positive, [[0, 1], [1, 1], [0, 0]])
    assert found["windows"] == 2 and found["accuracy"] == pytest.approx(0.5)
    assert answers(scores, positive, [[0, 0]] * 3)["accuracy"] is None


def test_where_every_window_has_a_class_the_highest_score_answers_however_low() -> None:
    scores = [[0.4, 0.3], [0.1, 0.2]]
    assert answers(scores, [[1, 0], [0, 1]])["accuracy"] == 1.0
    assert answers([*scores, [0.4, 0.3]], [[1, 0], [0, 1], [0, 0]])["accuracy"] == pytest.approx(1 / 3)


def test_the_majority_answer_is_known_before_anything_is_scored() -> None:
    positive, known = np.array([[1, 0], [0, 0], [0, 0], [0, 1]], bool), np.ones((4, 2), bool)
    assert majority(positive, known, CLASSES) == (NO_CLASS, 0.5)
    assert majority(positive, known & [[1], [0], [0], [1]], CLASSES) == ("Owl", 0.5)
