"""From which score on a class is decided for; chosen on validation, evaluated on test.

    Scores of validation ─▶ choose ─▶ Thresholds;  Scores of test, Thresholds ─▶ evaluate_decisions

The goal is either a precision (of the recordings whose score for a class reaches its threshold, so many are of it), or
a number of false alarms in an hour of background.

For a precision, the lowest threshold is taken that keeps it with 95 % confidence (one-sided Clopper-Pearson bound; the
recordings of a source count as one together): the best of many cuts looks better than it is, and few recordings cannot
prove what many could. It is chosen on all classes together. A class has a lower one of its own where its recordings
alone prove that, and a higher one where they contradict the shared one. Where nothing can be proven, the score itself
stands in: calibrated, a score of 0.9 promises to be right nine times in ten. docs/statistics.md says what that keeps,
and what it costs. For false alarms, one more than was counted must be allowed. Each class says which it got.

No threshold is below 0.5, whatever validation would allow: a decision ought to be at least as likely right as wrong,
and unknown sounds come with low scores.

A background class has a column of scores, so that others can lose to it, and is never a decision.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from birdtune.evaluation import false_alarms
from birdtune.evaluation.bootstrap import Bools, Bootstrap, divide, interval, source_weights
from birdtune.evaluation.decision import BACKGROUND, LEAST, NOMINAL, OOD_LIMIT, OWN, SHARED, Thresholds
from birdtune.evaluation.scores import Floats, Scores, clip_scores

# A threshold is chosen where the goal is kept with the first confidence; a class contradicts the shared one where, with
# the second, it is not kept. Less proof is asked of that, since a higher threshold costs recall only.
CONFIDENCE, CONTRADICTION = 0.95, 0.8
_DECIMALS = 6


def choose(
    scores: Scores | None,
    classes: Sequence[str],
    background: Sequence[str],
    *,
    precision: float,
    alarms_per_hour: float | None,
    window_s: float,
) -> Thresholds:
    """The thresholds that keep a goal.

    Args:
        scores: held-out recordings, as they are served; None if there are none.
        background: names of the classes that are never a decision.
        precision: the goal where `alarms_per_hour` is None, or there is too little background to estimate it.
        alarms_per_hour: allowed over all classes together.
        window_s: length of a window in seconds.
    """
    asked = [c for c, name in enumerate(classes) if name not in background]
    shared: float | None = None
    own: dict[int, float] = {}
    reasons = []
    if scores is not None and alarms_per_hour is not None:
        shared, own, why = false_alarms.thresholds(scores, asked, background, alarms_per_hour, window_s)
        reasons += [why] if why else []
    by_alarms = alarms_per_hour is not None and shared is not None
    if by_alarms:
        goal = f"at most {alarms_per_hour:g} false alarms an hour"
    else:
        goal = f"a precision of {precision:g}"
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
    return Thresholds(tuple(values), tuple(origins), goal, " ".join(reasons))


def _reasons(origins: Sequence[str], scores: Scores | None, precision: float | None) -> list[str]:
    n = len([origin for origin in origins if origin != BACKGROUND])
    fewest = f"{_fewest(precision)} source recordings at least" if precision is not None else "more"
    if nominal := origins.count(NOMINAL):
        few = "no held-out recordings" if scores is None else f"too few held-out recordings (it takes {fewest})"
        of = "" if nominal == n else f" for {nominal} of {n} classes"
        return [f"There are {few} to choose thresholds on{of}: the precision that was asked for stands in, as a score."]
    if lacking := origins.count(SHARED):
        return [
            f"{lacking} of {n} classes have too few held-out recordings for a lower threshold of their own (it takes "
            f"{fewest}), or do not keep the goal with one; the one chosen on all classes together stands in."
        ]
    return []


def _fewest(precision: float) -> int:
    """Sources that prove a precision, all of them right."""
    return math.ceil(math.log(1.0 - CONFIDENCE) / math.log(precision))


def _for_precision(
    scores: Scores, asked: Sequence[int], precision: float
) -> tuple[float | None, dict[int, float]]:
    """The threshold of all classes together, and those of the classes that need or deserve another."""
    clips, share = clip_scores(scores), source_weights(scores.groups)
    columns = np.asarray(asked, np.int64)
    row, place = np.nonzero((clips >= LEAST)[:, columns] & scores.known[:, columns])  # no other can pass
    column = columns[place]
    values, right, counts = clips[row, column], scores.positive[row, column], share[row]
    shared = lowest_for_precision(values, right, counts, precision)
    found = {}
    for c in asked:
        inside = column == c
        own = _own(values[inside], right[inside], counts[inside], precision, precision if shared is None else shared)
        if own is not None:
            found[c] = own
    return shared, found


def _own(
    values: Floats, right: Bools, share: Floats, precision: float, standing: float
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
    values: Floats, right: Bools, share: Floats, precision: float
) -> float | None:
    """The lowest threshold, from 0.5 on, at which the precision is kept with 95 % confidence; None if none does.

    Args:
        values: [M] scores; right: [M] whether each was of the class; share: [M] what each counts.
    """
    ranked, hits, tried, ends = _cuts(values, right, share)
    kept = np.flatnonzero(ends & (_bound(hits, tried - hits + 1.0, 1.0 - CONFIDENCE) >= precision))
    return false_alarms.between(ranked, int(kept[-1])) if kept.size else None


def _raised(values: Floats, right: Bools, share: Floats, precision: float) -> float:
    """The lowest threshold at which the precision was seen, without proof; above all scores where there is none."""
    ranked, hits, tried, ends = _cuts(values, right, share)
    kept = np.flatnonzero(ends & (hits >= precision * tried))
    return false_alarms.between(ranked, int(kept[-1])) if kept.size else float((ranked[0] + 1.0) / 2)


def _cuts(
    values: Floats, right: Bools, share: Floats
) -> tuple[Floats, Floats, Floats, Bools]:
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


# ---- evaluation ---------------------------------------------------------------------------------


def decided(scores: Scores, thresholds: Thresholds) -> Bools:
    """The classes decided for: at most one a recording, or, where recordings have several, all that pass. [N, C]"""
    pooled = clip_scores(scores)
    if scores.is_multi_label:
        return thresholds.passing(pooled, scores.ood_score)
    return np.asarray(thresholds.decide(pooled, scores.ood_score)[:, None] == np.arange(len(scores.classes)))


def evaluate_decisions(scores: Scores, thresholds: Thresholds, *, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """How good the decisions are: over all recordings, and class by class.

    Returns:
        `decided` (recordings that got a class), `decided_share`, `precision` (of the decisions) and `recall` (of the
        labels that can be a decision), each with `_ci`; `per_class`: `class`, `decided`, `precision`, `recall`.
    """
    given = decided(scores, thresholds)  # [N, C]
    asked = scores.positive & thresholds.asked
    right, claimed = given & scores.positive, given & scores.known
    bootstrap = Bootstrap(scores.groups, n_bootstrap, seed)
    found: dict[str, Any] = {"decided": int(given.any(axis=1).sum())}
    terms: dict[str, tuple[Any, Any]] = {
        "decided_share": (given.any(axis=1), np.ones(len(given), np.int64)),
        "precision": (right.sum(axis=1), claimed.sum(axis=1)),
        "recall": (right.sum(axis=1), asked.sum(axis=1)),
    }
    for name, (top, bottom) in terms.items():
        value = float(top.sum() / bottom.sum()) if bottom.any() else None
        groups = bootstrap.n_groups_of(bottom > 0)
        found[name] = value
        found[f"{name}_ci"] = interval(bootstrap.ratio(top, bottom), groups) if bottom.any() else None
    precision, recall = (divide(right.sum(axis=0), of.sum(axis=0)) for of in (claimed, scores.positive))
    found["per_class"] = [
        {
            "class": name,
            "decided": int(given[:, c].sum()),
            "precision": _known(precision[c]),
            "recall": _known(recall[c]),
        }
        for c, name in enumerate(scores.classes)
        if thresholds.asked[c]
    ]
    return found


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def evaluate_ood(scores: Scores, *, n_bootstrap: int, seed: int) -> dict[str, Any] | None:
    """What rejecting as OOD costs: the share of recordings of known classes that it accepts (`accepted`, `_ci`)."""
    if scores.ood_score is None:
        return None
    everything = np.ones(len(scores.recordings), np.bool_)
    bootstrap = Bootstrap(scores.groups, n_bootstrap, seed)
    value, ci = bootstrap.share(scores.ood_score <= OOD_LIMIT, everything)
    return {"accepted": value, "accepted_ci": ci}
