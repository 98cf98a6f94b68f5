"""birdtune.evaluation.metrics: figures that can be worked out by hand, and scikit-learn's as the measure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score

from birdtune.errors import InputError
from birdtune.evaluation import metrics
from birdtune.evaluation.bootstrap import Bootstrap, difference_interval, interval
from birdtune.evaluation.part import evaluate_part, quick_look
from birdtune.evaluation.ranking import ranking_replicates
from birdtune.evaluation.scores import Scores, one_hot, pool_mean, pool_sum_squares, shares


def make_scores(
    window_scores: Any,
    labels: list[int],
    *,
    window_recording: list[int] | None = None,
    groups: list[str] | None = None,
) -> Scores:
    """Scores of recordings r0, r1 …, one window each and each its own source unless told."""
    table = np.asarray(window_scores, np.float32)
    n = len(labels)
    of = np.asarray(window_recording if window_recording is not None else range(n), np.int64)
    return Scores(
        classes=tuple("abcdefghij"[: table.shape[1]]),
        recordings=tuple(f"r{k}" for k in range(n)),
        groups=tuple(groups or [f"g{k}" for k in range(n)]),
        targets=one_hot(labels, table.shape[1]),
        window_scores=table,
        window_recording=of,
        window_start_s=np.zeros(len(of), np.float32),
    )


def evaluated(scores: Scores, train_counts: list[int] | None = None, n_bootstrap: int = 200) -> dict[str, Any]:
    counts = np.asarray(train_counts or [1] * len(scores.classes), np.int64)
    return evaluate_part(scores, train_counts=counts, n_bootstrap=n_bootstrap, seed=7)


def random_scores(seed: int = 0, n: int = 120, n_classes: int = 4, n_groups: int = 30) -> Scores:
    """Scores with ties (one decimal), four windows a recording, several recordings a source."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    of = np.repeat(np.arange(n), 4)
    table = rng.random((4 * n, n_classes)) + 0.5 * (labels[of, None] == np.arange(n_classes))
    return make_scores(
        np.round(table / 1.5, 1),
        labels.tolist(),
        window_recording=of.tolist(),
        groups=[f"g{k}" for k in rng.integers(0, n_groups, n)],
    )


PERFECT = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 3]


def test_mean_pooling_averages_the_windows_of_a_recording_in_any_order() -> None:
    scores = make_scores([[0.2, 0.8], [0.5, 0.5], [0.6, 0.4]], [0, 1], window_recording=[0, 1, 0])
    np.testing.assert_allclose(pool_mean(scores), [[0.4, 0.6], [0.5, 0.5]], rtol=1e-6)


def test_windows_with_weights_are_averaged_by_them(tmp_path: Path) -> None:
    plain = make_scores([[0.2, 0.8], [0.5, 0.5], [0.6, 0.4]], [0, 1], window_recording=[0, 1, 0])
    attention = np.log(np.float32([3, 8, 1])) + 500  # whose exponentials no float32 holds
    scores = replace(plain, window_weight=shares(attention, plain.window_recording))
    scores.save(tmp_path / "s.npz")
    for found in (scores, Scores.load(tmp_path / "s.npz")):
        np.testing.assert_allclose(pool_mean(found), [[0.3, 0.7], [0.5, 0.5]], rtol=1e-4)
    with pytest.raises(ValueError, match="sum to 1"):
        replace(plain, window_weight=np.float32([1, 1, 1]))


def test_squares_pooling_lets_one_loud_call_outweigh_many_faint_ones() -> None:
    scores = make_scores([[0.9, 0.4], [0.0, 0.4], [0.0, 0.4]], [0], window_recording=[0, 0, 0])
    np.testing.assert_allclose(pool_sum_squares(scores), [[0.81, 0.48]], rtol=1e-6)
    assert pool_mean(scores).argmax() == 1


def test_accuracy_and_top3_count_ranks_and_equals_stand_in_class_order() -> None:
    table = [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]
    assert metrics.ranks(np.array(table), np.eye(4) > 0).tolist() == [0, 1, 2, 3]
    found = evaluated(make_scores(table, [0, 1, 2, 3]))
    assert found["clip"]["accuracy"] == 0.25
    assert found["clip"]["top3"] == 0.75


def test_top3_of_two_classes_is_always_one() -> None:
    assert evaluated(make_scores([[1.0, 0.0], [1.0, 0.0]], [1, 1]))["clip"]["top3"] == 1.0


def log_loss(table: Any, labels: Any) -> float:
    targets = one_hot(labels, table.shape[1])
    return metrics.log_loss(table, targets, np.ones(table.shape, np.bool_))


def test_log_loss_of_softmax_is_the_cross_entropy() -> None:
    table, labels = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), np.array([0, 1])
    assert log_loss(table, labels) == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)


def test_log_loss_does_not_change_with_the_scale_of_sigmoid_scores_and_stays_finite() -> None:
    table, labels = np.array([[0.6, 0.6, 0.3]]), np.array([2])
    assert log_loss(table, labels) == pytest.approx(-np.log(0.2))
    assert log_loss(10 * table, labels) == pytest.approx(-np.log(0.2))
    assert log_loss(np.zeros((1, 4)), np.array([0])) == pytest.approx(np.log(4))
    assert log_loss(np.array([[0.0, 1.0]]), np.array([0])) == pytest.approx(-np.log(1e-7))


def test_the_loss_of_an_epoch_is_of_the_kind_that_is_trained_with() -> None:
    scores = make_scores([[0.6, 0.3, 0.1]], [0])
    assert quick_look(scores, "softmax")["loss"] == pytest.approx(-np.log(0.6))
    each = [np.log(0.6), np.log(0.7), np.log(0.9)]
    assert quick_look(scores, "sigmoid")["loss"] == pytest.approx(-np.mean(each))


@pytest.mark.parametrize("decimals", [1, 6])
def test_every_replicate_equals_scikit_learn_with_weights_ties_or_not(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    n, n_groups, n_draws = 300, 40, 150  # more draws than are computed at once
    groups = tuple(f"g{k}" for k in rng.integers(0, n_groups, n))
    draws = Bootstrap(groups, n_draws, seed=3)
    positive = rng.random(n) < 0.2
    column = np.round(rng.random(n) + 0.3 * positive, decimals).astype(np.float32)
    ap, roc = ranking_replicates(column, positive, draws)
    weights = np.concatenate(list(draws.blocks()), axis=1)[draws.index]  # [n, n_draws]
    assert weights.shape == (n, n_draws)
    expected_ap = [average_precision_score(positive, column, sample_weight=w) for w in weights.T]
    expected_roc = [roc_auc_score(positive, column, sample_weight=w) for w in weights.T]
    np.testing.assert_allclose(ap, expected_ap, rtol=1e-6)
    np.testing.assert_allclose(roc, expected_roc, rtol=1e-6)


def test_a_replicate_without_a_positive_is_undefined_and_left_out() -> None:
    draws = Bootstrap(("x", "y"), 100, seed=0)
    ap, roc = ranking_replicates(np.array([0.9, 0.1]), np.array([True, False]), draws)
    drawn = np.concatenate(list(draws.blocks()), axis=1)
    np.testing.assert_array_equal(np.isnan(ap), drawn[0] == 0)
    np.testing.assert_array_equal(np.isnan(roc), (drawn[0] == 0) | (drawn[1] == 0))
    assert 0 < np.isnan(ap).sum() < 100


def test_point_values_are_those_of_scikit_learn_on_pooled_scores() -> None:
    scores = random_scores()
    found = evaluated(scores, n_bootstrap=0)
    pooled, right = pool_mean(scores), np.eye(4)[scores.labels]
    assert found["clip"]["macro_ap"] == pytest.approx(average_precision_score(right, pooled, average="macro"))
    assert found["clip"]["macro_roc_auc"] == pytest.approx(roc_auc_score(right, pooled, average="macro"))
    of_patch = right[scores.window_recording]
    assert found["window"]["macro_ap"] == pytest.approx(average_precision_score(of_patch, scores.window_scores))
    assert found["per_class"][2]["ap"] == pytest.approx(average_precision_score(right[:, 2], pooled[:, 2]))


def test_with_several_classes_a_recording_and_gaps_figures_are_scikit_learns_on_what_is_known() -> None:
    rng = np.random.default_rng(3)
    targets = (rng.random((60, 4)) < 0.35).astype(np.float32)
    mask = rng.random((60, 4)) < 0.8
    table = np.clip(0.5 * targets + 0.7 * rng.random((60, 4)), 0, 1).astype(np.float32)
    scores = replace(make_scores(table, [0] * 60), targets=targets, mask=mask)
    found = evaluated(scores)
    assert found["multi_label"]
    for c, row in enumerate(found["per_class"]):
        true, own = targets[mask[:, c], c], table[mask[:, c], c]
        assert row["support"] == true.sum()
        assert row["ap"] == pytest.approx(average_precision_score(true, own))
        assert row["roc_auc"] == pytest.approx(roc_auc_score(true, own))
        assert row["f1"] == pytest.approx(f1_score(true, own >= 0.5))
        assert row["precision_ci"][0] < precision_score(true, own >= 0.5) == pytest.approx(row["precision"])
    some_class = (targets * mask).any(axis=1)
    right = (targets * mask)[np.arange(60), table.argmax(axis=1)] > 0
    assert found["clip"]["accuracy"] == pytest.approx(right[some_class].mean())
    json.dumps(found, allow_nan=False)


def test_clips_of_one_source_are_drawn_together_so_copies_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(5)
    labels = [0, 1] * 20
    right = np.arange(40) % 5 != 0
    table = np.eye(2)[np.where(right, labels, 1 - np.array(labels))] * 0.6 + 0.2 * rng.random((40, 2))
    once = evaluated(make_scores(table, labels), n_bootstrap=2000)["clip"]
    copies = make_scores(
        np.repeat(table, 10, axis=0),
        np.repeat(labels, 10).tolist(),
        groups=np.repeat([f"g{k}" for k in range(40)], 10).tolist(),
    )
    tenfold = evaluated(copies, n_bootstrap=2000)["clip"]
    independent = evaluated(make_scores(np.repeat(table, 10, axis=0), np.repeat(labels, 10).tolist()))["clip"]

    def width(view: dict[str, Any], name: str = "accuracy") -> float:
        return float(view[f"{name}_ci"][1] - view[f"{name}_ci"][0])

    assert tenfold["accuracy"] == once["accuracy"] == 0.8
    assert width(tenfold) == pytest.approx(width(once), abs=0.02)
    assert width(tenfold, "macro_ap") == pytest.approx(width(once, "macro_ap"), abs=0.03)
    assert width(independent) < 0.5 * width(once)
    # 40 independent trials at 0.8: a normal interval of 2 * 1.96 * sqrt(0.8 * 0.2 / 40) = 0.248
    assert width(once) == pytest.approx(0.248, abs=0.03)


def test_an_interval_of_nothing_but_right_predictions_narrows_with_the_number_of_sources() -> None:
    found = evaluated(make_scores(PERFECT, [0, 1, 2, 3] * 3))["clip"]
    assert found["accuracy_ci"] == [pytest.approx(0.025 ** (1 / 12)), 1.0]  # 0.735
    assert interval(np.ones(50), 100) == [pytest.approx(0.9638, abs=1e-4), 1.0]
    assert interval(np.zeros(50), 12) == [0.0, pytest.approx(1 - 0.025 ** (1 / 12))]


def test_an_interval_is_that_of_as_many_trials_as_scatter_like_the_replicates() -> None:
    """Means of 400 trials, from many groups: the binomial interval of 400 trials; from few, wider."""
    replicates = np.append(np.random.default_rng(0).binomial(400, 0.6, 20_000) / 400, np.nan)
    assert interval(replicates, 400) == pytest.approx([0.551, 0.647], abs=0.002)
    # Of 9 groups: as of 9 / (9 / 400 + 1 / 9) = 67 trials, since variance is understated by 8 / 9.
    assert interval(replicates, 9) == pytest.approx([0.473, 0.719], abs=0.002)
    low, high = interval(replicates, 400, centre=0.99) or (0.0, 0.0)
    assert 0.7 < low < 0.9 and 0.99 < high < 1.0  # within its bounds, and with the figure in it
    low, high = interval(np.full(50, 0.75), 5) or (0.0, 0.0)  # five sources that agree by luck
    assert low < 0.4 and high > 0.9


def test_an_interval_of_a_difference_is_wider_of_fewer_sources_and_stays_within_its_bounds() -> None:
    replicates = np.random.default_rng(0).normal(0.1, 0.05, 20_000)
    assert difference_interval(replicates, 400) == pytest.approx([0.002, 0.198], abs=0.003)
    assert difference_interval(replicates, 9) == pytest.approx([-0.022, 0.222], abs=0.003)
    assert difference_interval(replicates, 2) == pytest.approx([-0.8, 1.0], abs=0.02)  # two sources say next to nothing
    assert difference_interval(np.zeros(9), 12) == pytest.approx([0.025 ** (1 / 12) - 1, 1 - 0.025 ** (1 / 12)])
    assert difference_interval(np.ones(9), 12) == pytest.approx([0.025 ** (1 / 12), 1.0])
    assert difference_interval(replicates, 1) is None and difference_interval(np.zeros(0), 9) is None


def test_the_average_precision_of_many_items_lies_within_its_own_interval() -> None:
    # Without the centring it lies above: 0.617 with an interval of 0.612 to 0.616.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 3000)
    table = rng.random((3000, 3)) + 0.15 * np.eye(3)[labels]
    scores = make_scores(table / 2, labels.tolist(), groups=[f"g{k}" for k in np.arange(3000) // 3])
    clip = evaluated(scores)["clip"]
    for name in ("macro_ap", "macro_roc_auc"):
        low, high = clip[f"{name}_ci"]
        assert (low + high) / 2 == pytest.approx(clip[name], abs=0.1 * (high - low))


def test_one_source_or_no_replicates_give_no_interval() -> None:
    found = evaluated(make_scores(PERFECT, [0, 1, 2, 3] * 3, groups=["same"] * 12))
    assert found["n_sources"] == 1
    for name in ("accuracy", "top3", "macro_ap", "macro_roc_auc"):
        assert found["clip"][f"{name}_ci"] is None
    assert found["accuracy_gain_ci"] is None
    assert evaluated(random_scores(), n_bootstrap=0)["window"]["macro_ap_ci"] is None


def test_the_baseline_is_the_commonest_class_of_training_not_of_the_test() -> None:
    scores = make_scores([[0.9, 0.1]] * 4, [0, 1, 1, 1])
    found = evaluated(scores, train_counts=[10, 2])
    assert (found["majority_class"], found["majority_baseline"]) == ("a", 0.25)
    # The classifier says "a" always, which is the baseline: no gain, and no doubt about that.
    assert found["accuracy_gain"] == 0.0
    assert found["accuracy_gain_ci"] == [0.0, 0.0]


def test_a_classifier_worse_than_the_baseline_has_a_gain_below_zero() -> None:
    found = evaluated(make_scores([[0.1, 0.9]] * 20, [0] * 18 + [1] * 2), train_counts=[9, 1])
    assert (found["majority_baseline"], found["clip"]["accuracy"]) == (0.9, 0.1)
    assert found["accuracy_gain"] == pytest.approx(-0.8)
    assert found["accuracy_gain_ci"][1] < 0 and found["accuracy_gain_ci"][0] >= -1


def test_a_class_absent_from_the_test_is_null_and_out_of_the_average() -> None:
    table = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]]
    found = evaluated(make_scores(table, [0, 1, 0]))
    absent = found["per_class"][2]
    assert (absent["support"], absent["n_sources"], absent["predicted"]) == (0, 0, 1)
    assert absent["precision"] == 0.0
    for name in ("recall", "f1", "ap", "roc_auc", "recall_ci", "ap_ci"):
        assert absent[name] is None
    own = [row["ap"] for row in found["per_class"][:2]]
    assert found["clip"]["macro_ap"] == pytest.approx(sum(own) / 2)


def test_per_class_figures_and_confusion_add_up() -> None:
    predicted, labels = [0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2]
    table = np.eye(4)[predicted] * 0.9
    found = evaluated(make_scores(table, labels), train_counts=[5, 6, 7, 8])
    assert found["confusion"] == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    row = found["per_class"][1]
    assert (row["class"], row["support"], row["predicted"], row["train_recordings"]) == ("b", 2, 4, 6)
    assert (row["precision"], row["recall"], row["f1"]) == (0.5, 1.0, pytest.approx(2 / 3))
    assert found["confusion_pairs"] == [
        {"true": "c", "predicted": "b", "count": 1, "share": 0.5},
        {"true": "a", "predicted": "b", "count": 1, "share": pytest.approx(1 / 3)},
    ]
    assert found["never_predicted"] == ["d"]


def test_the_judgement_is_json_without_nan_and_the_same_for_the_same_seed() -> None:
    first, again = evaluated(random_scores()), evaluated(random_scores())
    assert json.loads(json.dumps(first, allow_nan=False)) == again
    other = evaluate_part(random_scores(), train_counts=np.ones(4, np.int64), n_bootstrap=200, seed=8)
    assert other["clip"]["accuracy_ci"] != first["clip"]["accuracy_ci"]
    assert other["clip"]["accuracy"] == first["clip"]["accuracy"]


def test_nothing_to_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot evaluate 0 recordings"):
        evaluated(make_scores(np.zeros((0, 3)), []))
    with pytest.raises(ValueError, match="with 2 training counts"):
        evaluated(make_scores(PERFECT, [0, 1, 2, 3] * 3), train_counts=[1, 2])


def test_scores_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must have a window"):
        make_scores([[0.5, 0.5]], [0, 1], window_recording=[0])
    with pytest.raises(ValueError, match="not columns of 2 classes"):
        make_scores([[0.5, 0.5]], [2])
    with pytest.raises(ValueError, match="1 scores are NaN"):
        make_scores([[np.nan, 0.5]], [0])
    with pytest.raises(ValueError, match="come with shapes"):
        make_scores([[0.5, 0.5]], [0], groups=["g", "h"])


def same(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    return left.dtype == right.dtype and np.array_equal(left, right)


def test_saved_scores_come_back_with_hostile_names_and_without_pickle(tmp_path: Path) -> None:
    made = random_scores(n=3)
    scores = Scores(
        made.classes, ("=1+1", "<b>\n\u202e", "bad\udcff\x00"), ("ä", "", " "),
        made.targets, made.window_scores, made.window_recording, made.window_start_s,
    )  # fmt: skip
    scores.save(tmp_path / "test.npz")
    back = Scores.load(tmp_path / "test.npz")
    assert (back.classes, back.recordings, back.groups) == (scores.classes, scores.recordings, scores.groups)
    for name in ("targets", "window_scores", "window_recording", "window_start_s"):
        assert same(getattr(back, name), getattr(scores, name))


@pytest.mark.parametrize("content", [None, b"", b"not a zip", "truncated"])
def test_damaged_scores_are_an_input_error_that_names_the_file(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "test.npz"
    if content == "truncated":
        random_scores(n=3).save(path)
        path.write_bytes(path.read_bytes()[:-400])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"test\.npz.*evaluate"):
        Scores.load(path)
