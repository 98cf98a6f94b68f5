"""birdtune.evaluation.paired: which of two is better, on the same recordings."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.evaluation.paired import difference, figures

LABELS = np.arange(120) % 3
TARGETS = np.eye(3)[LABELS] > 0
SOURCES = tuple(f"source {n // 4}" for n in range(120))


def scores(wrong: Any) -> Any:
    said = np.where(np.isin(np.arange(120), wrong), (LABELS + 1) % 3, LABELS)
    return np.eye(3)[said] * 0.8 + np.random.default_rng(1).uniform(0, 0.1, (120, 3))


def test_the_score_is_the_mean_of_accuracy_and_average_precision() -> None:
    table = scores(range(0, 120, 10))
    found = figures(table, TARGETS, Bootstrap(SOURCES, 200, 1))
    assert found.accuracy == pytest.approx(0.9)
    assert found.macro_ap == pytest.approx(
        np.mean([average_precision_score(c == LABELS, table[:, c]) for c in range(3)])
    )
    assert found.score == pytest.approx((found.accuracy + found.macro_ap) / 2)
    assert found.low is not None and found.high is not None and found.low < 0.9 < found.high


def test_a_difference_comes_with_what_luck_would_make_of_it() -> None:
    draws = Bootstrap(SOURCES, 400, 1)
    good, near, far = scores([]), scores(range(0, 12, 10)), scores(range(0, 120, 3))
    for first, second, sure in ((good, far, True), (good, near, False), (good, good, False)):
        found = difference([first], [second], TARGETS, draws)
        assert found["low"] <= found["score"] <= found["high"]
        assert (found["low"] > 0) == sure
        back = difference([second], [first], TARGETS, draws)
        assert back["score"] == pytest.approx(-found["score"]) and back["high"] == pytest.approx(
            -found["low"]
        )


def test_evaluated_several_times_the_means_are_compared() -> None:
    draws = Bootstrap(SOURCES, 200, 1)
    one, other = scores([]), scores(range(0, 120, 4))
    single = difference([one], [other], TARGETS, draws)["score"]
    assert difference([one, other], [other, other], TARGETS, draws)["score"] == pytest.approx(single / 2)
