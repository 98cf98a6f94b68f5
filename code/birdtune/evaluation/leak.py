"""Leakage between train and test: test recordings with the noise floor of one training recording, scored apart.

    scores of test, test recording → its nearest training recording ─▶ measure ─▶ `leak` of metrics.json ─▶ diagnose

Where clips of one recording are on both sides of the split, whatever their names say, a model can predict by
recognising the recording. Then the near ones are predicted correctly, and the accuracy of the others is what the model
reaches on new recordings.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from birdtune.evaluation.bootstrap import Bootstrap, difference_interval
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic, Row
from birdtune.evaluation.scores import Scores
from birdtune.runtime.text import count, plain, points, some, span
from birdtune.runtime.text import plain_percent as percent

# As few near ones as this, or as this share of the test, come about by chance.
_FEW, _FEW_SHARE = 3, 0.05
# From this share of the test on, the rest says little; from this difference on, the near ones carry the accuracy.
_MOST, _CARRIED = 0.5, 0.1
_PAIRS_KEPT = 100


def measure(
    scores: Scores, near: Mapping[str, tuple[str, float]], *, compared: int, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Top-1 accuracy of test recordings that sound like a training recording, and of the others.

    Args:
        near: test recording → the training recording that it sounds like, and how much, in nats.
        compared: test recordings that could be compared at all.

    Returns:
        `recordings`, `compared`, `near`, `far` (how many), `accuracy`, `near_accuracy`, `far_accuracy` (+ `_ci`),
        `difference_ci` (of near less far), `pairs` (`recording`, `nearest`, `score`; the nearest first).
        What is undefined is None.
    """
    asked = scores.has_class
    is_near = np.isin(scores.recordings, list(near))
    parts = {"near": is_near & asked, "far": ~is_near & asked}
    bootstrap = Bootstrap(scores.groups, n_bootstrap, seed)
    kept = sorted(near.items(), key=lambda item: (-item[1][1], item[0]))[:_PAIRS_KEPT]
    found: dict[str, Any] = {
        "recordings": int(asked.sum()),
        "compared": compared,
        "accuracy": bootstrap.share(scores.top1, asked)[0],
        "difference_ci": None,
        "pairs": [
            {"recording": name, "nearest": nearest, "score": round(score, 1)} for name, (nearest, score) in kept
        ],
    }
    if all(part.any() for part in parts.values()):
        drawn = [bootstrap.ratio(scores.top1 & part, part) for part in parts.values()]
        found["difference_ci"] = difference_interval(drawn[0] - drawn[1], bootstrap.n_groups)
    for name, part in parts.items():
        found[name] = int(part.sum())
        found[f"{name}_accuracy"], found[f"{name}_accuracy_ci"] = bootstrap.share(scores.top1, part)
    return found


def diagnose(found: Row | None) -> Iterator[Diagnostic]:
    """The warning about test recordings that sound like training recordings; `found`: as `measure`."""
    if not found or found["near"] < max(_FEW, _FEW_SHARE * found["recordings"]):
        return
    most = found["near"] > _MOST * found["recordings"]
    lost = found["accuracy"] - found["far_accuracy"] if found["far"] else 0.0
    ends = found["difference_ci"]
    carried = lost >= _CARRIED and ends is not None and ends[0] > 0
    first = found["pairs"][0]
    yield Diagnostic(
        "test-leak",
        STRONG if most or carried else MILD,
        f"Test recordings sound like clips of training recordings: {found['near']:,} of {found['recordings']:,} have "
        f"nearly the noise floor of one of their class, first {some([first['recording']])} that of "
        f"{some([first['nearest']])}. {sentence(found)}",
        "If they are clips of one recording, say so: --split.group-regex, or --split.acoustic join, and run again"
        + (". Until then the accuracy may only show that recordings are recognised. " if most or carried else ". ")
        + "There may be more of them: this check misses at least a quarter of such clips.",
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
