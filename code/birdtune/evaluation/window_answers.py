"""Where labels have times: how often each window is answered right, beside the answer that is right most often.

    Scores whose windows have targets of their own ─▶ window_answers ─▶ figures
"""

from typing import Any

import numpy as np

from birdtune.evaluation.bootstrap import Bools
from birdtune.evaluation.metrics import View

# In the place of a class: windows in which none is.
NO_CLASS = "no class"
_FROM = 0.5  # a calibrated score that says yes rather than no


def window_answers(view: View, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy of windows, and the majority baseline of the same windows.

    The answer is the class with the highest score if that is 0.5 or more, else none; where every window has a class, it
    is the class with the highest score. It is right if that class is in the window, or none is. Classes of which nobody
    knows whether they are in a window are no answer for it.

    Args:
        view: of windows, [P, C].

    Returns:
        `accuracy`, `majority_baseline` and `gain`, the difference in pairs, each with `_ci`; `majority`: the answer
        that is right most often; `windows`: how many are evaluated.
    """
    right, asked = right_answers(view)
    answers = _possible(view.positive, view.known)
    column = _most_frequent(answers, asked)
    baseline = answers[:, column]
    accuracy, accuracy_ci = view.bootstrap.share(right, asked)
    share, share_ci = view.bootstrap.share(baseline, asked)
    gain, gain_ci = view.bootstrap.difference(right, baseline, asked) if asked.any() else (None, None)
    return {
        "windows": int(asked.sum()), "accuracy": accuracy, "accuracy_ci": accuracy_ci,
        "majority": (*classes, NO_CLASS)[column], "majority_baseline": share, "majority_baseline_ci": share_ci,
        "gain": gain, "gain_ci": gain_ci,
    }  # fmt: skip


def right_answers(view: View) -> tuple[Bools, Bools]:
    """Which windows are answered right, and which of them are asked: of which anything is known. [P] each"""
    known = np.broadcast_to(view.known, view.positive.shape)
    asked = np.asarray(known.any(axis=1), np.bool_)
    scores = np.where(known, view.scores, -np.inf)
    top = scores.argmax(axis=1)
    each = np.arange(len(top))
    is_none = _possible(view.positive, view.known)[:, -1]
    least = _FROM if is_none[asked].any() else -np.inf
    return np.where(scores[each, top] >= least, view.positive[each, top], is_none), asked


def majority(positive: Bools, known: Bools, classes: tuple[str, ...]) -> tuple[str, float]:
    """The answer that is right most often, and for which share of the windows. positive, known: [P, C]"""
    asked, answers = np.asarray(known.any(axis=1)), _possible(positive, known)
    column = _most_frequent(answers, asked)
    return (*classes, NO_CLASS)[column], float(answers[asked, column].mean()) if asked.any() else 0.0


def with_class(positive: Bools, known: Bools) -> Bools:
    """Which windows hold a class. positive, known: [P, C] → [P, 1]"""
    return np.asarray((positive & known).any(axis=1, keepdims=True))


def _possible(positive: Bools, known: Bools) -> Bools:
    """The answers that are right for each window: its classes, or none. [P, C + 1]"""
    inside = np.asarray(positive & known)
    return np.column_stack([inside, ~inside.any(axis=1)])


def _most_frequent(answers: Bools, asked: Bools) -> int:
    return int(answers[asked].sum(axis=0).argmax()) if asked.any() else answers.shape[1] - 1
