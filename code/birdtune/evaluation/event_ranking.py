"""Detections ranked by their scores: average precision, and recall at a rate of false alarms.

    annotated events, detected events and their scores, of each recording ─▶ rank ─▶ Ranked
    Ranked, hours ─▶ ranking ─▶ average precision of each class; recall at so many false alarms an hour

Only what was listed is ranked: below the threshold from which detections are listed, nothing is known. An annotated
event that none matches is never recalled.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.bootstrap import Bools, Bootstrap, Floats, Ints, divide, interval, mean_defined
from birdtune.evaluation.event_metrics import Event, Fits, columns_and_times

# Alarms an hour at which recall is reported: one to listen to now and then, and what a person can go through.
RATES_PER_HOUR = (1.0, 10.0)


class Ranked(NamedTuple):
    """The detections of all recordings, the highest score first.

    Attributes:
        column, recording: [D] of each; score: [D]; right: [D] whether it matches an annotated event.
        n_annotated: [N, C] events of each recording.
    """

    column: Ints
    recording: Ints
    score: Floats
    right: Bools
    n_annotated: Ints

    def of(self, column: int) -> "Ranked":
        """Those of one class."""
        own = self.column == column
        return Ranked(
            self.column[own], self.recording[own], self.score[own], self.right[own],
            self.n_annotated[:, column : column + 1],
        )  # fmt: skip


def rank(
    events: Sequence[tuple[Sequence[Event], Sequence[Event]]], scores: Sequence[Sequence[float]], n_classes: int,
    fits: Fits,
) -> Ranked:  # fmt: skip
    """Match detections with annotated events, those with the highest scores first.

    At whatever score the list is cut, as many match as can: a later one may take the place of an earlier one if that
    finds another, so that an earlier one which was right stays right.

    Args:
        events: of each recording, annotated and detected; scores: of the detected ones.
    """
    n_annotated = np.zeros((len(events), n_classes), np.int64)
    found = []
    for number, ((annotated, detected), own) in enumerate(zip(events, scores, strict=True)):
        columns, times = columns_and_times(annotated)
        there, where = columns_and_times(detected)
        n_annotated[number] = np.bincount(columns, minlength=n_classes)
        order = np.argsort(-np.asarray(own, np.float64), kind="stable")
        can = fits(times, where) & (columns[:, None] == there)  # [A, D]
        right = _matched_in_order(can[:, order])
        found.append((there[order], np.full(len(order), number), np.asarray(own, np.float64)[order], right))
    column, recording, score, right = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(-score, kind="stable")
    return Ranked(column[order], recording[order], score[order], right[order], n_annotated)


def _matched_in_order(can: Bools) -> Bools:
    """Which detections get an annotated event, each asking in turn, and others giving way where they can. [D]"""
    owner = np.full(can.shape[0], -1, np.int64)  # of each annotated event
    held: dict[int, int] = {}
    for detection in range(can.shape[1]):
        came: dict[int, int] = {}  # annotated event → the detection that would take it
        queue = [detection]
        free = -1
        for asking in queue:
            for event in np.flatnonzero(can[:, asking]).tolist():
                if event not in came:
                    came[event] = asking
                    if owner[event] < 0:
                        free = event
                        break
                    queue.append(int(owner[event]))
            if free >= 0:
                break
        while free >= 0:
            taker = came[free]
            before = held.get(taker, -1)
            owner[free], held[taker] = taker, free
            free = -1 if taker == detection else before
    return np.isin(np.arange(can.shape[1]), list(held))


def ranking(
    ranked: Ranked, classes: Sequence[str], groups: Sequence[str], *, hours: float | None, rates: Sequence[float],
    n_bootstrap: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Figures of ranked detections.

    Args:
        groups: [N] the source recording of each recording.
        hours: of all recordings together; None: not known, so that there is no rate.
        rates: false alarms an hour.

    Returns:
        `macro_ap` (+ `_ci`; mean over classes that were annotated); `hours`; `recall_at`, of all classes with one
        threshold for all: `false_alarms_per_hour`, `recall`, `score` (from which on; None: from none on),
        `whole_list` (whether all that was listed has no more false alarms, so that the recall is at least that);
        `per_class`: `class`, `ap`, `recall_at`, each with a threshold of its own.
    """
    bootstrap = Bootstrap(groups, n_bootstrap, seed)
    ones = np.ones(len(groups))
    each = [ranked.of(column) for column in range(len(classes))]
    ap = np.array([_average_precision(one, ones) for one in each])
    drawn = np.array([mean_defined(np.array([_average_precision(one, times) for one in each]))
                      for times in bootstrap.weights()])  # fmt: skip
    macro = float(mean_defined(ap))
    return {
        "macro_ap": macro,
        "macro_ap_ci": interval(drawn, bootstrap.n_groups, centre=macro),
        "hours": hours,
        "recall_at": _recall_at(ranked, hours, rates),
        "per_class": [
            {"class": name, "ap": float(ap[c]) if np.isfinite(ap[c]) else None,
             "recall_at": _recall_at(each[c], hours, rates)}
            for c, name in enumerate(classes)
        ],
    }  # fmt: skip


def _ends(score: Floats) -> Ints:
    """The last of each run of equal scores: only between different ones can a list be cut."""
    return np.flatnonzero(np.append(score[1:] != score[:-1], True)) if score.size else np.zeros(0, np.int64)


def _average_precision(ranked: Ranked, times: Floats) -> float:
    """Precision at each distinct score, times the share of events recalled there, summed; NaN without events.

    Args:
        times: [N] how often each recording is drawn.
    """
    n = float(times @ ranked.n_annotated[:, 0])
    if not n:
        return float("nan")
    weight = times[ranked.recording]
    ends = _ends(ranked.score)
    right, listed = (np.cumsum(part)[ends] for part in (weight * ranked.right, weight))
    gained: npt.NDArray[Any] = np.diff(right, prepend=0.0)
    return float((np.nan_to_num(divide(right, listed)) * gained).sum() / n)


def _recall_at(ranked: Ranked, hours: float | None, rates: Sequence[float]) -> list[dict[str, Any]]:
    """The recall from the lowest score on that keeps false alarms within each rate."""
    n = int(ranked.n_annotated.sum())
    if not hours or not n:
        return []
    ends = _ends(ranked.score)
    false, right = np.cumsum(~ranked.right)[ends], np.cumsum(ranked.right)[ends]
    found = []
    for rate in rates:
        within = int(np.searchsorted(false, rate * hours, side="right"))  # false alarms never fall
        found.append({
            "false_alarms_per_hour": rate, "recall": float(right[within - 1] / n) if within else 0.0,
            "score": float(ranked.score[ends[within - 1]]) if within else None, "whole_list": within == len(ends),
        })  # fmt: skip
    return found
