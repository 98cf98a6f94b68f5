"""birdtune.evaluation.event_ranking: average precision of detections, and recall at false alarms an hour."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from birdtune.evaluation.event_metrics import Event, by_overlap, event_counts
from birdtune.evaluation.event_ranking import rank, ranking

FITS = by_overlap()


def test_at_each_score_as_many_events_match_as_can() -> None:
    generator = np.random.default_rng(0)

    def drawn(n: int) -> list[Event]:
        starts, lengths = generator.uniform(0, 12, n), generator.uniform(0.5, 3, n)
        return [Event(int(generator.integers(2)), s, s + length) for s, length in zip(starts, lengths, strict=True)]

    for _ in range(20):
        annotated, detected = drawn(12), drawn(14)
        scores = generator.permutation(14) / 14
        found = rank([(annotated, detected)], [scores.tolist()], 2, FITS)
        assert (np.diff(found.score) < 0).all()
        for n in range(1, 15):
            listed = [detected[k] for k in np.argsort(-scores)[:n]]
            assert found.right[:n].sum() == event_counts(annotated, listed, 2, FITS).right.sum()


def test_average_precision_is_that_of_the_list_with_what_was_missed_never_recalled() -> None:
    annotated = [Event(0, k, k + 1) for k in range(0, 20, 2)]
    found, scores = [*annotated[:8], *(Event(0, k, k + 1) for k in range(31, 40, 2))], np.arange(13) % 5 / 5
    made = ranking(rank([(annotated, found)], [scores.tolist()], 2, FITS), ("a", "b"), ["x"], hours=2.0,
                   rates=(0.5, 1.0, 9.0), n_bootstrap=0, seed=0)  # fmt: skip
    of_listed = average_precision_score([1] * 8 + [0] * 5, scores)
    assert made["per_class"][0]["ap"] == pytest.approx(of_listed * 8 / 10) == made["macro_ap"]
    assert made["per_class"][1] == {"class": "b", "ap": None, "recall_at": []}
    # Of two hours: one false alarm, two, and all five.
    assert [(row["recall"], row["score"], row["whole_list"]) for row in made["recall_at"]] == [
        (0.1, 0.8, False), (0.2, 0.6, False), (0.8, 0.0, True),
    ]  # fmt: skip


def test_the_interval_is_over_source_recordings_and_nothing_is_no_figure() -> None:
    right, wrong = ([Event(0, 0, 1)], [Event(0, 0, 1)]), ([Event(0, 0, 1)], [Event(0, 5, 6)])
    ranked = rank([right, wrong, right, wrong], [[0.9]] * 4, 1, FITS)
    drawing = {"hours": None, "rates": (1.0,), "n_bootstrap": 200, "seed": 1}
    wide = ranking(ranked, ("a",), ["x", "y", "x", "y"], **drawing)["macro_ap_ci"]
    narrow = ranking(ranked, ("a",), ["1", "2", "3", "4"], **drawing)["macro_ap_ci"]
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
    none = ranking(rank([([Event(0, 0, 1)], [])], [[]], 1, FITS), ("a",), ["x"], **{**drawing, "hours": 1.0})
    assert (none["macro_ap"], none["recall_at"][0]["recall"]) == (0.0, 0.0)
