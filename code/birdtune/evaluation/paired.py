"""Which of two is better, on the same recordings.

    scores [N, C] of one and of another, labels, sources ─▶ figures of each, and their difference with an interval

The score is the mean of accuracy and macro average precision, by which training chooses the best epoch, too. Precision
alone does not see one class drowning the others; accuracy alone moves in steps of one recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from birdtune.evaluation.metrics import Draws, difference_interval, interval, ranking_replicates

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figures:
    """How good some scores are; the interval is that of the accuracy, over source recordings."""

    score: float
    accuracy: float
    macro_ap: float
    low: float | None
    high: float | None


def figures(scores: Floats, labels: Ints, draws: Draws) -> Figures:
    """Judge scores [N, C] of recordings with labels [N]; every class present has an average precision."""
    right = scores.argmax(axis=1) == labels
    each = [average_precision_score(labels == c, scores[:, c]) for c in np.unique(labels)]
    accuracy, macro_ap = float(right.mean()), float(np.mean(each))
    low, high = interval(_accuracies(right, draws), draws.n_groups) or (None, None)
    return Figures((accuracy + macro_ap) / 2, accuracy, macro_ap, low, high)


def difference(
    first: Sequence[Floats], second: Sequence[Floats], labels: Ints, draws: Draws
) -> dict[str, Any]:
    """How much better the first is than the second, each judged several times.

    Args:
        first, second: scores [N, C] of each time.

    Returns:
        `score`: the difference of the mean scores; `low`, `high`: its 95 % interval, source by source, in pairs.
    """
    gains = _replicates(first, labels, draws) - _replicates(second, labels, draws)  # [n]
    gain = _mean_score(first, labels, draws) - _mean_score(second, labels, draws)
    low, high = difference_interval(gains, draws.n_groups, centre=gain) or (gain, gain)
    return {"score": gain, "low": low, "high": high}


def _mean_score(several: Sequence[Floats], labels: Ints, draws: Draws) -> float:
    return float(np.mean([figures(scores, labels, draws).score for scores in several]))


def _replicates(several: Sequence[Floats], labels: Ints, draws: Draws) -> Floats:
    """The mean score in each replicate. [n]"""
    found = []
    for scores in several:
        each = [
            ranking_replicates(scores[:, c], labels == c, draws.index, draws)[0] for c in np.unique(labels)
        ]
        present = np.isfinite(each)  # [C, n] a class that was not drawn has none
        precision = np.where(present, each, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
        found.append((_accuracies(scores.argmax(axis=1) == labels, draws) + precision) / 2)
    return np.asarray(np.mean(found, axis=0))


def _accuracies(right: npt.NDArray[np.bool_], draws: Draws) -> Floats:
    everything = draws.per_group(np.ones(len(right)), draws.index)
    return draws.ratio(draws.per_group(right, draws.index), everything)
