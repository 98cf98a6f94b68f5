"""birdtune.evaluation.mistakes: which recordings are taken for what, and where to listen."""

from typing import Any

import numpy as np

from birdtune.evaluation.mistakes import mistakes, peaks

CLASSES = ("Apus", "Bubo", "noise")
NAMES = {"recordings": ["a", "b", "c", "d"], "groups": ["s1", "s2", "s3", "s3"], "classes": CLASSES}


def found(scores: Any, positive: Any, known: Any = None, **more: Any) -> list[tuple[Any, ...]]:
    """The columns that tell rows apart."""
    scores, positive = np.array(scores, float), np.array(positive, bool)
    peak_s = np.arange(scores.size, dtype=float).reshape(scores.shape)
    known = np.ones_like(positive) if known is None else np.array(known, bool)
    rows = mistakes(scores, peak_s, positive, known, **NAMES, **more)
    assert all(row["source_recording"] == NAMES["groups"]["abcd".index(row["recording"])] for row in rows)
    assert all(row["predicted_score"] == scores["abcd".index(row["recording"])].max() for row in rows)
    return [(row["recording"], row["kind"], row["class"], row["score"], row["start_s"]) for row in rows]


def test_of_recordings_with_one_class_an_error_is_one_of_two_classes_and_the_clearest_come_first() -> None:
    scores = [[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0]]
    positive = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found(scores, positive, several=False) == [
        ("d", "false positive", "Apus", 0.9, 9.0), ("c", "false positive", "noise", 0.8, 8.0),
        ("b", "false positive", "Apus", 0.4, 3.0), ("d", "false negative", "noise", 0.0, 11.0),
        ("c", "false negative", "Bubo", 0.1, 7.0), ("b", "false negative", "Bubo", 0.3, 4.0),
    ]  # fmt: skip
    # What is never a decision is neither taken for one nor missed.
    kept = found(scores, positive, several=False, negative={"noise"})
    assert [row[:3] for row in kept] == [
        ("d", "false positive", "Apus"), ("b", "false positive", "Apus"),
        ("c", "false negative", "Bubo"), ("b", "false negative", "Bubo"),
    ]  # fmt: skip


def test_of_recordings_with_several_classes_each_is_asked_for_by_itself_where_it_is_known() -> None:
    scores = [[0.9, 0.6, 0.1], [0.2, 0.4, 0.1], [0.5, 0.7, 0.1], [0.0, 0.9, 0.0]]
    positive = [[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]
    known = [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1]]
    assert found(scores, positive, known, several=True) == [("b", "false negative", "Apus", 0.2, 3.0)]
    assert found(scores, positive, several=True)[0][:3] == ("d", "false positive", "Bubo")


def test_a_peak_is_where_the_highest_window_of_the_recording_begins_the_first_of_equals() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.9, 0.0], [0.3, 0.4], [0.3, 0.5]])
    recording, start_s = np.array([0, 0, 1, 1, 1]), np.array([0.0, 0.5, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(peaks(scores, recording, start_s), [[0.5, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(peaks(scores[3:], recording[3:] - 1, start_s[3:]), [[0.5, 1.0]])
