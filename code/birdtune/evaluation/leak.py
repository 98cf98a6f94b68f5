"""Are right answers recognised recordings? Test recordings that sound like one training recording, scored apart.

    scores of test, test recording → its nearest training recording ─▶ measure ─▶ `leak` of metrics.json ─▶ of_leak

Where clips of one recording stand on both sides of the split, whatever their names say, a model can answer by
recognising the recording. Then the near ones are answered rightly, and the accuracy of the others is what the model
reaches on sound that is new to it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from birdtune.evaluation.diagnostics import MILD, STRONG, Doubt, Row
from birdtune.evaluation.metrics import Draws, difference_interval, interval
from birdtune.evaluation.scores import Floats, Scores, clip_scores
from birdtune.runtime.text import count, plain, points, some, span
from birdtune.runtime.text import percent as _percent

# Fewer near ones than this, or than this share of the test, are as many as chance brings.
_FEW, _FEW_SHARE = 3, 0.05
# From this share of the test on, what is left says little; from this difference on, the near ones carry the accuracy.
_MOST, _CARRIED = 0.5, 0.1
_PAIRS_KEPT = 100


def measure(
    scores: Scores, near: Mapping[str, tuple[str, float]], *, compared: int, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Accuracy of test recordings that sound like a training recording, and of the others.

    Args:
        near: test recording → the training recording that it sounds like, and how much, in nats.
        compared: test recordings that could be compared at all.

    Returns:
        `recordings`, `compared`, `near`, `far` (how many), `accuracy`, `near_accuracy`, `far_accuracy` (+ `_ci`),
        `difference_ci` (of near less far), `pairs` (`recording`, `nearest`, `score`; the nearest first).
        What is undefined is None.
    """
    right = clip_scores(scores).argmax(axis=1) == scores.labels
    is_near = np.array([name in near for name in scores.recordings], bool)
    draws = Draws(scores.groups, n_bootstrap, seed)
    replicates = {name: _replicates(right, part, draws) for name, part in (("near", is_near), ("far", ~is_near))}
    kept = sorted(near.items(), key=lambda item: (-item[1][1], item[0]))[:_PAIRS_KEPT]
    found: dict[str, Any] = {
        "recordings": len(right), "compared": compared, "accuracy": float(right.mean()),
        "difference_ci": difference_interval(replicates["near"] - replicates["far"], draws.n_groups)
        if n_bootstrap and is_near.any() and not is_near.all() else None,
        "pairs": [
            {"recording": name, "nearest": nearest, "score": round(score, 1)} for name, (nearest, score) in kept
        ],
    }  # fmt: skip
    for name, part in (("near", is_near), ("far", ~is_near)):
        groups = len({group for group, inside in zip(scores.groups, part, strict=True) if inside})
        found[name] = int(part.sum())
        found[f"{name}_accuracy"] = float(right[part].mean()) if part.any() else None
        found[f"{name}_accuracy_ci"] = interval(replicates[name], groups) if n_bootstrap and part.any() else None
    return found


def _replicates(right: Any, part: Any, draws: Draws) -> Floats:
    return draws.ratio(draws.per_group(right & part, draws.index), draws.per_group(part, draws.index))


def of_leak(found: Row | None) -> Iterator[Doubt]:
    """What test recordings that sound like training recordings say against the figures; `found`: as `measure`."""
    if not found or found["near"] < max(_FEW, _FEW_SHARE * found["recordings"]):
        return
    most = found["near"] > _MOST * found["recordings"]
    lost = found["accuracy"] - found["far_accuracy"] if found["far"] else 0.0
    ends = found["difference_ci"]
    carried = lost >= _CARRIED and ends is not None and ends[0] > 0
    first = found["pairs"][0]
    yield Doubt(
        "test-leak",
        STRONG if most or carried else MILD,
        f"Test recordings sound like clips of training recordings: {found['near']:,} of {found['recordings']:,} have "
        f"nearly the noise floor of one of their class, first {some([first['recording']])} that of "
        f"{some([first['nearest']])}. {sentence(found)}",
        "If they are clips of one recording, say so: --split.group-regex, or --split.acoustic join, and run again"
        + (". Until then the accuracy may only show that recordings are recognised. " if most or carried else ". ")
        + "Where some are, others may be that nobody noticed: the test misses a quarter of such clips and more.",
    )


def sentence(found: Row) -> str:
    """The accuracy of near and of other test recordings in words."""
    if not found["far"]:
        return "No test recording is left without them."
    ends = f" (95 %: {plain(span(found['far_accuracy_ci']))})" if found["far_accuracy_ci"] else ""
    apart = f"; the difference is {points(found['difference_ci'])}" if found["difference_ci"] else ""
    return (
        f"Accuracy is {percent(found['near_accuracy'])} on these and {percent(found['far_accuracy'])}{ends} on the "
        f"{count(found['far'], 'other test recording')}{apart}."
    )


def percent(value: float | None) -> str:
    """A share in words, for logs too."""
    return plain(_percent(value))
