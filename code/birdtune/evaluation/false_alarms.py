"""False alarms: unbroken runs of windows whose score for a class reaches its threshold, in sound without any class.

    Scores of background or noise, Thresholds ─▶ count ─▶ alarms an hour
    Scores of validation, allowed alarms an hour ─▶ thresholds
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from birdtune.evaluation.bootstrap import Floats
from birdtune.evaluation.decision import LEAST, UNKNOWN, Thresholds
from birdtune.evaluation.scores import Scores, clip_scores, subset

_SECONDS_AN_HOUR = 3600.0


def hours_of(scores: Scores, window_s: float) -> float:
    """Hours of sound: each recording from its beginning to the end of its last window."""
    last = np.zeros(len(scores.recordings))
    np.maximum.at(last, scores.window_recording, scores.window_start_s.astype(np.float64))
    return float((last + window_s).sum() / _SECONDS_AN_HOUR)


def of_background(scores: Scores, background: Sequence[str]) -> Scores | None:
    """The recordings of background classes and of no class at all, if there are any."""
    columns = np.isin(scores.classes, list(background))
    chosen = np.asarray(~(scores.positive & ~columns).any(axis=1) & (scores.known | columns).all(axis=1))
    return subset(scores, chosen) if chosen.any() else None


def count(scores: Scores, thresholds: Thresholds, window_s: float) -> dict[str, Any]:
    """Alarms in sound that holds no class: in an hour, in total and of each class that gave any.

    Returns:
        `hours`, `recordings`, `recordings_decided` (for which a class is decided as a whole), `alarms`,
        `alarms_per_hour`, `windows_passing` (their share), `per_class`: `class`, `alarms`, `alarms_per_hour`.
    """
    hours = hours_of(scores, window_s)
    counts = {
        name: count_alarms(scores, c, thresholds.values[c])
        for c, name in enumerate(scores.classes)
        if thresholds.asked[c]
    }
    decided = thresholds.decide(clip_scores(scores), scores.ood_score) != UNKNOWN
    total = sum(counts.values())
    return {
        "hours": hours,
        "recordings": len(scores.recordings),
        "recordings_decided": int(decided.sum()),
        "alarms": total,
        "alarms_per_hour": total / hours,
        "windows_passing": float(thresholds.passing(scores.window_scores).any(axis=1).mean()),
        "per_class": [
            {"class": name, "alarms": n, "alarms_per_hour": n / hours}
            for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            if n
        ],
    }


def count_alarms(scores: Scores, column: int, threshold: float) -> int:
    """Unbroken runs of windows whose score for a class passes; windows of a recording follow one another."""
    begin, join = _runs(scores, column)
    return _at_least(begin, threshold) - _at_least(join, threshold)


def _runs(scores: Scores, column: int) -> tuple[Floats, Floats]:
    """Scores at which alarms begin, and those at which they join: above t, alarms = #begin ≥ t - #join ≥ t."""
    values = scores.window_scores[:, column].astype(np.float64)
    next_to = scores.window_recording[1:] == scores.window_recording[:-1]
    return np.sort(values), np.sort(np.minimum(values[1:], values[:-1])[next_to])


def _at_least(ordered: Floats, threshold: float) -> int:
    return int(len(ordered) - np.searchsorted(ordered, threshold, side="left"))


# ---- thresholds ---------------------------------------------------------------------------------


def thresholds(
    scores: Scores, asked: Sequence[int], background: Sequence[str], per_hour: float, window_s: float
) -> tuple[float | None, dict[int, float], str]:
    """The lowest thresholds that keep alarms within a rate.

    Args:
        scores: validation; asked: columns of the classes that can be a decision.
        per_hour: allowed over all classes together.
        window_s: length of a window in seconds.

    Returns:
        that of all classes together, or None; those of classes with one of their own; why there are none, or "".
    """
    negatives = of_background(scores, background)
    if negatives is None:
        return None, {}, "There is no background among the validation recordings to count false alarms on."
    hours = hours_of(negatives, window_s)
    shared = _lowest(negatives, asked, per_hour * hours)
    if shared is None:
        minutes = f"{60 * hours:.1f} min"
        why = f"Validation has {minutes} of background, too little to estimate a rate of {per_hour:g} alarms an hour."
        return None, {}, why
    each = {c: _lowest(negatives, [c], per_hour * hours / len(asked)) for c in asked}
    return shared, {c: value for c, value in each.items() if value is not None}, ""


def _lowest(scores: Scores, columns: Sequence[int], allowed: float) -> float | None:
    """The lowest threshold from which on one alarm more than was counted, over some columns, is still allowed."""
    if allowed < 1.0:
        return None
    runs = [_runs(scores, c) for c in columns]
    candidates = np.unique(np.concatenate([begin for begin, _ in runs]))[::-1]  # falling
    counts = np.zeros(len(candidates), np.int64)
    for begin, join in runs:
        for sign, ordered in ((1, begin), (-1, join)):
            counts += sign * (len(ordered) - np.searchsorted(ordered, candidates, side="left"))
    broken = np.flatnonzero(counts + 1 > allowed)
    if not broken.size:
        return float(candidates[-1]) / 2
    if broken[0] == 0:
        return float((candidates[0] + 1.0) / 2) if candidates[0] < 1.0 else None
    return between(candidates, int(broken[0]) - 1)


def between(ranked: Floats, last: int) -> float:
    """Half-way from the last score that passes to the next, so that rounding decides nothing. ranked: falling."""
    return float((ranked[last] + ranked[last + 1]) / 2) if last + 1 < len(ranked) else LEAST
