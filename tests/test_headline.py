"""birdtune.evaluation.headline: which figures lead, and what stands beside them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from birdtune.evaluation.headline import headline_figures
from birdtune.evaluation.part import evaluate_part, quick_look
from birdtune.evaluation.reliability import evaluate_calibration
from birdtune.evaluation.scores import Scores, clip_scores

CLASSES = ("Owl", "Tit")
# Two recordings of four windows. Each holds both classes somewhere, and every other window holds none.
TRUTH = np.array([[1, 0], [0, 0], [0, 1], [0, 0]] * 2, bool)


def scores(*, several: bool = True, timed: bool = False) -> Scores:
    table = np.where(TRUTH, 0.8, 0.1).astype(np.float32)
    table[0] = [0.3, 0.95]  # the one error
    targets = np.ones((2, 2), np.float32) if several else np.eye(2, dtype=np.float32)
    found = Scores(
        CLASSES, ("a.wav", "b.wav"), ("a", "b"), targets, table, np.repeat([0, 1], 4), np.tile(np.arange(4.0), 2)
    )  # fmt: skip
    return replace(found, window_targets=TRUTH, window_mask=np.ones_like(TRUTH)) if timed else found


def leading(found: Scores, **more: Any) -> list[tuple[str, str, float | None]]:
    figures = evaluate_part(found, train_counts=np.array([3, 2]), n_bootstrap=50, seed=0) | more
    return [(row["metric"], row["of"], row["baseline"]) for row in headline_figures(figures)]


def test_accuracy_leads_and_average_precision_where_recordings_have_several_classes() -> None:
    assert leading(scores(several=False)) == [("accuracy", "recordings", 0.5), ("macro_ap", "recordings", 0.75)]
    assert [row[0] for row in leading(scores())] == ["macro_ap", "accuracy"]


def test_where_labels_have_times_events_and_windows_lead_and_whole_recordings_are_left_out() -> None:
    events = {"events": {"events": 4, "f1": 0.7, "f1_ci": None}}
    found = leading(scores(timed=True), events=events)
    assert [row[:2] for row in found] == [("f1", "events"), ("macro_ap", "windows"), ("accuracy", "windows")]
    assert found[2][2] == 0.5  # always none
    # Two of eight: more than the 2 / 8 of many, as chance puts some of few high.
    assert found[1][2] == pytest.approx(np.mean([_ap_in_a_random_order(8, 2) for _ in range(4000)]), abs=0.01)


def _ap_in_a_random_order(n: int, k: int) -> float:
    place = np.sort(np.random.permutation(n)[:k]) + 1
    return float(np.mean(np.arange(1, k + 1) / place))


def test_windows_have_figures_of_their_own_by_epoch_and_by_class() -> None:
    found = quick_look(scores(timed=True), "sigmoid", of_windows=True)
    assert found["accuracy"] == 0.875 and "top3" not in found and quick_look(scores(), "sigmoid")["accuracy"] == 1.0
    assert quick_look(scores(timed=True), "softmax", of_windows=True)["accuracy"] == 0.75, "of four with a class"
    figures = evaluate_part(scores(timed=True), train_counts=np.array([3, 2]), n_bootstrap=50, seed=0)
    owl, tit = figures["windows_per_class"]
    assert (owl["class"], owl["windows"], tit["windows"]) == ("Owl", 2, 2)
    assert owl["ap"] == 1.0 and tit["ap"] == pytest.approx(2 / 3)  # the two at 0.8 are equals
    assert evaluate_part(scores(), train_counts=np.array([3, 2]), n_bootstrap=0, seed=0)["windows_per_class"] is None


def test_calibration_is_of_windows_where_they_have_classes_of_their_own() -> None:
    found = scores(timed=True)
    calibration = evaluate_calibration(found, found.window_scores / 2, n_bootstrap=50, seed=0)
    after = calibration["after"]
    # Highest scores: three of 0.8 that are right, one of 0.95 that is wrong, four of 0.1 where there is nothing.
    assert calibration["of"] == "windows" and after["accuracy"] == 3 / 8
    assert after["confidence"] == pytest.approx((3 * 0.8 + 0.95 + 4 * 0.1) / 8, abs=1e-6)
    assert calibration["before"]["confidence"] == pytest.approx(after["confidence"] / 2, abs=1e-6)
    assert (calibration["around"]["count"], calibration["around"]["right"]) == (3, 3)
    assert evaluate_calibration(scores(), clip_scores(scores()), n_bootstrap=0, seed=0)["of"] == "recordings"


def test_what_nobody_knows_about_a_window_is_no_answer_of_its_confidence() -> None:
    known = np.ones_like(TRUTH)
    known[0] = [True, False]  # whether there is a Tit
    known[1] = False
    found = replace(scores(timed=True), window_mask=known)
    after = evaluate_calibration(found, found.window_scores, n_bootstrap=50, seed=0)["after"]
    assert after["accuracy"] == pytest.approx(4 / 7) and sum(row["count"] for row in after["bins"]) == 7
