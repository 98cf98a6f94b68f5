"""Whether scores can be believed: stated certainty against the share of right answers.

    Scores, and what they were before calibration ─▶ certainty ─▶ a JSON-able dict

The certainty of an answer is the highest score of its recording. Expected calibration error (ECE; Naeini et al. 2015)
with bins of equal mass: the answers, sorted by certainty, are cut into up to ten bins of as many each (at least five);
in each, the mean certainty and the share of right answers are compared; the differences, weighted by the bins' sizes,
are summed. Bins of equal width would leave most bins of a good classifier with an answer or none.

The ECE of few answers is above zero even for certainties that are exactly true, because shares of few are rough. How
far, is computed by drawing answers that are right as often as they say (Bröcker & Smith 2007), and stands beside it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.results.metrics import Draws, interval
from birdtune.results.scores import Floats, Ints, Scores, clip_scores

MOST_BINS, FEWEST_IN_A_BIN = 10, 5
# What the report says in a sentence: recordings whose score is about this, give or take.
AROUND, WITHIN = 0.8, 0.1
_IF_TRUE_DRAWS = 1000
_IF_TRUE_QUANTILE = 0.975


def certainty(scores: Scores, before: npt.NDArray[Any], *, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """How far certainty and truth differ, before and after calibration.

    Args:
        scores: one part of the split, as it is served.
        before: [N, C] the recordings' scores before calibration.
        n_bootstrap: replicates behind the intervals; source recordings are drawn.
        seed: of all drawing.

    Returns:
        `before`, `after`: each `ece`, `ece_ci`, `ece_if_true` (mean, were each certainty exactly true) and
        `ece_if_true_most` (97.5 % of such draws stay below), `certainty` (mean), `accuracy`, and `reliability`: bins
        with `lo`, `hi`, `count`, `confidence`, `accuracy`; `around`: `score`, `lo`, `hi`, `count`, `right`, `share`,
        `share_ci` of the recordings whose certainty is about 0.8.
    """
    draws = Draws(scores.groups, n_bootstrap, seed)
    after = clip_scores(scores)
    return {
        "before": _looked_at(before, scores.labels, draws, seed),
        "after": _looked_at(after, scores.labels, draws, seed),
        "around": _around(after.max(axis=1), after.argmax(axis=1) == scores.labels, draws),
    }


def _looked_at(class_scores: npt.NDArray[Any], labels: Ints, draws: Draws, seed: int) -> dict[str, Any]:
    sure: Floats = class_scores.max(axis=1).astype(np.float64)
    right = class_scores.argmax(axis=1) == labels
    place = equal_mass(sure)
    ece = calibration_error(sure, right, place)
    if_true = _if_true(sure, place, seed)
    return {
        "ece": ece,
        "ece_ci": interval(_drawn(sure, right, place, draws), draws.n_groups, centre=ece),
        "ece_if_true": float(if_true.mean()),
        "ece_if_true_most": float(np.quantile(if_true, _IF_TRUE_QUANTILE)),
        "certainty": float(sure.mean()),
        "accuracy": float(right.mean()),
        "reliability": reliability(sure, right, place),
    }


def equal_mass(sure: Floats) -> Ints:
    """The bin of each answer: as many answers in each as can be, equals in their order. [N]"""
    n_bins = max(1, min(MOST_BINS, len(sure) // FEWEST_IN_A_BIN))
    place = np.empty(len(sure), np.int64)
    for number, members in enumerate(np.array_split(np.argsort(sure, kind="stable"), n_bins)):
        place[members] = number
    return place


def calibration_error(sure: Floats, right: npt.NDArray[np.bool_], place: Ints) -> float:
    """Σ over the bins of |mean certainty - share of right answers|, weighted by their sizes. 0…1"""
    return float(np.abs(np.bincount(place, sure - right)).sum() / len(sure))


def reliability(sure: Floats, right: npt.NDArray[np.bool_], place: Ints) -> list[dict[str, Any]]:
    """The bins, the least sure first."""
    rows = []
    for number in range(int(place.max()) + 1):
        inside = place == number
        rows.append(
            {
                "lo": float(sure[inside].min()),
                "hi": float(sure[inside].max()),
                "count": int(inside.sum()),
                "confidence": float(sure[inside].mean()),
                "accuracy": float(right[inside].mean()),
            }
        )
    return rows


def _drawn(sure: Floats, right: npt.NDArray[np.bool_], place: Ints, draws: Draws) -> Floats:
    """The ECE of every replicate; answers keep their bins. [n]"""
    off = np.zeros((draws.n_groups, int(place.max()) + 1))
    np.add.at(off, (draws.index, place), sure - right)
    size = draws.per_group(np.ones(len(sure)), draws.index)
    found = [np.abs(weights.T @ off).sum(axis=1) / (weights.T @ size) for weights in draws.blocks()]
    return np.concatenate(found) if found else np.zeros(0)


def _if_true(sure: Floats, place: Ints, seed: int) -> Floats:
    """ECEs of answers that are right exactly as often as they say. [draws]"""
    rng = np.random.default_rng(seed)
    return np.array(
        [calibration_error(sure, rng.random(len(sure)) < sure, place) for _ in range(_IF_TRUE_DRAWS)]
    )


def _around(sure: Floats, right: npt.NDArray[np.bool_], draws: Draws) -> dict[str, Any]:
    inside = (sure >= AROUND - WITHIN) & (sure < AROUND + WITHIN)
    groups = len(np.unique(draws.index[inside]))
    drawn = draws.ratio(draws.per_group(right & inside, draws.index), draws.per_group(inside, draws.index))
    return {
        "score": AROUND,
        "lo": AROUND - WITHIN,
        "hi": AROUND + WITHIN,
        "count": int(inside.sum()),
        "right": int((right & inside).sum()),
        "share": float(right[inside].mean()) if inside.any() else None,
        "share_ci": interval(drawn, groups) if inside.any() else None,
    }
