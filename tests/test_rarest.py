"""How well the classes do that had least to learn from."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from birdtune.results import metrics, rarest
from birdtune.results.scores import Scores


def scores_of(labels: list[int], n_classes: int, seed: int = 0) -> Scores:
    n = len(labels)
    rng = np.random.default_rng(seed)
    found = rng.random((n, n_classes)).astype(np.float32)
    found[np.arange(n), labels] += 0.5
    return Scores(
        classes=tuple("abcdefghij"[:n_classes]),
        recordings=tuple(f"r{k}" for k in range(n)),
        groups=tuple(f"g{k}" for k in range(n)),
        labels=np.array(labels, np.int64),
        patch_scores=found / found.sum(axis=1, keepdims=True),
        patch_recording=np.arange(n, dtype=np.int64),
        patch_start_s=np.zeros(n, np.float32),
    )


def judged(scores: Scores, train_counts: list[int]) -> dict:
    found = rarest.rarest_third(scores, np.array(train_counts), n_bootstrap=200, seed=1)
    assert found is not None
    return found


def test_the_third_with_fewest_training_recordings_is_judged_apart() -> None:
    scores = scores_of([0, 1, 2, 3, 4, 5] * 8, 6)
    found = judged(scores, [50, 2, 40, 3, 60, 70])
    each = [average_precision_score(scores.labels == c, scores.patch_scores[:, c]) for c in range(6)]

    assert found["classes"] == ["b", "d"]
    assert found["most_recordings"] == 3
    assert found["macro_ap"] == pytest.approx(np.mean([each[1], each[3]]))
    assert found["others_macro_ap"] == pytest.approx(np.mean([each[c] for c in (0, 2, 4, 5)]))
    low, high = found["macro_ap_ci"]
    assert low < found["macro_ap"] < high


def test_all_classes_together_are_what_the_figures_say_elsewhere() -> None:
    scores = scores_of([0, 1, 2] * 10, 3)
    found = judged(scores, [9, 1, 5])
    whole = metrics.judge(scores, train_counts=np.array([9, 1, 5]), n_bootstrap=20, seed=1)

    assert found["classes"] == ["b"]
    assert (found["macro_ap"] + 2 * found["others_macro_ap"]) / 3 == pytest.approx(whole["clip"]["macro_ap"])


def test_a_third_is_rounded_up_and_equals_are_rare_together_or_not_at_all() -> None:
    scores = scores_of([0, 1, 2, 3] * 5, 4)
    assert judged(scores, [9, 1, 8, 2])["classes"] == ["b", "d"]
    assert judged(scores, [2, 2, 8, 1])["classes"] == ["d"]  # one of two equals would be the first of the alphabet


@pytest.mark.parametrize("counts", [[4, 4, 4, 4], [28, 28, 28, 30], [28, 29, 30, 30]])
def test_where_classes_have_about_as_many_recordings_none_is_called_rare(counts: list[int]) -> None:
    found = judged(scores_of([0, 1, 2, 3] * 5, 4), counts)
    assert found["classes"] == [] == found["untested"]
    assert {found[key] for key in ("most_recordings", "macro_ap", "others_macro_ap")} == {None}


def test_rare_classes_that_are_not_tested_are_named_and_not_counted() -> None:
    scores = scores_of([0, 1, 3, 4] * 5, 7)
    found = judged(scores, [3, 20, 2, 20, 20, 0, 15])
    assert found["classes"] == ["a"]
    assert found["untested"] == [{"class": "c", "recordings": 2}, {"class": "g", "recordings": 15}]
    even = judged(scores, [20, 20, 2, 20, 20, 0, 20])
    assert even["classes"] == [] and even["untested"] == [{"class": "c", "recordings": 2}]


def test_background_is_no_rare_class() -> None:
    scores, counts = scores_of([0, 1, 2, 3] * 5, 4), np.array([1, 4, 5, 6])
    found = rarest.rarest_third(scores, counts, n_bootstrap=20, seed=1, background=("a",))
    assert found is not None and found["classes"] == ["b"]


def test_two_classes_have_no_rarest_third() -> None:
    assert rarest.rarest_third(scores_of([0, 1, 0], 2), np.array([1, 2]), n_bootstrap=20, seed=1) is None


def test_the_table_says_what_was_set() -> None:
    settings = {"train.balance": "0.5", "train.focal-gamma": "0.0", "train.quality": ""}
    rows = {row["setting"]: row for row in rarest.measures(settings, frozenset({"train.balance"}))}
    assert rows["train.balance"]["value"] == "0.5" and rows["train.balance"]["is_on"]
    assert not rows["train.focal-gamma"]["is_on"]
    assert set(rows) == set(rarest.MEASURES)
