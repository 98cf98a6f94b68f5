"""birdtune.evaluation.event_metrics: detections beside annotations, by hand and as sed_eval has it."""

from typing import Any

import numpy as np
import pytest

from birdtune.evaluation.event_metrics import (
    Counts,
    Event,
    by_collar,
    by_overlap,
    event_counts,
    segment_counts,
    summary,
)

CLASSES = ("a", "b", "c")
LENGTH_S = 60.0
# sed_eval 0.2.1 on `made_events(seed)`: segments of 1 s, and events with a collar of 0.2 s and half of the length.
# F1, precision, recall, error rate, and F1 of each class.
SED_EVAL = {
    (0, "segment"): (0.668790, 0.709459, 0.632530, 0.530120, 0.671429, 0.657534, 0.673267),
    (0, "event"): (0.412371, 0.425532, 0.400000, 1.020000, 0.473684, 0.461538, 0.303030),
    (1, "segment"): (0.723926, 0.737500, 0.710843, 0.451807, 0.722222, 0.752475, 0.700855),
    (1, "event"): (0.545455, 0.526316, 0.566038, 0.830189, 0.512821, 0.606061, 0.526316),
    (2, "segment"): (0.654450, 0.654450, 0.654450, 0.575916, 0.687023, 0.631579, 0.642336),
    (2, "event"): (0.545455, 0.537313, 0.553846, 0.830769, 0.533333, 0.619048, 0.488889),
}


def made_events(seed: int) -> list[tuple[list[Event], list[Event]]]:
    """Events of six recordings, annotated and detected: most a little moved, some of another class, some made up."""
    random, made = np.random.default_rng(seed), []
    for _ in range(6):
        starts = random.uniform(0, 55, random.integers(3, 15))
        annotated = [
            Event(int(random.integers(3)), round(float(s), 2), round(float(s + random.uniform(0.4, 4)), 2))
            for s in starts
        ]
        detected = []
        for column, start_s, end_s in annotated:
            if random.random() < 0.75:
                given = column if random.random() < 0.8 else int(random.integers(3))
                begin_s = round(max(0.0, start_s + float(random.normal(0, 0.15))), 2)
                detected.append(Event(given, begin_s, round(end_s + float(random.normal(0, 0.3)), 2)))
        starts = random.uniform(0, 55, random.integers(0, 5))
        detected += [Event(int(random.integers(3)), round(float(s), 2), round(float(s) + 1.5, 2)) for s in starts]
        made.append((annotated, detected))
    return made


@pytest.mark.parametrize(("seed", "kind"), SED_EVAL)
def test_the_figures_are_those_of_sed_eval(seed: int, kind: str) -> None:
    counts = [
        event_counts(annotated, detected, 3, by_collar(0.2, 0.5))
        if kind == "event" else segment_counts(annotated, detected, 3, LENGTH_S, 1.0)
        for annotated, detected in made_events(seed)
    ]  # fmt: skip
    found = summary(counts, [str(k) for k in range(6)], CLASSES, n_bootstrap=20, seed=0)
    of_classes = [row["f1"] for row in found["per_class"]]
    figures = [found["f1"], found["precision"], found["recall"], found["error_rate"], *of_classes]
    assert figures == pytest.approx(SED_EVAL[seed, kind], abs=2e-6)


def counted(annotated: list[tuple[int, float, float]], detected: list[tuple[int, float, float]], **more: Any) -> Any:
    found = event_counts([Event(*one) for one in annotated], [Event(*one) for one in detected], 2, by_overlap(**more))
    return found.right.tolist(), found.false.tolist(), found.missed.tolist(), found.substituted


def test_events_match_by_their_overlap_in_time_and_by_class() -> None:
    assert counted([(0, 1, 3)], [(0, 2, 4)]) == ([1, 0], [0, 0], [0, 0], 0)  # 1 s of 3 s
    assert counted([(0, 1, 3)], [(0, 2, 4)], least=0.34) == ([0, 0], [1, 0], [1, 0], 0)
    assert counted([(0, 1, 3)], [(1, 1, 3)]) == ([0, 0], [0, 1], [1, 0], 1)
    assert counted([(0, 1, 3)], [(0, 3, 5)], least=0.0) == ([0, 0], [1, 0], [1, 0], 0)
    assert counted([], [(1, 0, 1)]) == ([0, 0], [0, 1], [0, 0], 0)
    assert counted([(0, 0, 1)], []) == ([0, 0], [0, 0], [1, 0], 0)


def test_each_event_matches_one_other_at_most_and_as_many_as_possible_do() -> None:
    # The long detection fits both, the short one the first alone.
    assert counted([(0, 0, 4), (0, 5, 9)], [(0, 1, 8), (0, 0, 4)]) == ([2, 0], [0, 0], [0, 0], 0)
    assert counted([(0, 0, 4)], [(0, 0, 4), (0, 0, 4)]) == ([1, 0], [1, 0], [0, 0], 0)


def test_segments_count_where_a_class_is_there_for_any_part_of_one() -> None:
    found = segment_counts([Event(0, 0.5, 2.0), Event(1, 4, 5)], [Event(0, 1.0, 3.1), Event(0, 4.5, 5.0)], 2, 6.0)
    assert (found.right.tolist(), found.false.tolist(), found.missed.tolist()) == ([1, 0], [3, 0], [1, 1])
    assert (found.substituted, found.errors) == (1, 4)
    assert segment_counts([], [], 2, 0.0).right.tolist() == [0, 0]


def test_figures_that_nothing_says_anything_of_are_none_and_intervals_rest_on_sources() -> None:
    none = Counts(*[np.zeros(2, np.int64)] * 3, 0)
    found = summary([none], ["x"], ("a", "b"), n_bootstrap=20, seed=0)
    assert found["f1"] is found["error_rate"] is found["macro_f1"] is found["f1_ci"] is None
    good = Counts(np.array([4, 0]), np.array([0, 1]), np.array([0, 0]), 0)
    poor = Counts(np.array([1, 0]), np.array([0, 0]), np.array([3, 0]), 0)
    found = summary([good, poor, good, poor], ["w", "x", "y", "z"], ("a", "b"), n_bootstrap=200, seed=0)
    assert (found["precision"], found["recall"]) == (10 / 12, 10 / 16)
    assert found["f1_ci"][0] < found["f1"] == 20 / 28 < found["f1_ci"][1]
    assert found["macro_f1"] == pytest.approx(20 / 26) and found["per_class"][1]["recall"] is None
    one = summary([good, poor], ["w", "w"], ("a", "b"), n_bootstrap=200, seed=0)
    assert one["f1_ci"] is None
