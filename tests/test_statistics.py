"""Figures that promise something, tried on made data of which the truth is known.

`pytest -rP tests/test_statistics.py` prints what docs/statistics.md quotes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import average_precision_score

from birdtune.evaluation.bootstrap import Bootstrap, difference_interval, interval
from birdtune.evaluation.decision import UNKNOWN
from birdtune.evaluation.ranking import ranking_replicates
from birdtune.evaluation.reliability import evaluate_calibration
from birdtune.evaluation.scores import Scores, clip_scores, one_hot
from birdtune.evaluation.thresholds import choose

CLIPS = 4  # of each source
Array = npt.NDArray[Any]


def names(index: Array) -> tuple[str, ...]:
    return tuple(f"source {k:04d}" for k in index)


def scores_of(clips: Array, labels: Array, sources: Array) -> Scores:
    """Recordings of one window each, with these scores [N, C]."""
    n = len(labels)
    return Scores(
        classes=tuple(f"class {c}" for c in range(clips.shape[1])),
        recordings=tuple(f"{k}" for k in range(n)),
        groups=names(sources),
        targets=one_hot(labels, clips.shape[1]),
        window_scores=clips.astype(np.float32),
        window_recording=np.arange(n),
        window_start_s=np.zeros(n, np.float32),
    )


# ---- intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.7, 0.9])
@pytest.mark.parametrize("correlation", [0.1, 0.4])
@pytest.mark.parametrize("n_sources", [5, 8, 10, 20])
def test_the_interval_of_an_accuracy_holds_the_truth_in_about_95_of_100_sets(
    n_sources: int, correlation: float, accuracy: float
) -> None:
    """Sources differ in how hard they are (beta); percentiles of the draws held it in 84 to 99."""
    rng = np.random.default_rng(n_sources)
    spread, sources, n = 1 / correlation - 1, np.repeat(np.arange(n_sources), CLIPS), 800
    draws, held = Bootstrap(names(sources), 200, 1), 0
    for _ in range(n):
        right = rng.random(len(sources)) < rng.beta(accuracy * spread, (1 - accuracy) * spread, n_sources)[sources]
        drawn = draws.ratio(right, np.ones(len(right)))
        low, high = interval(drawn, n_sources) or (0.0, 0.0)
        held += low <= accuracy <= high
    print(f"accuracy {accuracy}, {n_sources} sources x {CLIPS}, correlation {correlation}: {held / n:.1%}")
    # Few sources, and figures near 1, move in such steps that nothing between is to be had.
    assert held / n >= 0.92
    if n_sources >= 8 and accuracy == 0.7:
        assert held / n <= 0.98


@pytest.mark.parametrize(("n_sources", "n_classes"), [(6, 2), (10, 2), (20, 3)])
def test_the_interval_of_average_precision_holds_the_truth_in_about_95_of_100_sets(
    n_sources: int, n_classes: int
) -> None:
    """The truth: the mean over sets as large. Percentiles of the draws held it in 90 to 93 of 100."""
    rng = np.random.default_rng(0)
    labels, sources = np.repeat(np.arange(n_sources) % n_classes, CLIPS), np.repeat(np.arange(n_sources), CLIPS)
    draws, n = Bootstrap(names(sources), 100, 1), 120

    def drawn_set() -> Array:
        of_source = rng.normal(size=(n_sources, n_classes))[sources]
        return 2.0 * np.eye(n_classes)[labels] + of_source + rng.normal(size=of_source.shape)

    def macro_ap(table: Array) -> float:
        return float(np.mean([average_precision_score(labels == c, table[:, c]) for c in range(n_classes)]))

    truth, held = np.mean([macro_ap(drawn_set()) for _ in range(300)]), 0
    for _ in range(n):
        table = drawn_set()
        each = [ranking_replicates(table[:, c], labels == c, draws)[0] for c in range(n_classes)]
        known = np.isfinite(each)
        drawn = np.where(known, each, 0.0).sum(axis=0) / known.sum(axis=0)
        low, high = interval(drawn, n_sources, centre=macro_ap(table)) or (0.0, 0.0)
        held += low <= truth <= high
    print(f"macro average precision, {n_sources} sources x {CLIPS}, {n_classes} classes: {held / n:.1%}")
    assert held / n >= 0.93


@pytest.mark.parametrize("n_sources", [5, 10, 20])
def test_the_interval_of_a_difference_holds_the_truth_in_about_95_of_100_sets(n_sources: int) -> None:
    """Two models on the same recordings; percentiles of the draws held it in 85, 87 and 93 of 100."""
    rng = np.random.default_rng(n_sources)
    sources, n = np.repeat(np.arange(n_sources), CLIPS), 800
    draws, held = Bootstrap(names(sources), 200, 1), 0
    for _ in range(n):
        hard = rng.beta(0.7 * 7 / 3, 0.3 * 7 / 3, n_sources)[sources]
        gain = (rng.random(len(hard)) < hard).astype(int) - (rng.random(len(hard)) < 0.8 * hard)  # 0.7 against 0.56
        drawn = draws.ratio(gain, np.ones(len(hard)))
        low, high = difference_interval(drawn, n_sources) or (0.0, 0.0)
        held += low <= 0.14 <= high
    print(f"difference of accuracies, {n_sources} sources x {CLIPS}: {held / n:.1%}")
    assert 0.93 <= held / n <= 0.975


# ---- the bound of luck on the calibration error ---------------------------------------------------


def alike(sure: Array, sources: Array, correlation: float, rng: np.random.Generator) -> Array:
    """Outcomes that are true with probability `sure`, and correlated within a source: a normal latent each."""
    latent = rng.normal(size=sources.max() + 1)[sources] * np.sqrt(correlation)
    latent += rng.normal(size=len(sources)) * np.sqrt(1 - correlation)
    return np.asarray(scipy.stats.norm.cdf(latent) < sure)


def exceeds(correlation: float, *, n_sources: int = 20, clips: int = 10, too_sure: float = 0.0, n: int = 100) -> float:
    """Share of sets whose calibration error is above the bound of luck; certainties lie near their source's mean."""
    rng, above = np.random.default_rng(3), 0
    sources = np.repeat(np.arange(n_sources), clips)
    for _ in range(n):
        mean = rng.uniform(0.55, 0.95, n_sources)[sources]
        sure = np.clip(mean + rng.normal(0, 0.05, len(sources)), 0.51, 0.999)
        wrong = (~alike(sure - too_sure, sources, correlation, rng)).astype(np.int64)
        table = np.stack([sure, 1 - sure], axis=1)
        found = evaluate_calibration(scores_of(table, wrong, sources), table, n_bootstrap=0, seed=0)["after"]
        above += found["ece"] > found["ece_null_upper"]
    print(f"calibration error above luck, correlation {correlation}, too sure by {too_sure}: {above / n:.1%}")
    return above / n


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5])
def test_scores_that_are_exactly_calibrated_are_seldom_above_the_bound(correlation: float) -> None:
    """2.5 of 100 by definition; drawn one by one, 16 and 32 where sources are alike."""
    assert exceeds(correlation) <= 0.05


def test_scores_that_are_not_calibrated_are_reported() -> None:
    assert exceeds(0.3, too_sure=0.3, n=30) >= 0.8


# ---- thresholds -----------------------------------------------------------------------------------


def drawn_by_scores(n: int, n_classes: int, spread: float, rng: np.random.Generator) -> Scores:
    """Scores that are exactly true: labels are drawn by them."""
    table = scipy.special.softmax(rng.normal(size=(n, n_classes)) * spread, axis=1)
    labels = (rng.random(n)[:, None] < np.cumsum(table, axis=1)).argmax(axis=1)
    return scores_of(table, labels, np.arange(n))


@pytest.mark.parametrize(
    ("n_classes", "n_val", "spread", "n", "below", "recall"),
    [(50, 1000, 6.0, 5, 0.16, 0.40), (10, 150, 2.5, 20, 0.06, 0.08), (3, 200, 4.0, 20, 0.06, 0.65)],
)
def test_thresholds_keep_the_wished_precision_on_other_recordings(
    n_classes: int, n_val: int, spread: float, n: int, below: float, recall: float
) -> None:
    """The lowest cut with as good a precision as wished left 36, 41 and 30 of 100 classes below it."""
    rng = np.random.default_rng(1)
    fresh = drawn_by_scores(40_000, n_classes, spread, rng)
    clips, precisions, found = clip_scores(fresh), [], []
    for _ in range(n):
        val = drawn_by_scores(n_val, n_classes, spread, rng)
        said = choose(val, val.classes, (), precision=0.9, alarms_per_hour=None, window_s=0.96).decide(clips)
        right = said == fresh.labels
        answers = np.bincount(said[said != UNKNOWN], minlength=n_classes)
        each = np.bincount(said[right], minlength=n_classes) / np.maximum(answers, 1)
        precisions.append(each[answers >= 20])
        found.append(right.mean())
    every = np.concatenate(precisions)
    print(
        f"{n_classes} classes, {n_val} validation recordings: mean precision {every.mean():.3f}, "
        f"classes below 0.90 {(every < 0.9).mean():.1%}, below 0.85 {(every < 0.85).mean():.1%}, "
        f"recall {np.mean(found):.3f}"
    )
    assert every.mean() >= 0.9 and (every < 0.9).mean() <= below and (every < 0.85).mean() <= 0.02
    assert np.mean(found) >= recall
