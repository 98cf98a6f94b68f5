"""From which score on an answer counts; chosen on validation, judged on test.

    Scores of validation ─▶ choose ─▶ Thresholds ─▶ answers: a class, or none

What people wish for is either a precision (of the recordings that a class's score passes for, so many are of it), or a
number of false alarms in an hour of background.

Of a precision, the lowest threshold is taken that keeps it with 95 % confidence (one-sided Clopper-Pearson bound; the
recordings of a source count as one together): the best of many cuts looks better than it is, and few recordings cannot
promise what many could. It is chosen on all classes together. A class has a lower one of its own where its recordings
alone prove that, and a higher one where they speak against the shared one. Where nothing can be proven, the score
itself stands in: calibrated, a score of 0.9 promises to be right nine times in ten. docs/statistics.md says what that
keeps, and what it costs. Of false alarms, one more than was heard must be allowed. Each class says which it got.

No threshold is below 0.5, whatever validation would allow: an answer ought to be at least as likely right as wrong, and
sounds that nobody trained on come with low scores.

A background class has a column of scores, for others lose to it, and is never an answer.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

from birdtune.evaluation.decision import BACKGROUND, NOMINAL, NONE, OWN, SHARED, STRANGEST, Thresholds
from birdtune.evaluation.metrics import Draws, interval
from birdtune.evaluation.scores import Floats, Scores, clip_scores

LEAST = 0.5
# A threshold is chosen where the wish is kept with the first confidence; a class speaks against the shared one where,
# with the second, it is not kept. Less proof is asked of that, since a higher threshold costs recall only.
CONFIDENCE, CONTRADICTION = 0.95, 0.8
_DECIMALS = 6
_SECONDS_AN_HOUR = 3600.0


def choose(
    scores: Scores | None,
    classes: Sequence[str],
    background: Sequence[str],
    *,
    precision: float,
    alarms_per_hour: float | None,
) -> Thresholds:
    """The thresholds that keep a wish.

    Args:
        scores: validation, as it is served; None if there is none.
        background: names of the classes that are no answer.
        precision: wanted; counts where `alarms_per_hour` is None or cannot be told.
        alarms_per_hour: wanted over all classes together, at most.
    """
    asked = [c for c, name in enumerate(classes) if name not in background]
    shared: float | None = None
    own: dict[int, float] = {}
    reasons = []
    if scores is not None and alarms_per_hour is not None:
        shared, own, why = _for_alarms(scores, asked, background, alarms_per_hour)
        reasons += [why] if why else []
    by_alarms = alarms_per_hour is not None and shared is not None
    if by_alarms:
        wish = f"at most {alarms_per_hour:g} false alarms an hour"
    else:
        wish = f"a precision of {precision:g}"
        if scores is not None:
            shared, own = _for_precision(scores, asked, precision)
    values, origins = [], []
    for c in range(len(classes)):
        if c not in asked:
            value, origin = float("inf"), BACKGROUND
        elif c in own:
            value, origin = own[c], OWN
        else:
            value, origin = (shared, SHARED) if shared is not None else (precision, NOMINAL)
        values.append(round(max(value, LEAST), _DECIMALS) if np.isfinite(value) else value)
        origins.append(origin)
    reasons += _reasons(origins, scores, None if by_alarms else precision)
    return Thresholds(tuple(values), tuple(origins), wish, " ".join(reasons))


def _reasons(origins: Sequence[str], scores: Scores | None, precision: float | None) -> list[str]:
    n = len([origin for origin in origins if origin != BACKGROUND])
    fewest = f"{_fewest(precision)} source recordings at least" if precision is not None else "more"
    if nominal := origins.count(NOMINAL):
        few = "no validation recordings" if scores is None else f"too few validation recordings (it takes {fewest})"
        of = "" if nominal == n else f" for {nominal} of {n} classes"
        return [f"There are {few} to choose thresholds on{of}: the wished precision stands in, as a score."]
    if lacking := origins.count(SHARED):
        return [
            f"{lacking} of {n} classes have too few validation recordings for a lower threshold of their own (it takes "
            f"{fewest}), or do not keep the wish with one; the one chosen on all classes together stands in."
        ]
    return []


def _fewest(precision: float) -> int:
    """Sources that prove a precision, all of them right."""
    return math.ceil(math.log(1.0 - CONFIDENCE) / math.log(precision))


def _source_share(scores: Scores) -> Floats:
    """Recordings of a source count as one together. [N]"""
    _, source, size = np.unique(np.asarray(scores.groups, object), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / size[source])


def _for_precision(
    scores: Scores, asked: Sequence[int], precision: float
) -> tuple[float | None, dict[int, float]]:
    """The threshold of all classes together, and those of the classes that need or deserve another."""
    clips, share = clip_scores(scores), _source_share(scores)
    columns = np.asarray(asked, np.int64)
    row, place = np.nonzero(clips[:, columns] >= LEAST)  # no other can pass
    column = columns[place]
    values, right, counts = clips[row, column], scores.labels[row] == column, share[row]
    shared = lowest_for_precision(values, right, counts, precision)
    found = {}
    for c in asked:
        inside = column == c
        own = _own(values[inside], right[inside], counts[inside], precision, precision if shared is None else shared)
        if own is not None:
            found[c] = own
    return shared, found


def _own(
    values: Floats, right: npt.NDArray[np.bool_], share: Floats, precision: float, standing: float
) -> float | None:
    """A class's own threshold instead of the `standing` one; None: that one does for it. Arguments as below."""
    proven = lowest_for_precision(values, right, share, precision)
    passing = values >= standing
    hits, tried = (share * right)[passing].sum(), share[passing].sum()
    contradicts = tried > 0 and _bound(hits + 1.0, tried - hits, CONTRADICTION) < precision
    if proven is not None and (proven < standing or contradicts):
        return proven
    return _raised(values[passing], right[passing], share[passing], precision) if contradicts else None


def lowest_for_precision(
    values: Floats, right: npt.NDArray[np.bool_], share: Floats, precision: float
) -> float | None:
    """The lowest threshold, from 0.5 on, at which the precision is kept with 95 % confidence; None if none does.

    Args:
        values: [M] scores; right: [M] whether each was of the class; share: [M] what each counts.
    """
    ranked, hits, tried, ends = _cuts(values, right, share)
    kept = np.flatnonzero(ends & (_bound(hits, tried - hits + 1.0, 1.0 - CONFIDENCE) >= precision))
    return _between(ranked, int(kept[-1])) if kept.size else None


def _raised(values: Floats, right: npt.NDArray[np.bool_], share: Floats, precision: float) -> float:
    """The lowest threshold at which the precision was seen, without proof; above all scores where there is none."""
    ranked, hits, tried, ends = _cuts(values, right, share)
    kept = np.flatnonzero(ends & (hits >= precision * tried))
    return _between(ranked, int(kept[-1])) if kept.size else float((ranked[0] + 1.0) / 2)


def _cuts(
    values: Floats, right: npt.NDArray[np.bool_], share: Floats
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.bool_]]:
    """Scores from `LEAST` on, falling; hits and all that passes down to each; whether a threshold may lie there."""
    order = np.argsort(-values, kind="stable")
    order = order[values[order] >= LEAST]
    ranked = values[order]
    ends = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]  # equals pass together
    return ranked, np.cumsum((share * right)[order]), np.cumsum(share[order]), ends


def _bound(hits: Any, others: Any, quantile: float) -> Any:
    """Quantile of the beta distribution; 0 where there are no hits, 1 where there are no others."""
    # Sums of shares: what is left of rounding is nothing.
    none, only = np.less(hits, 1e-9), np.less(others, 1e-9)
    inside = scipy.special.betaincinv(np.where(none, 1.0, hits), np.where(only, 1.0, others), quantile)
    return np.where(none, 0.0, np.where(only, 1.0, inside))


def _between(ranked: Floats, last: int) -> float:
    """Half-way from the last score that passes to the next, so that rounding decides nothing."""
    return float((ranked[last] + ranked[last + 1]) / 2) if last + 1 < len(ranked) else LEAST


# ---- false alarms -------------------------------------------------------------------------------


def hours_of(scores: Scores, patch_s: float) -> float:
    """Hours of sound: each recording from its beginning to the end of its last patch."""
    last = np.zeros(len(scores.recordings))
    np.maximum.at(last, scores.patch_recording, scores.patch_start_s.astype(np.float64))
    return float((last + patch_s).sum() / _SECONDS_AN_HOUR)


def only(scores: Scores, recordings: npt.NDArray[np.bool_]) -> Scores:
    """Some of the recordings."""
    number = np.cumsum(recordings) - 1
    patches = recordings[scores.patch_recording]
    chosen = np.flatnonzero(recordings)
    return Scores(
        classes=scores.classes,
        recordings=tuple(scores.recordings[k] for k in chosen),
        groups=tuple(scores.groups[k] for k in chosen),
        labels=scores.labels[chosen],
        patch_scores=scores.patch_scores[patches],
        patch_recording=number[scores.patch_recording[patches]],
        patch_start_s=scores.patch_start_s[patches],
        patch_weight=None if scores.patch_weight is None else scores.patch_weight[patches],
        pooled=None if scores.pooled is None else scores.pooled[chosen],
        strangeness=None if scores.strangeness is None else scores.strangeness[chosen],
    )


def of_background(scores: Scores, background: Sequence[str]) -> Scores | None:
    """The recordings of background classes, if there are any."""
    columns = [c for c, name in enumerate(scores.classes) if name in background]
    chosen = np.isin(scores.labels, columns)
    return only(scores, chosen) if chosen.any() else None


def _runs(scores: Scores, column: int) -> tuple[Floats, Floats]:
    """Scores at which alarms begin, and those at which they join: above t, alarms = #begin ≥ t - #join ≥ t."""
    values = scores.patch_scores[:, column].astype(np.float64)
    next_to = scores.patch_recording[1:] == scores.patch_recording[:-1]
    return np.sort(values), np.sort(np.minimum(values[1:], values[:-1])[next_to])


def count_alarms(scores: Scores, column: int, threshold: float) -> int:
    """Unbroken runs of patches whose score for a class passes; patches of a recording stand one after another."""
    begin, join = _runs(scores, column)
    return _at_least(begin, threshold) - _at_least(join, threshold)


def _at_least(ordered: Floats, threshold: float) -> int:
    return int(len(ordered) - np.searchsorted(ordered, threshold, side="left"))


def _for_alarms(
    scores: Scores, asked: Sequence[int], background: Sequence[str], per_hour: float
) -> tuple[float | None, dict[int, float], str]:
    heard = of_background(scores, background)
    if heard is None:
        return None, {}, "There is no background among the validation recordings to count false alarms on."
    hours = hours_of(heard, 0.96)
    shared = _lowest_for_alarms(heard, asked, per_hour * hours)
    if shared is None:
        minutes = f"{60 * hours:.1f} min"
        why = f"Validation has {minutes} of background, too little to tell {per_hour:g} false alarms an hour from more."
        return None, {}, why
    each = {c: _lowest_for_alarms(heard, [c], per_hour * hours / len(asked)) for c in asked}
    return shared, {c: value for c, value in each.items() if value is not None}, ""


def _lowest_for_alarms(scores: Scores, columns: Sequence[int], allowed: float) -> float | None:
    """The lowest threshold from which on up, in some columns together, one more than is heard is still allowed."""
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
    return _between(candidates, int(broken[0]) - 1)


def false_alarms(scores: Scores, thresholds: Thresholds, patch_s: float) -> dict[str, Any]:
    """What was heard in sound that holds no class: alarms in an hour, in total and of each class that gave any.

    An alarm is an unbroken run of patches of a recording whose score for a class passes its threshold.
    """
    hours = hours_of(scores, patch_s)
    counts = {
        name: count_alarms(scores, c, thresholds.values[c])
        for c, name in enumerate(scores.classes)
        if thresholds.origins[c] != BACKGROUND
    }
    passing = (scores.patch_scores >= np.asarray(thresholds.values)).any(axis=1)
    answered = thresholds.answers(clip_scores(scores), scores.strangeness) != NONE
    total = sum(counts.values())
    return {
        "hours": hours,
        "recordings": len(scores.recordings),
        "recordings_answered": int(answered.sum()),
        "alarms": total,
        "alarms_per_hour": total / hours,
        "patches_passing": float(passing.mean()),
        "per_class": [
            {"class": name, "alarms": count, "alarms_per_hour": count / hours}
            for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            if count
        ],
    }


# ---- judgement ----------------------------------------------------------------------------------


def judge_answers(scores: Scores, thresholds: Thresholds, *, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """How good the answers are that pass: over all recordings, and class by class.

    Returns:
        `answered` (recordings that got one), `answered_share`, `precision` (of the answers) and `recall` (of the
        recordings that are of a class that can be an answer), each with `_ci`; `per_class`: `class`, `answers`,
        `precision`, `recall`.
    """
    said = thresholds.answers(clip_scores(scores), scores.strangeness)
    draws = Draws(scores.groups, n_bootstrap, seed)
    given = said != NONE
    right = given & (said == scores.labels)
    asked = ~np.isin(
        scores.labels, [c for c, origin in enumerate(thresholds.origins) if origin == BACKGROUND]
    )
    judged: dict[str, Any] = {"answered": int(given.sum())}
    for name, top, bottom in (
        ("answered_share", given, np.ones_like(given)),
        ("precision", right, given),
        ("recall", right, asked),
    ):
        sums = (draws.per_group(part, draws.index) for part in (top, bottom))
        groups = len(np.unique(draws.index[bottom]))
        judged[name] = _share(int(top.sum()), int(bottom.sum()))
        judged[f"{name}_ci"] = interval(draws.ratio(*sums), groups) if bottom.any() else None
    judged["per_class"] = [
        {
            "class": name,
            "answers": int((said == c).sum()),
            "precision": _share(int((right & (said == c)).sum()), int((said == c).sum())),
            "recall": _share(int((right & (said == c)).sum()), int((scores.labels == c).sum())),
        }
        for c, name in enumerate(scores.classes)
        if thresholds.origins[c] != BACKGROUND
    ]
    return judged


def _share(top: int, bottom: int) -> float | None:
    return top / bottom if bottom else None


def judge_novelty(scores: Scores, *, n_bootstrap: int, seed: int) -> dict[str, Any] | None:
    """What calling sounds strange costs: the share of recordings of known classes that it keeps (`kept`, `kept_ci`)."""
    if scores.strangeness is None:
        return None
    draws = Draws(scores.groups, n_bootstrap, seed)
    kept = scores.strangeness <= STRANGEST
    sums = (draws.per_group(part, draws.index) for part in (kept, np.ones_like(kept)))
    return {"kept": float(kept.mean()), "kept_ci": interval(draws.ratio(*sums), draws.n_groups)}
