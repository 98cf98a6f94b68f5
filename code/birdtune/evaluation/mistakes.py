"""Which recordings are taken for a class that they are not of, and which are not recognised as theirs, and where.

    scores of recordings and of their windows, targets ─▶ mistakes ─▶ rows of mistakes.csv

Of a recording with one class that is taken for another, both are listed: a false positive of the one that it is taken
for, and a false negative of its own.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.scores import Bools, Floats, Ints

TABLE_NAME = "mistakes.csv"
COLUMNS = (
    "recording", "start_s", "kind", "class", "score", "true_classes", "predicted", "predicted_score",
    "source_recording",
)  # fmt: skip
FALSE_POSITIVE, FALSE_NEGATIVE = "false positive", "false negative"
# Of classes that are each asked for by themselves, and whose scores are not calibrated yet.
THRESHOLD = 0.5


def predicted_classes(scores: Floats, *, several: bool) -> Bools:
    """The classes that recordings are taken for. [N, C]

    Args:
        several: whether a recording may have several classes, or none: all from a score of 0.5 on; else the highest.
    """
    if several:
        return np.asarray(scores >= THRESHOLD)
    return np.asarray(np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None])


def peaks(window_scores: Floats, recording: Ints, start_s: npt.NDArray[Any]) -> Floats:
    """Where the window with the highest score of each class begins, in seconds. [N, C]

    Args:
        window_scores: [P, C].
        recording: [P] which of the N recordings a window is of; each has one, and they ascend.
        start_s: [P] where it begins.
    """
    order = np.argsort(-window_scores, axis=0, kind="stable")  # [P, C] of equals, the first window
    highest = np.take_along_axis(order, np.argsort(recording[order], axis=0, kind="stable"), axis=0)
    first = np.searchsorted(recording, np.unique(recording))
    return np.asarray(start_s[highest[first]], np.float64)


def mistakes(
    scores: Floats,
    peak_s: Floats,
    positive: Bools,
    known: Bools,
    *,
    recordings: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[str],
    several: bool,
    negative: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Rows with `COLUMNS`: false positives, then false negatives, the clearest first.

    `start_s` is where the window begins that has the highest score of the `class`; `true_classes` and `predicted` are
    lists, and `predicted_score` is the highest of all scores.

    Args:
        scores, peak_s: [N, C] of the recordings, and as `peaks`.
        positive, known: [N, C] their classes, and where these are known.
        recordings, groups: [N] their names, and the source recordings that they come from.
        several: as `predicted_classes`.
        negative: classes that are never a decision, and never missed.
    """
    predicted = predicted_classes(scores, several=several)
    is_wrong = (predicted != positive) & known & ~np.isin(np.asarray(classes, object).astype(str), list(negative))

    def named(row: Bools) -> list[str]:
        return [classes[column] for column in np.flatnonzero(row).tolist()]

    rows = [
        {
            "recording": recordings[n],
            "start_s": round(float(peak_s[n, c]), 2),
            "kind": FALSE_POSITIVE if predicted[n, c] else FALSE_NEGATIVE,
            "class": classes[c],
            "score": round(float(scores[n, c]), 4),
            "true_classes": named(positive[n]),
            "predicted": named(predicted[n]),
            "predicted_score": round(float(scores[n].max()), 4),
            "source_recording": groups[n],
        }
        for n, c in np.argwhere(is_wrong).tolist()
    ]

    def clearest(row: dict[str, Any]) -> tuple[bool, float, str]:
        missed = row["kind"] == FALSE_NEGATIVE
        return missed, row["score"] if missed else -row["score"], row["recording"]

    return sorted(rows, key=clearest)
