"""How well the classes do that had least to learn from."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from birdtune.evaluation import paired, rare_classes
from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.evaluation.part import evaluate_part
from birdtune.evaluation.scores import Scores, one_hot


def scores_of(labels: list[int], n_classes: int, seed: int = 0) -> Scores:
    n = len(labels)
    rng = np.random.default_rng(seed)
    found = rng.random((n, n_classes)).astype(np.float32)
    found[np.arange(n), labels] += 0.5
    return Scores(
        classes=tuple("abcdefghij"[:n_classes]),
        recordings=tuple(f"r{k}" for k in range(n)),
        groups=tuple(f"g{k}" for k in range(n)),
        targets=one_hot(labels, n_classes),
        window_scores=found / found.sum(axis=1, keepdims=True),
        window_recording=np.arange(n, dtype=np.int64),
        window_start_s=np.zeros(n, np.float32),
    )


def judged(scores: Scores, train_counts: list[int]) -> dict:
    found = rare_classes.rarest_third(scores, np.array(train_counts), n_bootstrap=200, seed=1)
    assert found is not None
    return found


def test_the_third_with_fewest_training_recordings_is_evaluated_apart() -> None:
    scores = scores_of([0, 1, 2, 3, 4, 5] * 8, 6)
    found = judged(scores, [50, 2, 40, 3, 60, 70])
    each = [average_precision_score(scores.labels == c, scores.window_scores[:, c]) for c in range(6)]

    assert found["classes"] == ["b", "d"]
    assert found["most_recordings"] == 3
    assert found["macro_ap"] == pytest.approx(np.mean([each[1], each[3]]))
    assert found["others_macro_ap"] == pytest.approx(np.mean([each[c] for c in (0, 2, 4, 5)]))
    low, high = found["macro_ap_ci"]
    assert low < found["macro_ap"] < high


def test_all_classes_together_are_what_the_figures_say_elsewhere() -> None:
    scores = scores_of([0, 1, 2] * 10, 3)
    found = judged(scores, [9, 1, 5])
    whole = evaluate_part(scores, train_counts=np.array([9, 1, 5]), n_bootstrap=20, seed=1)

    assert found["classes"] == ["b"]
    assert (found["macro_ap"] + 2 * found["others_macro_ap"]) / 3 == pytest.approx(whole["clip"]["macro_ap"])


def test_a_third_is_rounded_up_and_equals_are_rare_together_or_not_at_all() -> None:
    scores = scores_of([0, 1, 2, 3] * 5, 4)
    assert judged(scores, [9, 1, 8, 2])["classes"] == ["b", "d"]
    assert judged(scores, [2, 2, 8, 1])["classes"] == [
        "d"
    ]  # one of two equals would be the first of the alphabet


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
    found = rare_classes.rarest_third(scores, counts, n_bootstrap=20, seed=1, background=("a",))
    assert found is not None and found["classes"] == ["b"]


def test_two_classes_have_no_rarest_third() -> None:
    assert rare_classes.rarest_third(scores_of([0, 1, 0], 2), np.array([1, 2]), n_bootstrap=20, seed=1) is None


def test_the_table_says_what_was_set() -> None:
    settings = {"train.sampling-power": "0.5", "train.focal-gamma": "0.0", "train.sample-weights": ""}
    rows = {row["setting"]: row for row in rare_classes.measures(settings, frozenset({"train.sampling-power"}))}
    assert rows["train.sampling-power"]["value"] == "0.5" and rows["train.sampling-power"]["is_on"]
    assert not rows["train.focal-gamma"]["is_on"]
    assert set(rows) == set(rare_classes.MEASURES)
    by_file = {row["setting"]: row for row in rare_classes.measures(settings, {"train.sample-weights"})}
    assert by_file["train.sample-weights"]["is_on"] and by_file["train.sample-weights"]["value"] == "quality.csv"


def test_unequal_classes_are_reported_where_nothing_was_set_for_the_rare_ones() -> None:
    scores, counts = scores_of([0, 1, 2, 3] * 5, 4), np.array([60, 2, 30, 20])
    found = rare_classes.rarest_third(scores, counts, n_bootstrap=20, seed=1)
    assert rare_classes.unequal(found, ()) == 30 and rare_classes.unequal(found, {"train.seed"}) == 30
    assert rare_classes.unequal(found, {"train.focal-gamma"}) is None
    without = rare_classes.rarest_third(scores, counts, n_bootstrap=20, seed=1, background=("a",))
    assert without is not None and without["times"] == 15
    assert rare_classes.unequal({"times": 9}, ()) is None and rare_classes.unequal(None, ()) is None


# ---- with a measure and without -------------------------------------------------------------------

LABELS = np.array([0] * 20 + [1] * 20 + [2] * 4 + [3] * 2)
TARGETS = np.eye(4)[LABELS] > 0
RARE = np.array([2, 3])


def said(wrong: list[int]) -> np.ndarray:
    """Scores [46, 4] that name the first class for some recordings, and the right one else."""
    answers = np.where(np.isin(np.arange(len(LABELS)), wrong), 0, LABELS)
    return np.eye(4)[answers] * 0.6 + 0.1


def gained(first: list[int], second: list[int], slices: int = 1) -> dict:
    draws = Bootstrap(tuple(f"g{k // slices}" for k in range(len(LABELS))), 400, 1)
    one, other = (rare_classes.standing(said(wrong), TARGETS, RARE, draws) for wrong in (first, second))
    return paired.gains(one, other)


def test_each_rare_class_counts_alike_and_all_recordings_are_the_price() -> None:
    found = gained([20, 21], [20, 40, 44])
    assert found["rare_recall"]["with"] == 1.0 and found["rare_recall"]["without"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["rare_recall"]["gain"] == pytest.approx(3 / 8)
    assert found["accuracy"]["with"] == pytest.approx(44 / 46) and found["accuracy"][
        "without"
    ] == pytest.approx(43 / 46)
    each = [average_precision_score(c == LABELS, said([20, 40, 44])[:, c]) for c in range(4)]
    assert found["rare_ap"]["without"] == pytest.approx(np.mean(each[2:]))
    assert found["macro_ap"]["without"] == pytest.approx(np.mean(each))
    for figure in found.values():
        assert figure["ci"][0] <= figure["gain"] <= figure["ci"][1]


def test_what_few_sources_show_is_not_significant_and_what_many_show_is() -> None:
    def surely(row: dict) -> bool:
        shown = rare_classes.in_words({"rows": [{"settings": {}, **row}]})
        assert shown is not None
        return shown["rows"][0]["accuracy"]["significant"]

    wrong = list(range(24, 36))
    assert surely(gained([], wrong)) and not surely(gained([], wrong, slices=12))
    assert not surely(gained([20], [21]))  # one better and one worse: in pairs, nothing


def test_where_no_prediction_changes_few_sources_leave_it_open_and_the_same_scores_do_not() -> None:
    found = gained([20], [20, 21])  # of the rare classes all are right in both
    assert found["rare_recall"]["ci"] == pytest.approx([-(1 - 0.025 ** (1 / 6)), 1 - 0.025 ** (1 / 6)])
    draws = Bootstrap(tuple(f"g{k}" for k in range(len(LABELS))), 50, 1)
    one = rare_classes.standing(said([0]), TARGETS, RARE, draws)
    assert {tuple(figure["ci"]) for figure in paired.gains(one, one, changed=False).values()} == {(0.0, 0.0)}


def test_differences_are_reported_in_points_without_a_signed_nothing() -> None:
    figure = {"with": 0.5, "without": 0.504, "gain": -0.004, "ci": [-0.1, 0.002]}
    row = {"settings": {"train.sampling-power": 1.0}, "changed": True, **dict.fromkeys(rare_classes.FIGURES, figure)}
    shown = rare_classes.in_words({"on": ["train.sampling-power"], "reason": "", "rows": [row]})
    assert shown is not None and shown["rows"][0]["rare_ap"]["words"] == "0 (-10 to 0)"
    assert rare_classes.in_words(None) is None
