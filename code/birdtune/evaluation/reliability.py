"""Calibration of the scores: stated confidence against the share of right predictions.

    Scores, and what they were before calibration ─▶ evaluate_calibration ─▶ a JSON-able dict

The confidence of a recording is its highest score; it is right if that is the score of one of its classes. Where labels
have times, the same holds of windows, which have classes of their own. Expected
calibration error (ECE; Naeini et al. 2015) with bins of equal mass: recordings, sorted by confidence, are cut into up
to ten bins of equal size (at least five each); in each, the mean confidence and the share of right predictions are
compared; the differences, weighted by the bins' sizes, are summed. Bins of equal width would leave most bins of a good
classifier almost empty.

The ECE of few recordings is above zero even under perfect calibration, because shares of few are rough. How far, is
computed by drawing outcomes that are right as often as the confidence says (Bröcker & Smith 2007): `ece_null`.
Recordings of one source are right or wrong together, so their outcomes are drawn with the correlation that they show:
drawn independently, chance would look far smaller than it is (docs/statistics.md has the figures).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.bootstrap import Bools, Bootstrap, interval
from birdtune.evaluation.scores import POSITIVE, Floats, Ints, Scores, clip_scores

MOST_BINS, FEWEST_IN_A_BIN = 10, 5
# What the report says in a sentence: recordings whose score is about this, give or take.
AROUND, WITHIN = 0.8, 0.1
_NULL_DRAWS = 1000
# Of more windows, evenly spaced ones are taken: what they add is little, as windows of a source are alike.
_MOST_WINDOWS = 20_000
_NULL_QUANTILE = 0.975
# Outcomes that are drawn at a time, so that memory stays flat.
_DRAWN_AT_ONCE = 1_000_000


def evaluate_calibration(scores: Scores, before: npt.NDArray[Any], *, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """How far confidence and accuracy differ, before and after calibration.

    Args:
        scores: one part of the split, as it is served.
        before: scores before calibration, of recordings [N, C], or of windows [P, C] where these have targets.
        n_bootstrap: replicates behind the intervals; source recordings are drawn.
        seed: of all drawing.

    Returns:
        `before`, `after`: each `ece`, `ece_ci`, `ece_null` (its mean under perfect calibration) and `ece_null_upper`
        (97.5 % of such draws stay below), `source_correlation` (of outcomes within a source, 0…1, that these draws
        have), `confidence` (mean), `accuracy`, and `bins` with `lo`, `hi`, `count`, `confidence`, `accuracy`; `around`:
        `score`, `lo`, `hi`, `count`, `right`, `share`, `share_ci` of those whose confidence is about 0.8; `of`: whether
        all this is of "recordings" or of "windows".
    """
    bootstrap, of = Bootstrap(scores.groups, n_bootstrap, seed), "recordings"
    after, positive = clip_scores(scores), scores.positive
    if scores.window_targets is not None:
        chosen = np.arange(0, len(scores.window_recording), -(-len(scores.window_recording) // _MOST_WINDOWS))
        targets, known = scores.truth_of_windows(chosen)
        asked = known.any(axis=1)
        chosen, known = chosen[asked], known[asked]
        bootstrap, of = bootstrap.at(scores.window_recording[chosen]), "windows"
        # A class of which nobody knows whether it is in a window is no answer for it.
        after, before = np.where(known, scores.window_scores[chosen], 0), np.where(known, before[chosen], 0)
        positive = np.asarray((targets[asked] >= POSITIVE) & known)
    return {
        "of": of,
        "before": _calibration(before, positive, bootstrap, seed),
        "after": _calibration(after, positive, bootstrap, seed),
        "around": _around(after, positive, bootstrap),
    }


def _calibration(class_scores: npt.NDArray[Any], positive: Bools, bootstrap: Bootstrap, seed: int) -> dict[str, Any]:
    confidence, right = _highest(class_scores, positive)
    place = equal_mass(confidence)
    ece = calibration_error(confidence, right, place)
    correlation = source_correlation(confidence, right, bootstrap.index)
    null = _null_distribution(confidence, place, bootstrap.index, correlation, seed)
    return {
        "ece": ece,
        "ece_ci": interval(_drawn(confidence, right, place, bootstrap), bootstrap.n_groups, centre=ece),
        "ece_null": float(null.mean()),
        "ece_null_upper": float(np.quantile(null, _NULL_QUANTILE)),
        "source_correlation": correlation,
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "bins": bins(confidence, right, place),
    }


def _highest(class_scores: npt.NDArray[Any], positive: Bools) -> tuple[Floats, Bools]:
    """The highest score of each item, and whether it is that of one of its classes. [N] each"""
    right = np.take_along_axis(positive, class_scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    return class_scores.max(axis=1).astype(np.float64), right


def equal_mass(confidence: Floats) -> Ints:
    """The bin of each recording: bins of equal size, equal confidences in their order. [N]"""
    n_bins = max(1, min(MOST_BINS, len(confidence) // FEWEST_IN_A_BIN))
    place = np.empty(len(confidence), np.int64)
    for number, members in enumerate(np.array_split(np.argsort(confidence, kind="stable"), n_bins)):
        place[members] = number
    return place


def calibration_error(confidence: Floats, right: Bools, place: Ints) -> float:
    """Σ over the bins of |mean confidence - share of right predictions|, weighted by their sizes. 0…1"""
    return float(np.abs(np.bincount(place, confidence - right)).sum() / len(confidence))


def bins(confidence: Floats, right: Bools, place: Ints) -> list[dict[str, Any]]:
    """The bins, of the lowest confidence first."""
    rows = []
    for number in range(int(place.max()) + 1):
        inside = place == number
        rows.append(
            {
                "lo": float(confidence[inside].min()),
                "hi": float(confidence[inside].max()),
                "count": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
            }
        )
    return rows


def _drawn(confidence: Floats, right: Bools, place: Ints, bootstrap: Bootstrap) -> Floats:
    """The ECE of every replicate; recordings keep their bins. [n]"""
    off = np.zeros((bootstrap.n_groups, int(place.max()) + 1))
    np.add.at(off, (bootstrap.index, place), confidence - right)
    size = bootstrap.per_group(np.ones(len(confidence)))
    found = [np.abs(weights.T @ off).sum(axis=1) / (weights.T @ size) for weights in bootstrap.blocks()]
    return np.concatenate(found) if found else np.zeros(0)


def source_correlation(confidence: Floats, right: Bools, source: Ints) -> float:
    """How far outcomes of one source agree beyond what their confidences say: 0 not at all, 1 wholly.

    The products of right - confidence over all pairs of a source's recordings, summed, by what that sum would be on
    average if each source's outcomes came from one draw (right where confidence > u, with one u for all of them).
    Miscalibration raises it, which makes the null distribution wider, never narrower.

    Args:
        confidence: [N]; right: [N]; source: [N] number of each one's source.
    """
    off = right - confidence
    found = float((np.bincount(source, off) ** 2).sum() - (off**2).sum())
    # One draw for both: the covariance of a pair is lower · (1 - higher). In their order, each meets all lower ones.
    order = np.lexsort((confidence, source))
    ordered, first = confidence[order], np.searchsorted(source[order], source[order])
    below = np.concatenate([[0.0], np.cumsum(ordered)])  # [N + 1]
    wholly = 2.0 * float(((1.0 - ordered) * (below[:-1] - below[first])).sum())
    return min(1.0, max(0.0, found / wholly)) if wholly > 0.0 else 0.0


def _null_distribution(confidence: Floats, place: Ints, source: Ints, correlation: float, seed: int) -> Floats:
    """ECEs under perfect calibration, with outcomes that are correlated within a source. [draws]

    An outcome follows its source's draw with probability √correlation, else one of its own, so that two of a source
    share a draw with probability `correlation`.
    """
    rng = np.random.default_rng(seed)
    n, n_sources = len(confidence), int(source.max()) + 1
    members = (place[:, None] == np.arange(place.max() + 1)).astype(np.float32)  # [N, B]
    stated = confidence @ members
    found = []
    at_once = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, _NULL_DRAWS, at_once):
        shape = (min(at_once, _NULL_DRAWS - start), n)
        together = rng.random(shape, np.float32) < math.sqrt(correlation)
        of_source = rng.random((shape[0], n_sources), np.float32)[:, source]
        right = np.where(together, of_source, rng.random(shape, np.float32)) < confidence
        found.append(np.abs(stated - right.astype(np.float32) @ members).sum(axis=1) / n)
    return np.concatenate(found)


def _around(class_scores: npt.NDArray[Any], positive: Bools, bootstrap: Bootstrap) -> dict[str, Any]:
    confidence, right = _highest(class_scores, positive)
    inside = (confidence >= AROUND - WITHIN) & (confidence < AROUND + WITHIN)
    share, share_ci = bootstrap.share(right, inside)
    return {
        "score": AROUND,
        "lo": AROUND - WITHIN,
        "hi": AROUND + WITHIN,
        "count": int(inside.sum()),
        "right": int((right & inside).sum()),
        "share": share,
        "share_ci": share_ci,
    }
