"""Detections beside annotations: F1 and error rate by events and by segments, with intervals over source recordings.

    events of a recording, annotated and detected ─▶ event_counts | segment_counts ─▶ Counts
    Counts of all recordings, their sources ─▶ summary ─▶ precision, recall, F1, error rate; each class's

An event that was annotated and one that was detected match if they are of one class and overlap enough (`by_overlap`)
or begin and end at nearly the same times (`by_collar`); each matches one other at most, so that as many do as possible.
By segments, time is cut into pieces of a length, in each of which a class is there or not (Mesaros et al. 2016).
Figures are those of `sed_eval` on the same events.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from birdtune.evaluation.bootstrap import Bools, Bootstrap, Floats, Ints, divide, interval

# Overlap in time by union in time from which on two events are one, as in detection challenges of bird sounds.
LEAST_OVERLAP = 0.3
SEGMENT_S = 1.0
_ROUNDING = 1e-9


class Event(NamedTuple):
    """A class, from when to when in a recording."""

    column: int
    start_s: float
    end_s: float


# Begins and ends of annotated events [A, 2] and of detected ones [D, 2] → which fit each other in time. [A, D]
Fits = Callable[[Floats, Floats], Bools]


def by_overlap(least: float = LEAST_OVERLAP) -> Fits:
    """Events fit whose overlap is at least this share of their union."""

    def fits(annotated: Floats, detected: Floats) -> Bools:
        begin = np.maximum(annotated[:, None, 0], detected[None, :, 0])
        end = np.minimum(annotated[:, None, 1], detected[None, :, 1])
        both = np.clip(end - begin, 0.0, None)
        union = np.diff(annotated) + np.diff(detected).T - both
        return np.asarray((both > 0) & (both >= least * union - _ROUNDING))

    return fits


def by_collar(collar_s: float = 0.2, share: float = 0.5) -> Fits:
    """Events fit that begin within `collar_s` of each other, and end so or within a share of the annotated length."""

    def fits(annotated: Floats, detected: Floats) -> Bools:
        begin, end = (np.abs(annotated[:, None, k] - detected[None, :, k]) for k in (0, 1))
        allowed = np.maximum(collar_s, share * np.diff(annotated))
        return np.asarray((begin <= collar_s) & (end <= allowed))

    return fits


@dataclass(frozen=True, eq=False)
class Counts:
    """What of a recording was right.

    Attributes:
        right, false, missed: [C] events, or segments.
        substituted: a class detected where another one is, counted once in place of a false and a missed one.
    """

    right: Ints
    false: Ints
    missed: Ints
    substituted: int

    @property
    def errors(self) -> int:
        """Substitutions, and what else is false or missed."""
        return int(self.false.sum() + self.missed.sum()) - self.substituted


def event_counts(annotated: Sequence[Event], detected: Sequence[Event], n_classes: int, fits: Fits) -> Counts:
    """Counts of events of one recording."""
    given, times = zip(*(columns_and_times(events) for events in (annotated, detected)), strict=True)
    in_time = fits(times[0], times[1])  # [A, D]
    of_detected = matches(annotated, detected, fits)
    is_right = of_detected >= 0
    left = np.setdiff1d(np.arange(len(given[0])), of_detected)
    swapped = _matched(in_time[np.ix_(left, np.flatnonzero(~is_right))])
    right, found, there = (
        np.bincount(columns, minlength=n_classes) for columns in (given[1][is_right], given[1], given[0])
    )
    return Counts(right, found - right, there - right, int((swapped >= 0).sum()))


def matches(annotated: Sequence[Event], detected: Sequence[Event], fits: Fits) -> Ints:
    """Which annotated event of its class each detected one matches, or -1. [D]"""
    (of_annotated, annotated_s), (of_detected, detected_s) = columns_and_times(annotated), columns_and_times(detected)
    return _matched(fits(annotated_s, detected_s) & (of_annotated[:, None] == of_detected))


def columns_and_times(events: Sequence[Event]) -> tuple[Ints, Floats]:
    """Classes of some events, and their begins and ends. [n], [n, 2]"""
    columns = np.array([event.column for event in events], np.int64)
    return columns, np.array([event[1:] for event in events], np.float64).reshape(-1, 2)


def _matched(fits: Bools) -> Ints:
    """Pairs, as many as there can be: for each column of [A, D] its row, or -1. [D]"""
    if not fits.size:
        return np.full(fits.shape[1], -1, np.int64)
    return np.asarray(maximum_bipartite_matching(scipy.sparse.csr_array(fits), perm_type="row"), np.int64)


def segment_counts(
    annotated: Sequence[Event], detected: Sequence[Event], n_classes: int, duration_s: float,
    segment_s: float = SEGMENT_S,
) -> Counts:  # fmt: skip
    """Counts of segments of one recording."""
    n = max(1, int(np.ceil(duration_s / segment_s - _ROUNDING)))
    there, found = (_active(events, n_classes, n, segment_s) for events in (annotated, detected))  # [n, C]
    false, missed = found & ~there, there & ~found
    swapped = np.minimum(false.sum(axis=1), missed.sum(axis=1)).sum()
    return Counts((found & there).sum(axis=0), false.sum(axis=0), missed.sum(axis=0), int(swapped))


def _active(events: Sequence[Event], n_classes: int, n: int, segment_s: float) -> Bools:
    active = np.zeros((n, n_classes), np.bool_)
    for column, start_s, end_s in events:
        first = int(np.floor(start_s / segment_s + _ROUNDING))
        active[first : int(np.ceil(end_s / segment_s - _ROUNDING)), column] = True
    return active


def summary(
    counts: Sequence[Counts], groups: Sequence[str], classes: Sequence[str], *, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Figures over recordings.

    Args:
        groups: the source recording of each.

    Returns:
        `events` (annotated), `detections`, `precision`, `recall`, `f1` (each with `_ci`; over all events alike),
        `error_rate`, `macro_f1` (mean over classes that were annotated); `per_class`: `class`, `events`, `detections`,
        `precision`, `recall`, `f1`. None where undefined.
    """
    right, false, missed = (np.stack([getattr(each, name) for each in counts]) for name in ("right", "false", "missed"))
    bootstrap = Bootstrap(groups, n_bootstrap, seed)
    totals = [each.sum(axis=1) for each in (right, false, missed)]  # [N] each
    n_annotated = int(totals[0].sum() + totals[2].sum())
    found: dict[str, Any] = {"events": n_annotated, "detections": int(totals[0].sum() + totals[1].sum())}
    terms = {
        "precision": (totals[0], totals[0] + totals[1]),
        "recall": (totals[0], totals[0] + totals[2]),
        "f1": (2 * totals[0], 2 * totals[0] + totals[1] + totals[2]),
    }
    for name, (top, bottom) in terms.items():
        is_there = bool(bottom.any())
        found[name] = float(top.sum() / bottom.sum()) if is_there else None
        n_groups = bootstrap.n_groups_of(bottom > 0)
        found[f"{name}_ci"] = interval(bootstrap.ratio(top, bottom), n_groups) if is_there else None
    found["error_rate"] = sum(each.errors for each in counts) / n_annotated if n_annotated else None
    sums = [each.sum(axis=0) for each in (right, false, missed)]  # [C] each
    of_classes = _of_classes(*sums)
    of_annotated = of_classes[2][sums[0] + sums[2] > 0]
    found["macro_f1"] = float(of_annotated.mean()) if of_annotated.size else None
    found["per_class"] = [
        {
            "class": name, "events": int(sums[0][c] + sums[2][c]), "detections": int(sums[0][c] + sums[1][c]),
            **{key: _known(values[c]) for key, values in zip(("precision", "recall", "f1"), of_classes, strict=True)},
        }
        for c, name in enumerate(classes)
    ]  # fmt: skip
    return found


def _of_classes(right: Ints, false: Ints, missed: Ints) -> tuple[Floats, Floats, Floats]:
    return (
        divide(right, right + false), divide(right, right + missed), divide(2 * right, 2 * right + false + missed)
    )  # fmt: skip


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
