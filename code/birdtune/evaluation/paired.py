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


def view(scores: Floats, positive: Bools, bootstrap: Bootstrap, known: Bools | None = None) -> View:
    """Recordings, each predicted as the class with the highest score. known: [N, C]; None: all targets are."""
    everywhere = np.broadcast_to(np.True_, positive.shape)
    return View(scores, positive, everywhere if known is None else known, bootstrap, names(scores))


def figures(scores: Floats, positive: Bools, bootstrap: Bootstrap, known: Bools | None = None) -> Figures:
    """Evaluate scores [N, C] of recordings with targets [N, C], where they are known [N, C] (None: everywhere)."""
    accuracy, macro_ap = _both(scores, positive, bootstrap, known)
    found = accuracy.row("accuracy")
    low, high = found["accuracy_ci"] or (None, None)
    return Figures(
        float(accuracy.value + macro_ap.value) / 2, float(accuracy.value), float(macro_ap.value), low, high
    )


def difference(
    first: Sequence[Floats],
    second: Sequence[Floats],
    positive: Bools,
    bootstrap: Bootstrap,
    known: Bools | None = None,
) -> dict[str, Any]:
    """How much better the first is than the second, each evaluated several times.

    Args:
        first, second: scores [N, C] of each time.
        known: [N, C]; None: all targets are.

    Returns:
        `score`: the difference of the mean scores; `low`, `high`: its 95 % interval, source by source, in pairs.
    """
    one, other = (_mean_score(several, positive, bootstrap, known) for several in (first, second))
    gain = float(one.value - other.value)
    low, high = difference_interval(one.drawn - other.drawn, bootstrap.n_groups, centre=gain) or (gain, gain)
    return {"score": gain, "low": low, "high": high}


def _both(
    scores: Floats, positive: Bools, bootstrap: Bootstrap, known: Bools | None
) -> tuple[Estimate, Estimate]:
    seen = view(scores, positive, bootstrap, known)
    return estimate(METRICS["accuracy"], seen), estimate(METRICS["ap"], seen).mean(bootstrap.n_groups)


def _mean_score(
    several: Sequence[Floats], positive: Bools, bootstrap: Bootstrap, known: Bools | None
) -> Estimate:
    parts = [part for scores in several for part in _both(scores, positive, bootstrap, known)]
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
