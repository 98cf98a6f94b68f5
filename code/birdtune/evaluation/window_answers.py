"""Where labels have times: how often each window is answered right, beside the answer that is right most often.

    Scores whose windows have targets of their own ─▶ window_answers ─▶ figures
"""

from typing import Any

import numpy as np

from birdtune.evaluation.metrics import View

# In the place of a class: windows in which none is.
NO_CLASS = "no class"
_FROM = 0.5  # a calibrated score that says yes rather than no


def window_answers(view: View, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy of windows, and the majority baseline of the same windows.

    The answer is the class with the highest score if that is 0.5 or more, else none. It is right if that class is in
    the window, or none is. Classes of which nobody knows whether they are in a window are no answer for it.

    Args:
        view: of windows, [P, C].

    Returns:
        `accuracy`, `majority_baseline` and `gain`, the difference in pairs, each with `_ci`; `majority`: the answer
        that is right most often; `windows`: how many are evaluated.
    """
    known = np.broadcast_to(view.known, view.positive.shape)
    asked = np.asarray(known.any(axis=1), np.bool_)
    scores = np.where(known, view.scores, -np.inf)
    top = scores.argmax(axis=1)
    each = np.arange(len(top))
    is_none = ~(view.positive & known).any(axis=1)
    right = np.where(scores[each, top] >= _FROM, view.positive[each, top], is_none)
    answers = np.column_stack([view.positive & known, is_none])  # [P, C + 1]
    column = int(answers[asked].sum(axis=0).argmax()) if asked.any() else len(classes)
    baseline = answers[:, column]
    accuracy, accuracy_ci = view.bootstrap.share(right, asked)
    share, share_ci = view.bootstrap.share(baseline, asked)
    gain, gain_ci = view.bootstrap.difference(right, baseline, asked) if asked.any() else (None, None)
    return {
        "windows": int(asked.sum()), "accuracy": accuracy, "accuracy_ci": accuracy_ci,
        "majority": (*classes, NO_CLASS)[column], "majority_baseline": share, "majority_baseline_ci": share_ci,
        "gain": gain, "gain_ci": gain_ci,
    }  # fmt: skip
