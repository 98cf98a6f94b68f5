"""Whether scores can be believed: stated certainty against the share of right answers.

    Scores, and what they were before calibration ─▶ certainty ─▶ a JSON-able dict

The certainty of an answer is the highest score of its recording. Expected calibration error (ECE; Naeini et al. 2015)
with bins of equal mass: the answers, sorted by certainty, are cut into up to ten bins of as many each (at least five);
in each, the mean certainty and the share of right answers are compared; the differences, weighted by the bins' sizes,
are summed. Bins of equal width would leave most bins of a good classifier with an answer or none.

The ECE of few answers is above zero even for certainties that are exactly true, because shares of few are rough. How
far, is computed by drawing answers that are right as often as they say (Bröcker & Smith 2007), and stands beside it.
Recordings of one source are right or wrong together, so their outcomes are drawn with the correlation that they show:
drawn one by one, they would make luck look far smaller than it is (docs/statistics.md has the figures).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.metrics import Draws, interval
from birdtune.evaluation.scores import Floats, Ints, Scores, clip_scores

MOST_BINS, FEWEST_IN_A_BIN = 10, 5
# What the report says in a sentence: recordings whose score is about this, give or take.
AROUND, WITHIN = 0.8, 0.1
_IF_TRUE_DRAWS = 1000
_IF_TRUE_QUANTILE = 0.975
# Outcomes that are drawn at a time, so that memory stays flat.
_DRAWN_AT_ONCE = 1_000_000


def certainty(scores: Scores, before: npt.NDArray[Any], *, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """How far certainty and truth differ, before and after calibration.

    Args:
        scores: one part of the split, as it is served.
        before: [N, C] the recordings' scores before calibration.
        n_bootstrap: replicates behind the intervals; source recordings are drawn.
        seed: of all drawing.

    Returns:
        `before`, `after`: each `ece`, `ece_ci`, `ece_if_true` (mean, were each certainty exactly true) and
        `ece_if_true_most` (97.5 % of such draws stay below), `source_correlation` (of outcomes within a source, 0…1,
        that these draws have), `certainty` (mean), `accuracy`, and `reliability`: bins
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
    correlation = source_correlation(sure, right, draws.index)
    if_true = _if_true(sure, place, draws.index, correlation, seed)
    return {
        "ece": ece,
        "ece_ci": interval(_drawn(sure, right, place, draws), draws.n_groups, centre=ece),
        "ece_if_true": float(if_true.mean()),
        "ece_if_true_most": float(np.quantile(if_true, _IF_TRUE_QUANTILE)),
        "source_correlation": correlation,
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


def source_correlation(sure: Floats, right: npt.NDArray[np.bool_], source: Ints) -> float:
    """How far outcomes of one source agree beyond what their certainties say: 0 not at all, 1 wholly.

    The products of right - sure over all pairs of a source's recordings, summed, by what that sum would be on average
    if each source's outcomes came from one draw (right where sure > u, with one u for all of them). Certainties that
    are wrong throughout raise it, which makes luck look larger, never smaller.

    Args:
        sure: [N] certainties; right: [N]; source: [N] number of each one's source.
    """
    off = right - sure
    found = float((np.bincount(source, off) ** 2).sum() - (off**2).sum())
    # One draw for both: the covariance of a pair is lower · (1 - higher). In their order, each meets all lower ones.
    order = np.lexsort((sure, source))
    ordered, first = sure[order], np.searchsorted(source[order], source[order])
    below = np.concatenate([[0.0], np.cumsum(ordered)])  # [N + 1]
    wholly = 2.0 * float(((1.0 - ordered) * (below[:-1] - below[first])).sum())
    return min(1.0, max(0.0, found / wholly)) if wholly > 0.0 else 0.0


def _if_true(sure: Floats, place: Ints, source: Ints, correlation: float, seed: int) -> Floats:
    """ECEs of answers that are right exactly as often as they say, and alike within a source. [draws]

    An outcome follows its source's draw with probability √correlation, else one of its own, so that two of a source
    share a draw with probability `correlation`.
    """
    rng = np.random.default_rng(seed)
    n, n_sources = len(sure), int(source.max()) + 1
    bins = (place[:, None] == np.arange(place.max() + 1)).astype(np.float32)  # [N, B]
    stated = sure @ bins
    found = []
    at_once = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, _IF_TRUE_DRAWS, at_once):
        shape = (min(at_once, _IF_TRUE_DRAWS - start), n)
        together = rng.random(shape, np.float32) < math.sqrt(correlation)
        of_source = rng.random((shape[0], n_sources), np.float32)[:, source]
        right = np.where(together, of_source, rng.random(shape, np.float32)) < sure
        found.append(np.abs(stated - right.astype(np.float32) @ bins).sum(axis=1) / n)
    return np.concatenate(found)


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
