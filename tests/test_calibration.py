"""birdtune.evaluation.calibration and reliability: scores that can be read as probabilities."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.special

from birdtune.evaluation.calibration import FEWEST_SOURCES, Calibration, Scale, fit
from birdtune.evaluation.reliability import bins, calibration_error, equal_mass, evaluate_calibration
from birdtune.evaluation.scores import Scores, clip_scores, one_hot, pool_mean, with_scores

CLASSES = tuple("abcde")


def drawn(
    n: int, *, slope: float, features: int = 1, seed: int = 0, per_source: int = 1, kind: str = "softmax"
) -> Scores:
    """Logits whose scores would be exactly true at 1 / slope of their size: labels are drawn by those."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, len(CLASSES))) * 2.5
    shares = scipy.special.softmax(true, axis=1)
    labels = np.array([rng.choice(len(CLASSES), p=p) for p in shares])
    return Scores(
        classes=CLASSES,
        recordings=tuple(f"{k}" for k in range(n)),
        groups=tuple(f"{k // per_source}" for k in range(n)),
        targets=one_hot(labels, len(CLASSES)),
        window_scores=np.repeat(slope * true, features, axis=0).astype(np.float32),
        window_recording=np.repeat(np.arange(n), features),
        window_start_s=np.tile(np.arange(features) * 0.96, n).astype(np.float32),
    )


def evaluated(logits: Scores, calibration: Calibration, **changes: Any) -> dict[str, Any]:
    before = clip_scores(Calibration(calibration.kind).scores(logits))
    return evaluate_calibration(calibration.scores(logits), before, **{"n_bootstrap": 200, "seed": 1, **changes})


# ---- fitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.3, 4.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(slope: float) -> None:
    found = fit(drawn(2000, slope=slope), "softmax")
    # What the window's temperature leaves to the clip's is nothing, where a recording is one window.
    assert found.window.slope == pytest.approx(1 / slope, rel=0.1)
    assert found.clip.slope == pytest.approx(1.0, abs=0.1)
    assert found.window.temperature == pytest.approx(slope, rel=0.1)
    assert (found.window.offset, found.clip.offset, found.reason) == (0.0, 0.0, "")


def test_calibration_makes_other_recordings_scores_true() -> None:
    found = fit(drawn(1000, slope=4.0), "softmax")
    other = evaluated(drawn(1000, slope=4.0, seed=1), found)
    assert other["before"]["ece"] > 0.1 and other["after"]["ece"] < 0.06
    assert other["after"]["accuracy"] == other["before"]["accuracy"]


def test_the_mean_of_windows_that_disagree_is_sharpened() -> None:
    """Windows as sure as they are right, each wrong for itself: their mean is right far more often than it says."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = 2.0 * np.eye(5)[np.repeat(labels, 10)] + rng.normal(size=(4000, 5)) * 1.4
    scores = drawn(400, slope=1.0, features=10)
    made = Scores(
        CLASSES, scores.recordings, scores.groups, one_hot(labels, 5), logits.astype(np.float32),
        scores.window_recording, scores.window_start_s,
    )  # fmt: skip
    found = fit(made, "softmax")
    assert found.window.slope == pytest.approx(1.0, abs=0.15)  # 2 / 1.4² = 1.02: exactly true
    assert found.clip.slope > 2.0
    after = evaluated(made, found)
    assert after["before"]["ece"] > 0.25 and after["after"]["ece"] < 0.05


def test_sigmoids_get_an_offset() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 500)
    logits = np.where(np.eye(5)[labels] > 0, 3.0, 1.0) + rng.normal(size=(500, 5))  # all say yes
    scores = drawn(500, slope=1.0)
    made = with_scores(scores, logits.astype(np.float32), None)
    made = replace(made, targets=one_hot(labels, 5))
    found = fit(made, "sigmoid")
    assert found.window.offset < -2.0
    said = found.scores(made)
    assert said.window_scores.mean() == pytest.approx(0.2, abs=0.03)  # one class of five is true


def test_few_sources_are_refused_with_a_reason() -> None:
    found = fit(drawn(FEWEST_SOURCES - 1, slope=4.0), "softmax")
    assert (found.window, found.clip) == (Scale(), Scale())
    assert "9 source recordings" in found.reason and "takes 10 or more" in found.reason
    assert "0 source recordings" in fit(None, "softmax").reason
    slices = fit(drawn(90, slope=4.0, per_source=10), "softmax")
    assert slices.window == Scale() and slices.sources == 9  # slices of a recording are one witness
    assert fit(drawn(FEWEST_SOURCES, slope=4.0), "softmax").reason == ""


def test_few_recordings_leave_the_scores_nearer_to_what_they_were() -> None:
    slopes = [fit(drawn(n, slope=8.0), "softmax").window.slope for n in (10, 2000)]
    assert slopes[1] == pytest.approx(1 / 8, rel=0.1)
    assert slopes[1] < slopes[0] < 1.0


def test_ten_sources_of_windows_that_are_as_sure_as_they_are_right_hardly_change_them() -> None:
    slopes = [fit(drawn(FEWEST_SOURCES, slope=1.0, seed=seed), "softmax").window.slope for seed in range(20)]
    assert np.std(np.log(slopes)) < 0.2


def test_a_source_counts_once_however_many_clips_it_has() -> None:
    few, many = drawn(200, slope=4.0), drawn(200, slope=0.25, seed=1)
    one_source = Scores(
        CLASSES, few.recordings + tuple(f"s{k}" for k in range(200)), few.groups + ("one",) * 200,
        np.concatenate([few.targets, many.targets]), np.concatenate([few.window_scores, many.window_scores]),
        np.arange(400), np.zeros(400, np.float32),
    )  # fmt: skip
    assert fit(one_source, "softmax").window.slope == pytest.approx(fit(few, "softmax").window.slope, rel=0.1)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e30])
def test_extreme_logits_never_make_a_score_that_is_no_number(kind: str, size: float) -> None:
    logits = drawn(30, slope=1.0, features=2)
    extreme = with_scores(logits, (np.sign(logits.window_scores) * size).astype(np.float32), None)
    found = fit(extreme, kind)
    said = found.scores(extreme)
    assert np.isfinite(said.window_scores).all() and np.isfinite(clip_scores(said)).all()
    assert clip_scores(said).min() >= 0 and clip_scores(said).max() <= 1
    json.dumps(evaluated(extreme, found), allow_nan=False)


def test_the_fit_is_the_same_every_time_and_survives_being_written() -> None:
    found = fit(drawn(60, slope=3.0, features=4), "softmax")
    assert fit(drawn(60, slope=3.0, features=4), "softmax") == found
    assert Calibration.of(json.loads(json.dumps(found.row()))) == found
    with pytest.raises(KeyError):
        Calibration.of({"kind": "softmax"})


# ---- applying -----------------------------------------------------------------------------------


def test_scores_of_a_softmax_sum_to_one_and_keep_their_order() -> None:
    logits = drawn(50, slope=1.0, features=3)
    said = Calibration("softmax", Scale(0.5), Scale(3.0)).scores(logits)
    np.testing.assert_allclose(said.window_scores.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(clip_scores(said).sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(clip_scores(said).argsort(axis=1), pool_mean(said).argsort(axis=1))
    np.testing.assert_allclose(
        said.window_scores, scipy.special.softmax(0.5 * logits.window_scores.astype(float), axis=1), atol=1e-6
    )
    cubes = pool_mean(said) ** 3
    np.testing.assert_allclose(clip_scores(said), cubes / cubes.sum(axis=1, keepdims=True), atol=1e-6)


def test_without_calibration_scores_are_as_they_came() -> None:
    logits = drawn(20, slope=1.0, features=3)
    said = Calibration("sigmoid").scores(logits)
    np.testing.assert_allclose(said.window_scores, scipy.special.expit(logits.window_scores), atol=1e-7)
    np.testing.assert_allclose(clip_scores(said), pool_mean(said), atol=1e-7)


# ---- certainty ----------------------------------------------------------------------------------


def test_bins_hold_as_many_predictions_each() -> None:
    sure = np.random.default_rng(0).random(103)
    counts = np.bincount(equal_mass(sure))
    assert len(counts) == 10 and set(counts) == {10, 11}
    order = equal_mass(sure)[np.argsort(sure)]
    assert (np.diff(order) >= 0).all()
    assert [len(np.bincount(equal_mass(np.arange(n) / n))) for n in (1, 4, 9, 10, 24, 50, 60)] == [
        1,
        1,
        1,
        2,
        4,
        10,
        10,
    ]


def test_the_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    sure = np.array([0.55] * 5 + [0.95] * 5)
    right = np.array([True, False, True, False, False, True, True, True, True, True])
    place = equal_mass(sure)
    assert calibration_error(sure, right, place) == pytest.approx((0.15 + 0.05) / 2)
    assert [(row["count"], row["confidence"], row["accuracy"]) for row in bins(sure, right, place)] == [
        (5, pytest.approx(0.55), 0.4), (5, pytest.approx(0.95), 1.0),
    ]  # fmt: skip


def test_the_calibration_error_comes_with_the_one_of_calibrated_scores() -> None:
    """Labels drawn by the very scores: the error is no larger than luck, on few and on many."""
    for n in (60, 3000):
        after = evaluated(drawn(n, slope=1.0), Calibration("softmax"))["after"]
        assert 0.4 * after["ece_null"] < after["ece"] < after["ece_null_upper"]
        assert after["ece_ci"][0] <= after["ece"] <= after["ece_ci"][1]
    few, many = (evaluated(drawn(n, slope=1.0), Calibration("softmax"))["after"] for n in (60, 3000))
    assert few["ece_null"] > 4 * many["ece_null"]
    assert (
        evaluated(drawn(300, slope=4.0), Calibration("softmax"))["after"]["ece_null_upper"] < 0.06
    )  # 0.2 is no luck


def test_what_a_score_of_eight_tenths_means_is_counted() -> None:
    scores = drawn(4, slope=1.0)
    pooled = np.zeros((4, 5), np.float32)
    pooled[np.arange(4), [0, 1, 2, 3]] = [0.69, 0.71, 0.85, 0.91]
    made = replace(scores, targets=one_hot([0, 1, 0, 3], 5), pooled=pooled)
    around = evaluate_calibration(made, pooled, n_bootstrap=50, seed=0)["around"]
    assert (around["count"], around["right"], around["share"]) == (2, 1, 0.5)
    nothing = evaluate_calibration(replace(made, pooled=pooled / 10), pooled, n_bootstrap=50, seed=0)[
        "around"
    ]
    assert (nothing["count"], nothing["share"], nothing["share_ci"]) == (0, None, None)
