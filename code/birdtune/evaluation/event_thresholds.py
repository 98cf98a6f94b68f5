"""From which score on a class is detected, where labels have times; chosen on held-out recordings.

    annotated and detected events of these at each of some thresholds ─▶ choose ─▶ Thresholds of detections

A threshold of recordings is about the mean of a recording's windows, which says little of one window. Here detections
are made at some thresholds and compared with the annotated events. The goal is the highest F1, or the lowest threshold
with at most so many false detections in an hour. It is chosen on all classes together, and once more for each class
with enough events. Unlike that of a decision on a recording, it may be below 0.5: what is missed counts as much as what
is false.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy.special

from birdtune.evaluation.bootstrap import Ints, divide
from birdtune.evaluation.decision import OWN, SHARED, Thresholds
from birdtune.evaluation.event_metrics import by_overlap, event_counts
from birdtune.evaluation.recording_events import Compared

# A class with fewer events there follows all classes together: what is chosen on fewer is chance more than the class.
FEWEST_EVENTS = 100
# F1 of some hundred events is known no better than this. Thresholds whose F1 is so near to the highest are as good, and
# the one in the middle of them is farthest from where F1 falls.
_AS_GOOD = 0.03
# Those that are tried, rising, evenly spread in log odds: 0.018 to 0.999.
TRIED: tuple[float, ...] = tuple(np.round(scipy.special.expit(np.arange(-4.0, 7.01, 0.5)), 6).tolist())


def choose(
    compared_at: Callable[[Thresholds], tuple[Sequence[str], Sequence[Compared]]],
    classes: Sequence[str],
    of_recordings: Thresholds,
    *,
    false_alarms_per_hour: float | None,
) -> Thresholds | None:
    """The thresholds of detections.

    Args:
        compared_at: `recording_events.compare` of held-out recordings, detected at some thresholds.
        classes: of the scores.
        of_recordings: those of classes that are not annotated stay.
        false_alarms_per_hour: allowed over all classes together; None: the highest F1.

    Returns:
        None: no event is annotated, so that all stay.
    """
    marked, compared = compared_at(of_recordings)
    if not any(one.annotated for one in compared):
        return None
    n, hours = len(marked), sum(one.duration_s for one in compared) / 3600
    counts = np.stack([_counts(compared_at(_at(of_recordings, each))[1], n) for each in TRIED], axis=1)  # [3, T, C]
    allowed = None if false_alarms_per_hour is None else false_alarms_per_hour * hours
    goal, reasons = f"at most {false_alarms_per_hour} false detections an hour", []
    if allowed is not None and _best(counts.sum(axis=2), allowed) is None:
        reasons.append(
            f"Held-out recordings have {60 * hours:.1f} annotated min, in which no threshold of detections can be "
            f"shown to keep {false_alarms_per_hour:g} false alarms an hour: they have the highest F1 of events."
        )
        allowed = None
    if allowed is None:
        goal = "the highest F1 of events"
    shared = _best(counts.sum(axis=2), allowed)
    assert shared is not None
    values, origins = list(of_recordings.values), list(of_recordings.origins)
    columns = [classes.index(name) for name in marked]
    for k, column in enumerate(columns):
        is_many = counts[[0, 2], 0, k].sum() >= FEWEST_EVENTS
        own = _best(counts[:, :, k], None if allowed is None else allowed / n) if is_many else None
        values[column], origins[column] = (shared, SHARED) if own is None else (own, OWN)
    if few := sum(origins[column] == SHARED for column in columns):
        reasons.append(
            f"{few} of {n} classes have too few annotated events in held-out recordings (it takes {FEWEST_EVENTS}) for "
            "a threshold of detections of their own; the one chosen on all classes together stands in."
        )
    return Thresholds(tuple(values), tuple(origins), goal, " ".join(reasons))


def _at(thresholds: Thresholds, score: float) -> Thresholds:
    """One for all classes that can be a decision."""
    return replace(thresholds, values=tuple(score if asked else np.inf for asked in thresholds.asked))


def _counts(compared: Sequence[Compared], n: int) -> Ints:
    """Right, false and missed events. [3, C]"""
    each = [event_counts(one.annotated, one.detected, n, by_overlap()) for one in compared]
    found: Ints = np.stack([(counts.right, counts.false, counts.missed) for counts in each]).sum(axis=0)
    return found


def _best(counts: Ints, allowed: float | None) -> float | None:
    """A threshold by right, false and missed events at each [3, T].

    Args:
        allowed: the lowest from which on one false event more than was counted is still allowed, or None if there is
            none; else the one in the middle of those with the highest F1, or nearly.
    """
    right, false, missed = counts
    if allowed is None:
        f1 = divide(2 * right, 2 * right + false + missed)
        best = np.flatnonzero(f1 >= f1.max() - _AS_GOOD)
        return TRIED[int(best[len(best) // 2])]
    too_many = np.flatnonzero(false + 1 > allowed)
    first = int(too_many[-1]) + 1 if too_many.size else 0
    return TRIED[first] if first < len(TRIED) else None
