"""birdtune.evaluation.leak: made scores of test recordings, of which some sound like training recordings."""

from typing import Any

import numpy as np
import pytest

from birdtune.evaluation.diagnostics import MILD, STRONG
from birdtune.evaluation.leak import diagnose, measure
from birdtune.evaluation.scores import Scores, one_hot
from birdtune.reporting.verdict import all_diagnostics, verdict

TRAINED: dict[str, Any] = {"best_epoch": None, "epochs": []}


def leak(right: list[bool], n_near: int) -> dict[str, Any]:
    """Each recording its own source, of two classes in turn; the first `n_near` sound like a training recording."""
    n = len(right)
    labels = np.arange(n) % 2
    answers = np.where(right, labels, 1 - labels)
    names = tuple(f"A/{k}.wav" for k in range(n))
    scores = Scores(
        classes=("A", "B"), recordings=names, groups=names, targets=one_hot(labels, 2),
        window_scores=np.eye(2, dtype=np.float32)[answers], window_recording=np.arange(n),
        window_start_s=np.zeros(n, np.float32),
    )  # fmt: skip
    near = {name: (f"A/train{k}.wav", 20.0 - k) for k, name in enumerate(names[:n_near])}
    return measure(scores, near, compared=n, n_bootstrap=500, seed=0)


def test_near_and_far_recordings_are_scored_apart() -> None:
    found = leak([True] * 20 + [True, False] * 20, 20)
    assert (found["near"], found["near_accuracy"], found["far"], found["far_accuracy"]) == (20, 1.0, 40, 0.5)
    assert found["far_accuracy_ci"][0] < 0.5 < found["far_accuracy_ci"][1]
    assert found["difference_ci"][0] > 0.3
    assert found["pairs"][0] == {"recording": "A/0.wav", "nearest": "A/train0.wav", "score": 20.0}


@pytest.mark.parametrize(
    ("right", "n_near", "severity"),
    [
        ([True] * 60, 0, None),
        ([True] * 60, 2, None),
        ([True] * 60, 20, MILD),  # the others do as well
        ([True] * 20 + [True, False] * 20, 20, STRONG),  # the near ones carry the accuracy
        ([True] * 40 + [True] * 20, 40, STRONG),  # most of the test
        ([True] * 60, 60, STRONG),
        ([False] * 20 + [True] * 40, 20, MILD),
    ],
)
def test_the_warning_is_as_strong_as_what_the_leak_carries(
    right: list[bool], n_near: int, severity: str | None
) -> None:
    found = list(diagnose(leak(right, n_near)))
    assert [each.severity for each in found] == ([severity] if severity else [])
    if found:
        assert found[0].code == "test-leak" and f"{n_near} of 60" in found[0].text
        assert "A/train0.wav" in found[0].text


def test_a_strong_one_makes_the_verdict_poor_and_says_the_accuracy_without_them() -> None:
    found = all_diagnostics(TRAINED, {"leak": leak([True] * 20 + [True, False] * 20, 20)})
    (found,) = [each for each in found if each.code == "test-leak"]
    assert "50 %" in found.text and "40 other test recordings" in found.text
    assert verdict({"test": {"n_sources": 60}}, [found]).level == "poor"


def test_nothing_is_said_where_nothing_was_compared() -> None:
    assert list(diagnose(None)) == []
