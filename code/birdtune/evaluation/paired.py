"""Which of two is better, on the same recordings.

    scores [N, C] of one and of another, targets, sources ─▶ figures of each, and their difference with an interval

The score is the mean of top-1 accuracy and macro average precision, which also chooses the best epoch. Average
precision alone does not see one class drowning the others; accuracy alone moves in steps of one recording.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdtune.evaluation.bootstrap import Bools, Bootstrap, Floats, difference_interval
from birdtune.evaluation.metrics import METRICS, Estimate, View, estimate, names


@dataclass(frozen=True)
class Figures:
    """How good some scores are; the interval is that of the accuracy, over source recordings."""

    score: float
    accuracy: float
    macro_ap: float
    low: float | None
    high: float | None


def view(scores: Floats, positive: Bools, bootstrap: Bootstrap) -> View:
    """Recordings with all targets known, each predicted as the class with the highest score."""
    return View(scores, positive, np.broadcast_to(np.True_, positive.shape), bootstrap, names(scores))


def figures(scores: Floats, positive: Bools, bootstrap: Bootstrap) -> Figures:
    """Evaluate scores [N, C] of recordings with targets [N, C]."""
    accuracy, macro_ap = _both(scores, positive, bootstrap)
    found = accuracy.row("accuracy")
    low, high = found["accuracy_ci"] or (None, None)
    return Figures(
        float(accuracy.value + macro_ap.value) / 2, float(accuracy.value), float(macro_ap.value), low, high
    )


def difference(
    first: Sequence[Floats], second: Sequence[Floats], positive: Bools, bootstrap: Bootstrap
) -> dict[str, Any]:
    """How much better the first is than the second, each evaluated several times.

    Args:
        first, second: scores [N, C] of each time.

    Returns:
        `score`: the difference of the mean scores; `low`, `high`: its 95 % interval, source by source, in pairs.
    """
    one, other = (_mean_score(several, positive, bootstrap) for several in (first, second))
    gain = float(one.value - other.value)
    low, high = difference_interval(one.drawn - other.drawn, bootstrap.n_groups, centre=gain) or (gain, gain)
    return {"score": gain, "low": low, "high": high}


def _both(scores: Floats, positive: Bools, bootstrap: Bootstrap) -> tuple[Estimate, Estimate]:
    seen = view(scores, positive, bootstrap)
    return estimate(METRICS["accuracy"], seen), estimate(METRICS["ap"], seen).mean(bootstrap.n_groups)


def _mean_score(several: Sequence[Floats], positive: Bools, bootstrap: Bootstrap) -> Estimate:
    parts = [part for scores in several for part in _both(scores, positive, bootstrap)]
    value, drawn = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("value", "drawn"))
    return Estimate(np.asarray(value), np.asarray(drawn), np.asarray(bootstrap.n_groups))


# ---- with something and without -----------------------------------------------------------------


def gains(
    with_it: Mapping[str, Estimate], without: Mapping[str, Estimate], *, changed: bool = True
) -> dict[str, Any]:
    """How much better some scores are than others, on the same recordings, in pairs.

    Args:
        changed: False: they are the same scores, and the difference is certainly 0.

    Returns:
        name → `with`, `without`, `gain` and its 95 % interval `ci`, source by source (None: there is none).
    """
    found = {}
    for name, one in with_it.items():
        other = without[name]
        gain = float(one.value - other.value)
        ci = difference_interval(one.drawn - other.drawn, int(one.n_groups), centre=gain) if changed else [0.0, 0.0]
        found[name] = {"with": float(one.value), "without": float(other.value), "gain": gain, "ci": ci}
    return found
